"""Soft minimum (equation 1), value heads (equation 2), target (equation 14), explained variance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from safebench.models import seeding
from safebench.rl.value_heads import ValueHeads, explained_variance, polyak, soft_min

values = st.floats(-50, 50)
alphas = st.floats(1e-3, 1e3)


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def heads(
    number: int = 2, *, mlp: bool = True, layer_norm: bool = True, seed: int = 0, width: int = 8
) -> ValueHeads:
    return ValueHeads(width, number, mlp=mlp, layer_norm=layer_norm, draws=seeding.Draws("test", seed))


def test_soft_min_by_hand() -> None:
    # alpha 1, V = (0, ln 3): -ln((1 + 1/3) / 2) = ln 1.5, between 0 and the mean 0.549.
    assert float(soft_min(doubles(0.0, math.log(3)), 1.0)) == pytest.approx(math.log(1.5), rel=1e-15)
    # alpha 0.3, V = (1, 1.3): 1 - 0.3 ln((1 + 1/e) / 2).
    expected = 1 - 0.3 * math.log((1 + math.exp(-1)) / 2)
    assert float(soft_min(doubles(1.0, 1.3), 0.3)) == pytest.approx(expected, rel=1e-14)


@given(values, values, alphas)
def test_soft_min_lies_within_its_bounds(one: float, other: float, alpha: float) -> None:
    """Equation 1: min <= V <= min(min + alpha ln 2, mean)."""
    soft = float(soft_min(doubles(one, other), alpha))
    least, mean = min(one, other), (one + other) / 2
    # Rounding: V is alpha times a difference of logarithms that are about |V| / alpha and ln 2.
    slack = 1e-15 * (abs(one) + abs(other) + alpha)
    assert least - slack <= soft <= min(least + alpha * math.log(2), mean) + slack


@given(st.lists(values, min_size=1, max_size=6), alphas)
def test_so_it_does_with_any_number_of_heads(seen: list[float], alpha: float) -> None:
    soft = float(soft_min(doubles(*seen), alpha))
    slack = 1e-15 * (2 * sum(map(abs, seen)) + 2 * alpha)
    upper = min(min(seen) + alpha * math.log(len(seen)), sum(seen) / len(seen))
    assert min(seen) - slack <= soft <= upper + slack


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-3, 1e2), st.floats(1.0, 100.0))
def test_soft_min_rises_with_alpha(one: float, other: float, alpha: float, times: float) -> None:
    """From the minimum to the mean: the smaller alpha, the more pessimistic."""
    slack = 1e-14 * (abs(one) + abs(other) + alpha * times)
    assert float(soft_min(doubles(one, other), alpha)) <= float(soft_min(doubles(one, other), alpha * times)) + slack


@given(values, values)
def test_soft_min_goes_to_the_minimum_and_to_the_mean(one: float, other: float) -> None:
    # Off by at most alpha ln 2 below, and by (difference)^2 / (8 alpha) above.
    assert float(soft_min(doubles(one, other), 1e-9)) == pytest.approx(min(one, other), abs=1e-9)
    assert float(soft_min(doubles(one, other), 1e6)) == pytest.approx((one + other) / 2, abs=2e-3)


@given(values, values, alphas, values)
def test_soft_min_is_symmetric_monotone_and_moves_with_its_heads(
    one: float, other: float, alpha: float, shift: float
) -> None:
    soft = float(soft_min(doubles(one, other), alpha))
    slack = 1e-14 * (abs(one) + abs(other) + abs(shift) + alpha)
    assert float(soft_min(doubles(other, one), alpha)) == soft
    assert float(soft_min(doubles(one + shift, other + shift), alpha)) == pytest.approx(soft + shift, abs=slack)
    assert float(soft_min(doubles(one + 1, other), alpha)) >= soft - slack


def test_equal_heads_agree_and_one_head_is_itself() -> None:
    assert float(soft_min(doubles(0.7, 0.7, 0.7), 0.3)) == pytest.approx(0.7, rel=1e-15)
    assert soft_min(doubles(0.7, -2.0)[:, None], 0.3).tolist() == [0.7, -2.0]


def test_soft_min_keeps_leading_axes_and_holds_at_extremes() -> None:
    x = torch.tensor([[[1e4, -1e4], [3.0, 3.0]]])
    assert soft_min(x, 0.3).shape == (1, 2)
    # Far apart, the lower head plus alpha ln 2; no overflow in float32.
    assert soft_min(x, 0.3).tolist() == [[pytest.approx(-1e4 + 0.3 * math.log(2)), pytest.approx(3.0)]]


def test_the_heads_share_of_the_gradient_is_a_softmax() -> None:
    v = doubles(0.1, 0.6).requires_grad_()
    soft_min(v, 0.3).backward()
    torch.testing.assert_close(v.grad, torch.softmax(-v.detach() / 0.3, 0), rtol=1e-14, atol=0)


def test_heads_are_equation_2() -> None:
    module = heads().double()
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = []
    for head in module.heads:
        assert isinstance(head, nn.Sequential)
        first, _, last = head
        assert first.weight.shape == (2, 8)
        inner = normal @ first.weight.T + first.bias
        expected.append(inner * torch.special.ndtr(inner) @ last.weight.T + last.bias)
    torch.testing.assert_close(module(x), torch.cat(expected, -1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("mlp", "layer_norm", "count"), [(False, False, 2 * 9), (True, True, 16 + 2 * (18 + 3))])
def test_sizes(mlp: bool, layer_norm: bool, count: int) -> None:
    module = heads(mlp=mlp, layer_norm=layer_norm)
    assert module(torch.zeros(3, 5, 8)).shape == (3, 5, 2)
    assert sum(p.numel() for p in module.parameters()) == count


def test_heads_are_float32_on_states_of_any_type() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert heads()(torch.zeros(1, 8, dtype=dtype)).dtype == torch.float32


def test_heads_differ_and_depend_on_the_draws_alone() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    out = heads()(x)
    assert (out[:, 0] != out[:, 1]).all()
    torch.manual_seed(99)
    assert torch.equal(heads()(x), out)
    assert not torch.equal(heads(seed=1)(x), out)


def test_values_start_small() -> None:
    # Last layer of deviation 0.02: at width 64 on states of size one, |V| stays well under 0.02 * 4 * 8.
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    for mlp in (True, False):
        assert float(heads(mlp=mlp, width=64)(x).detach().abs().max()) < 0.7


def test_polyak_by_hand() -> None:
    target, online = heads(), heads(seed=1)
    before = [p.clone() for p in target.parameters()]
    polyak(target, online, 0.95)
    for old, new, fast in zip(before, target.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.95 * old + 0.05 * fast.detach(), rtol=1e-6, atol=1e-9)
    polyak(target, online, 0.0)
    for new, fast in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(new, fast)


def test_polyak_leaves_the_online_weights_and_closes_in_geometrically() -> None:
    target, online = heads().double(), heads(seed=1).double()
    fixed = [p.clone() for p in online.parameters()]
    gap = [(t - o).detach() for t, o in zip(target.parameters(), online.parameters(), strict=True)]
    for _ in range(10):
        polyak(target, online, 0.95)
    for was, t, o, before in zip(gap, target.parameters(), online.parameters(), fixed, strict=True):
        assert torch.equal(o, before)
        torch.testing.assert_close((t - o).detach(), 0.95**10 * was, rtol=1e-10, atol=1e-15)


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([True, True, True, True, False])
    returns = doubles(1, 2, 3, 4, 99)
    assert explained_variance(returns.clone(), returns, mask) == 1.0
    assert explained_variance(doubles(2.5, 2.5, 2.5, 2.5, -1), returns, mask) == pytest.approx(0, abs=1e-15)
    # Errors 1, 0, 1, 0: variance 1/3 against 5/3.
    assert explained_variance(doubles(0, 2, 2, 4, 7), returns, mask) == pytest.approx(0.8, rel=1e-14)
    # Values the wrong way round: errors -3, -1, 1, 3, variance 20/3: 1 - 4.
    assert explained_variance(doubles(4, 3, 2, 1, 0), returns, mask) == pytest.approx(-3, rel=1e-14)
    # A constant offset is not held against the critic: it is a variance.
    assert explained_variance(returns + 10, returns, mask) == 1.0


def test_explained_variance_of_what_does_not_vary_is_nan() -> None:
    same = doubles(2, 2, 2)
    assert math.isnan(explained_variance(doubles(1, 2, 3), same, torch.tensor([True, True, True])))
    assert math.isnan(explained_variance(same, doubles(1, 2, 3), torch.tensor([True, False, False])))
