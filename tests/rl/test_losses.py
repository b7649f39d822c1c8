"""Loss terms: the clip's four cases, both value losses, and a KL penalty whose gradient is really there."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safebench.rl.kl import exact_kl
from safebench.rl.losses import clip_fraction, clipped_surrogate, kl_penalty, straight_through, value_loss

kls = st.floats(0, 5)
gates = st.floats(0.5, 20)
coefficients = st.floats(1e-3, 100)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# With clip 0.2. Gain: the clip cuts what would reward moving further; loss: it must not hide what moving has cost.
SURROGATE = {
    "ratio high, advantage up: cut": (1.5, 2.0, -2.4, 0.0, 1),
    "ratio low, advantage up: as it is": (0.5, 2.0, -1.0, -2.0, 0),
    "ratio high, advantage down: as it is": (1.5, -2.0, 3.0, 2.0, 0),
    "ratio low, advantage down: cut": (0.5, -2.0, 1.6, 0.0, 1),
    "ratio inside, advantage up": (1.1, 2.0, -2.2, -2.0, 0),
    "ratio inside, advantage down": (0.9, -2.0, 1.8, 2.0, 0),
    "no advantage": (1.5, 0.0, 0.0, 0.0, 0),
}


@pytest.mark.parametrize(("ratio", "advantage", "value", "slope", "cut"), SURROGATE.values(), ids=SURROGATE.keys())
def test_clipped_surrogate(ratio: float, advantage: float, value: float, slope: float, cut: int) -> None:
    rho = doubles(ratio).requires_grad_()
    loss = clipped_surrogate(rho, doubles(advantage), 0.2)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([value], rel=1e-15)
    assert rho.grad is not None
    assert rho.grad.tolist() == pytest.approx([slope], abs=1e-15)
    assert clip_fraction(rho, doubles(advantage), 0.2).tolist() == [cut]


@given(st.floats(0.01, 10), st.floats(-5, 5), st.floats(0.05, 0.9))
def test_the_surrogate_is_a_pessimistic_bound(ratio: float, advantage: float, clip: float) -> None:
    loss = clipped_surrogate(doubles(ratio), doubles(advantage), clip)
    assert float(loss) >= -ratio * advantage
    assert (float(loss) > -ratio * advantage) == bool(clip_fraction(doubles(ratio), doubles(advantage), clip))


def test_at_ratio_one_it_is_the_policy_gradient() -> None:
    log_p = doubles(-1.0, -2.0).requires_grad_()
    advantages = doubles(0.7, -1.3)
    clipped_surrogate((log_p - log_p.detach()).exp(), advantages, 0.2).sum().backward()
    assert log_p.grad is not None
    assert torch.equal(log_p.grad, -advantages)


# V_old = 0, clip 0.2, R = 1: V 0.5 goes to V_clip 0.2. Squared: 0.125 and 0.32. Huber with delta 0.5: the
# first error, 0.5, is just inside: 0.125; the second, 0.8, outside: 0.5 (0.8 - 0.25) = 0.275.
VALUE = {
    "squared, max": ({"combine": "max"}, 0.32),
    "squared, mean": ({"combine": "mean"}, 0.2225),
    "squared, no clip": ({"clip": None}, 0.125),
    "Huber, max": ({"huber": 0.5, "combine": "max"}, 0.275),
    "Huber, mean (SAFE)": ({"huber": 0.5, "combine": "mean"}, 0.2),
    "Huber, no clip": ({"huber": 0.5, "clip": None}, 0.125),
}


@pytest.mark.parametrize(("options", "expected"), VALUE.values(), ids=VALUE.keys())
def test_value_loss_by_hand(options: dict, expected: float) -> None:
    loss = value_loss(doubles(0.5), doubles(0.0), doubles(1.0), **options)
    assert loss.tolist() == pytest.approx([expected], rel=1e-14)


def test_value_loss_clips_downwards_too() -> None:
    # V_old = 1, V = 0.1, R = 0: V_clip = 0.8; max(0.005, 0.32).
    assert value_loss(doubles(0.1), doubles(1.0), doubles(0.0)).tolist() == pytest.approx([0.32], rel=1e-14)


def test_a_cut_value_has_no_gradient_under_max_and_half_under_mean() -> None:
    # V - R = -0.5; the cut value is a constant. max takes the cut one: 0. mean: -0.25.
    for combine, slope in (("max", 0.0), ("mean", -0.25)):
        values = doubles(0.5).requires_grad_()
        value_loss(values, doubles(0.0), doubles(1.0), combine=combine).sum().backward()  # type: ignore[arg-type]
        assert values.grad is not None
        assert values.grad.tolist() == [slope]


def test_each_head_regresses_onto_the_return_by_itself() -> None:
    heads = doubles(0.5, 2.0, -1.0, 0.0).reshape(1, 2, 2)
    old = torch.zeros(1, 2, 2, dtype=torch.float64)
    returns = doubles(1.0, 0.5).reshape(1, 2)
    loss = value_loss(heads, old, returns[..., None], huber=0.5, combine="mean")
    for head in range(2):
        alone = value_loss(heads[..., head], old[..., head], returns, huber=0.5, combine="mean")
        assert torch.equal(loss[..., head], alone)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([None, 0.5, 2.0]))
def test_value_losses_are_ordered(value: float, old: float, target: float, huber: float | None) -> None:
    """Unclipped <= max, mean between the smaller and the larger error, and Huber never above the square."""
    v, o, r = doubles(value), doubles(old), doubles(target)
    unclipped = float(value_loss(v, o, r, clip=None, huber=huber))
    largest = float(value_loss(v, o, r, huber=huber))
    mean = float(value_loss(v, o, r, huber=huber, combine="mean"))
    assert unclipped <= largest
    assert largest / 2 <= mean <= largest
    assert largest <= float(value_loss(v, o, r))


def test_kl_penalty_by_hand() -> None:
    # gate 2, coefficient 0.1, excess 0.5 - 0.3: 2 * 0.1 * 0.04 = 0.008; slope 2 * 2 * 0.1 * 0.2 = 0.08.
    assert kl_penalty(0.5, 0.3, 2.0, 0.1) == pytest.approx((0.008, 0.08), rel=1e-14)
    assert kl_penalty(0.3, 0.3, 2.0, 0.1) == (0.0, 0.0)
    assert kl_penalty(0.1, 0.3, 2.0, 0.1) == (0.0, 0.0)
    assert kl_penalty(0.1, 0.3, 2.0, 0.1, asymmetric=False) == pytest.approx((0.008, -0.08), rel=1e-14)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_a_kl_that_is_not_a_number_is_not_no_penalty(asymmetric: bool) -> None:
    assert all(math.isnan(x) for x in kl_penalty(math.nan, 0.3, 1.0, 0.1, asymmetric=asymmetric))


@given(kls, kls, gates, coefficients, st.booleans())
def test_the_slope_is_the_derivative(
    tracked: float, threshold: float, gate: float, coefficient: float, asymmetric: bool
) -> None:
    h = 1e-6
    options = {"asymmetric": asymmetric}
    above, below = (kl_penalty(tracked + d, threshold, gate, coefficient, **options)[0] for d in (h, -h))
    slope = kl_penalty(tracked, threshold, gate, coefficient, **options)[1]
    # A parabola's central difference is exact; at the kink it is off by g c h / 2, and by rounding of the values,
    # up to 25 g c times 1e-16 over 2 h.
    assert (above - below) / (2 * h) == pytest.approx(slope, abs=gate * coefficient * (h + 1e-8))


LOGITS = doubles(1.2, -0.4, 0.3, -1.0)
REFERENCE = doubles(-0.5, 0.6, 0.1, 0.2).log_softmax(-1)


def kl_of(theta: Tensor) -> Tensor:
    """Return the exact KL of a policy over four tokens."""
    return exact_kl(theta.log_softmax(-1), REFERENCE)


def central(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-6) -> Tensor:
    steps = h * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(f(x + step) - f(x - step)) / (2 * h) for step in steps])


@given(kls, kls, gates, coefficients)
def test_the_penalty_has_a_gradient_whenever_it_has_a_value(
    tracked: float, threshold: float, gate: float, coefficient: float
) -> None:
    """Value at KL_short, gradient 2 g c (KL_short - tau) dKL: what the released code lacked."""
    theta = LOGITS.clone().requires_grad_()
    value, slope = kl_penalty(tracked, threshold, gate, coefficient)
    term = straight_through(value, slope, kl_of(theta))
    (gradient,) = torch.autograd.grad(term, theta)
    assert float(term.detach()) == value
    assert value == pytest.approx(gate * coefficient * max(0.0, tracked - threshold) ** 2, rel=1e-12)
    (kl_gradient,) = torch.autograd.grad(kl_of(theta), theta)
    expected = 2 * gate * coefficient * max(0.0, tracked - threshold) * kl_gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-300)
    if value > 0:
        assert gradient.any()
    if tracked <= threshold:
        assert value == 0
        assert not gradient.any()


def test_the_gradient_of_the_exact_kl_against_finite_differences() -> None:
    theta = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_of(theta), theta)
    # Rounding gives 1e-16 / 1e-6 and the third derivative 1e-12.
    torch.testing.assert_close(gradient, central(kl_of, LOGITS), rtol=0, atol=1e-9)
    # By hand: dKL/dtheta_v = p_v (log p_v - log r_v - KL).
    log_p = LOGITS.log_softmax(-1)
    by_hand = log_p.exp() * (log_p - REFERENCE - kl_of(LOGITS))
    torch.testing.assert_close(gradient, by_hand, rtol=1e-13, atol=1e-16)


def test_the_moving_average_does_not_shrink_the_gradient() -> None:
    """Equation 10 through KL_short = 0.9 old + 0.1 KL would carry a tenth of the straight-through gradient."""
    theta = LOGITS.clone().requires_grad_()
    old = 2.0
    tracked = 0.9 * old + 0.1 * kl_of(theta)
    (through_average,) = torch.autograd.grad(0.1 * (tracked - 0.3).clamp(min=0) ** 2, theta)
    value, slope = kl_penalty(float(tracked.detach()), 0.3, 1.0, 0.1)
    (straight,) = torch.autograd.grad(straight_through(value, slope, kl_of(theta)), theta)
    torch.testing.assert_close(straight, 10 * through_average, rtol=1e-12, atol=0)


def test_with_the_current_kl_tracked_it_is_plain_equation_10() -> None:
    theta = LOGITS.clone().requires_grad_()
    (plain,) = torch.autograd.grad(1.5 * 0.1 * (kl_of(theta) - 0.3).clamp(min=0) ** 2, theta)
    value, slope = kl_penalty(float(kl_of(LOGITS)), 0.3, 1.5, 0.1)
    (straight,) = torch.autograd.grad(straight_through(value, slope, kl_of(theta)), theta)
    torch.testing.assert_close(straight, plain, rtol=1e-12, atol=0)
    assert bool(plain.any())


def test_steps_on_the_penalty_alone_bring_the_kl_down() -> None:
    theta = LOGITS.clone().requires_grad_()
    seen = [float(kl_of(theta).detach())]
    for _ in range(5):
        value, slope = kl_penalty(seen[-1], 0.1, 1.0, 1.0)
        (gradient,) = torch.autograd.grad(straight_through(value, slope, kl_of(theta)), theta)
        with torch.no_grad():
            theta -= 0.3 * gradient
        seen.append(float(kl_of(theta).detach()))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > 0.5
    assert seen[-1] < 0.8 * seen[0]


def test_steps_on_the_penalty_without_gradient_change_nothing() -> None:
    """The released code's penalty, a plain number: the check that would have caught it."""
    term = straight_through(*kl_penalty(2.0, 0.3, 1.0, 0.1), kl_of(LOGITS))
    assert float(term) > 0
    assert not term.requires_grad
