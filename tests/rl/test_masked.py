"""Means, variances and whitening over kept entries: by hand, against torch, against TRL's own functions."""

from __future__ import annotations

import ast
import importlib.util
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from safebench.rl.advantages import masked_mean, masked_variance, whiten

X = torch.tensor([[1.0, 2.0, 100.0], [4.0, 5.0, -7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, False]])


@st.composite
def kept(draw: st.DrawFn, least: int = 2) -> tuple[Tensor, Tensor]:
    """Draw values of moderate size and a mask that keeps at least ``least`` of them."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    count = rows * columns
    assume(count >= least)
    values = draw(st.lists(st.floats(-1e3, 1e3), min_size=count, max_size=count))
    flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    assume(sum(flags) >= least)
    x = torch.tensor(values, dtype=torch.float64).reshape(rows, columns)
    return x, torch.tensor(flags).reshape(rows, columns)


@cache
def trl() -> SimpleNamespace:
    """Return TRL's masked functions, taken out of its source: importing the trainer takes many seconds."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "experimental" / "ppo" / "ppo_trainer.py"
    wanted = {"masked_mean", "masked_var", "masked_whiten"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    assert len(tree.body) == len(wanted)
    names: dict = {"torch": torch}
    exec(compile(tree, str(path), "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in wanted})


def test_by_hand() -> None:
    # Kept: 1, 2, 4, 5. Mean 3; squares 4 + 1 + 1 + 4 = 10; variance 10 / 3.
    assert float(masked_mean(X, MASK)) == 3.0
    assert float(masked_variance(X, MASK)) == pytest.approx(10 / 3, rel=1e-15)
    scale = 1 / math.sqrt(10 / 3 + 1e-8)
    expected = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 2.0, 0.0]], dtype=torch.float64) * scale
    torch.testing.assert_close(whiten(X, MASK), expected, rtol=1e-15, atol=0)
    shifted = torch.where(MASK, expected + 3, 0.0)
    torch.testing.assert_close(whiten(X, MASK, keep_mean=True), shifted, rtol=1e-15, atol=0)


@given(kept())
def test_equal_to_torch_over_the_kept_entries(case: tuple[Tensor, Tensor]) -> None:
    x, mask = case
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean(), rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(masked_variance(x, mask), x[mask].var(), rtol=1e-12, atol=1e-18)


@given(kept())
def test_equal_to_trl(case: tuple[Tensor, Tensor]) -> None:
    x, mask = case
    theirs = trl()
    torch.testing.assert_close(masked_mean(x, mask), theirs.masked_mean(x, mask), rtol=1e-13, atol=1e-10)
    # Near-equal values leave nothing but rounding in (x - mean) / std.
    assume(float(x[mask].std()) > 1e-3)
    # TRL's n / (n - 1) is a float32 even where the values are float64: one rounding of 2^-24.
    torch.testing.assert_close(masked_variance(x, mask), theirs.masked_var(x, mask), rtol=1e-7, atol=0)
    for keep_mean in (False, True):
        expected = torch.where(mask, theirs.masked_whiten(x, mask, shift_mean=not keep_mean), 0.0)
        # That rounding again, of values up to sqrt(24), and the mean added back may cancel them.
        torch.testing.assert_close(whiten(x, mask, keep_mean=keep_mean), expected, rtol=0, atol=2e-7)


@given(kept())
def test_whitened_values_have_mean_zero_and_variance_one(case: tuple[Tensor, Tensor]) -> None:
    x, mask = case
    variance = float(x[mask].var())
    assume(variance > 1e-6)
    white = whiten(x, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-9)
    # The 1e-8 under the root takes its share of the variance away.
    assert float(white[mask].var()) == pytest.approx(variance / (variance + 1e-8), rel=1e-9)
    assert not white[~mask].any()


def test_whitening_does_not_see_shift_or_scale() -> None:
    torch.testing.assert_close(whiten(3 * X + 11, MASK), whiten(X, MASK), rtol=1e-8, atol=0)
    torch.testing.assert_close(whiten(-X, MASK), -whiten(X, MASK), rtol=1e-15, atol=0)


def test_equal_values_whiten_to_zero() -> None:
    assert not whiten(torch.full((2, 3), 4.0), MASK).any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_the_mask_leaves_out_is_never_seen(garbage: float) -> None:
    x = torch.where(MASK, X, garbage)
    assert float(masked_mean(x, MASK)) == 3.0
    assert torch.equal(whiten(x, MASK), whiten(X, MASK))


def test_too_few_entries_give_nan() -> None:
    one = torch.tensor([[True, False, False], [False, False, False]])
    assert math.isnan(masked_mean(X, one & False))
    assert float(masked_mean(X, one)) == 1.0
    assert math.isnan(masked_variance(X, one))
    assert torch.equal(torch.isnan(whiten(X, one)), one)


class Meeting:
    """Two threads in place of two processes: each sum waits for the other's part."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.parts: dict[int, Tensor] = {}

    def add(self, x: Tensor) -> Tensor:
        self.parts[threading.get_ident()] = x
        self.barrier.wait(timeout=30)
        total = torch.stack(list(self.parts.values())).sum(0)
        self.barrier.wait(timeout=30)
        return total


@pytest.mark.parametrize("keep_mean", [False, True])
def test_two_processes_whiten_as_one(keep_mean: bool) -> None:
    # Unequal halves: two kept entries here, one there.
    mask = torch.tensor([[True, True, False], [False, False, True]])
    meeting = Meeting()
    with ThreadPoolExecutor(2) as threads:
        parts = threads.map(
            lambda i: whiten(X[i : i + 1], mask[i : i + 1], keep_mean=keep_mean, add=meeting.add), range(2)
        )
        together = torch.cat(list(parts))
    torch.testing.assert_close(together, whiten(X, mask, keep_mean=keep_mean), rtol=1e-14, atol=0)
