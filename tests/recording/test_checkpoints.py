"""Checkpoints come back as they were saved, and a damaged, half-written or foreign one is never taken for whole."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebench.errors import BadResource, MissingResource, SafebenchError
from safebench.recording import checkpoints
from tests.support import rows

ROOT = Path(__file__).parents[2]


def trained() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def state() -> dict[str, Any]:
    model, optimizer = trained()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": torch.Generator().manual_seed(5).get_state(),
        "controller": {"kl": 0.1, "window": [1.0, float("nan"), float("-inf")], "phase": "warmup", "seen": 3},
        "flags": (True, None, torch.ones(2, dtype=torch.bfloat16)),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and repr(left) == repr(right)


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    saved = state()
    path = checkpoints.save(tmp_path / "checkpoints", 25, saved)
    assert path.name == "step-25.pt"
    loaded = checkpoints.load_latest(tmp_path / "checkpoints")
    assert loaded is not None
    step, found = loaded
    assert step == 25
    assert same({**found, "model": OrderedDict(found["model"])}, saved)


def test_a_loaded_optimizer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints.save(tmp_path, 1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, again = trained()
    loaded = checkpoints.load_latest(tmp_path)
    assert loaded is not None
    other.load_state_dict(loaded[1]["model"])
    again.load_state_dict(loaded[1]["optimizer"])
    for net, rule in ((model, optimizer), (other, again)):
        rule.zero_grad()
        net(torch.arange(3.0)).sum().backward()
        rule.step()
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


Point = namedtuple("Point", "x y")


@dataclass
class Foreign:
    x: int = 1


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Foreign(), r"state\['a'\]\[1\] is a Foreign"),
        (np.float64(1.0), r"state\['a'\]\[1\] is a float64"),
        (Point(1, 2), r"state\['a'\]\[1\] is a Point"),
        (Path("x"), r"state\['a'\]\[1\] is a "),
        ({1, 2}, r"state\['a'\]\[1\] is a set"),
        ({(1, 2): 3}, r"state\['a'\]\[1\] has the key \(1, 2\)"),
    ],
)
def test_what_would_not_load_is_not_saved(tmp_path: Path, value: Any, where: str) -> None:
    """A numpy number or a named tuple passes for a plain one until it is loaded, when it is too late."""
    with pytest.raises(SafebenchError, match=where):
        checkpoints.save(tmp_path, 1, {"a": [0, value]})
    assert list(tmp_path.iterdir()) == []


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.load_latest(tmp_path / "nowhere") is None
    (tmp_path / "step-x.pt").write_text("")
    (tmp_path / "step-7.pt.part").write_text("")
    assert checkpoints.steps(tmp_path) == []
    assert checkpoints.load_latest(tmp_path) is None


def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (9, 10, 11):
        checkpoints.save(tmp_path, step, {"step": step})
    (tmp_path / "step-11.pt").write_bytes(b"")
    data = bytearray((tmp_path / "step-10.pt").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "step-10.pt").write_bytes(data)
    loaded = checkpoints.load_latest(tmp_path)
    assert loaded == (9, {"step": 9})
    notices = [record.getMessage() for record in caplog.records]
    assert [("step-11.pt" in notice, "step-10.pt" in notice) for notice in notices] == [(True, False), (False, True)]


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    saved = {"weights": torch.arange(40.0), "name": "x"}
    return checkpoints.save(tmp_path_factory.mktemp("one"), 3, saved).read_bytes(), saved


@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_passes_unseen(
    position: int, bit: int, file_bytes: tuple[bytes, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """torch itself reads flipped tensor data without a word; the archive's checksums know."""
    data, saved = file_bytes
    broken = bytearray(data)
    broken[position % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "step-3.pt"
    path.write_bytes(broken)
    try:
        step, found = checkpoints.load(path)
    except BadResource:
        return
    assert step == 3 and same(found, saved)  # the flip was in a byte that carries nothing


def test_flipped_tensor_data_is_what_torch_would_not_see(
    file_bytes: tuple[bytes, dict[str, Any]], tmp_path: Path
) -> None:
    data, saved = file_bytes
    at = data.index(saved["weights"].numpy().tobytes())
    path = tmp_path / "step-3.pt"
    path.write_bytes(data[: at + 40] + bytes([data[at + 40] ^ 1]) + data[at + 41 :])
    assert not same(torch.load(path, weights_only=True)["state"], saved)
    with pytest.raises(BadResource, match="checksum"):
        checkpoints.load(path)


@given(length=st.integers(min_value=0))
def test_no_cut_file_passes_for_whole(
    length: int, file_bytes: tuple[bytes, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data, _ = file_bytes
    path = tmp_path_factory.mktemp("cut") / "step-3.pt"
    path.write_bytes(data[: length % len(data)])
    with pytest.raises(BadResource, match="damaged"):
        checkpoints.load(path)


class Trap:
    """Runs code when a trusting reader unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "state": Trap()}, "step-1.pt")
    (tmp_path / "step-2.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("step-1.pt", "step-2.pt"):
        with pytest.raises(BadResource):
            checkpoints.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_pruning_keeps_the_newest_by_number(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        checkpoints.save(tmp_path, step, {})
    (tmp_path / "step-101.pt.part").write_text("half")
    checkpoints.prune(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10.pt", "step-100.pt", "step-9.pt"]
    checkpoints.drop_after(tmp_path, 10)
    assert checkpoints.steps(tmp_path) == [9, 10]
    checkpoints.prune(tmp_path, 0)
    assert checkpoints.steps(tmp_path) == []


@pytest.mark.parametrize("limit", [10, 1500, 500_000])
def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path: Path, limit: int) -> None:
    """At the first byte, between the small parts, and inside a tensor that no buffer holds."""
    checkpoints.save(tmp_path, 1, {"kept": True})
    with pytest.raises(MissingResource, match=r"no room to write .*step-2\.pt"), rows.full_disk(limit):
        checkpoints.save(tmp_path, 2, {**state(), "large": torch.zeros(250_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.pt"]
    assert checkpoints.load_latest(tmp_path) == (1, {"kept": True})


def test_a_kill_in_the_middle_of_a_write_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from safebench.recording import checkpoints
folder = Path({str(tmp_path)!r})
checkpoints.save(folder, 1, {{"kept": True}})
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(folder, 2, {{"kept": False}})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1.pt", "step-2.pt.part"]
    assert checkpoints.load_latest(tmp_path) == (1, {"kept": True})
    checkpoints.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.pt"]
