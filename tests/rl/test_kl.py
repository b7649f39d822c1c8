"""KL and entropy: goldens by hand, estimators against exact sums, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safebench import resources
from safebench.models import generation
from safebench.rl import kl as module
from safebench.rl.kl import OutputLayer, chunk_of, entropy, exact_kl, sampled_kl, token_statistics

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
R = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()

logits = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


def log_probs(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log_softmax(-1)


def test_exact_kl_by_hand() -> None:
    # 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 = (1/4) ln 2.
    assert float(exact_kl(P, R)) == pytest.approx(math.log(2) / 4, rel=1e-15)
    assert float(exact_kl(P, P)) == 0.0


def test_the_policys_probabilities_weigh() -> None:
    # p = (3/4, 1/4), r = (1/2, 1/2): KL(p || r) = 3/4 ln 3/2 + 1/4 ln 1/2, KL(r || p) = 1/2 ln 2/3 + 1/2 ln 2.
    p, r = torch.tensor([0.75, 0.25]).double().log(), torch.tensor([0.5, 0.5]).double().log()
    assert float(exact_kl(p, r)) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-14)
    assert float(exact_kl(r, p)) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)


def test_entropy_by_hand() -> None:
    # 1/2 ln 2 + 2 (1/4) ln 4 = (3/2) ln 2; uniform over V: ln V.
    assert float(entropy(P)) == pytest.approx(1.5 * math.log(2), rel=1e-15)
    assert float(entropy(torch.full((7,), 1 / 7, dtype=torch.float64).log())) == pytest.approx(math.log(7), rel=1e-15)


def test_sampled_kl_by_hand() -> None:
    # log p - log r = ln 2: k1 = ln 2; k3 = 1/2 - 1 + ln 2. The other way round: k1 = -ln 2; k3 = 2 - 1 - ln 2.
    log_p, log_r = torch.tensor([0.5, 0.25]).double().log(), torch.tensor([0.25, 0.5]).double().log()
    ln2 = math.log(2)
    assert sampled_kl(log_p, log_r).tolist() == pytest.approx([ln2, -ln2], rel=1e-15)
    assert sampled_kl(log_p, log_r, "k3").tolist() == pytest.approx([ln2 - 0.5, 1 - ln2], rel=1e-14)


@given(logits, logits)
def test_both_estimators_expect_the_exact_kl(p: list[float], r: list[float]) -> None:
    """Enumerate the vocabulary: sum_v p(v) k(v) is the KL, for k1 and k3 alike."""
    log_p, log_r = log_probs(p), log_probs(r)
    exact = float(exact_kl(log_p, log_r))
    for estimator in ("k1", "k3"):
        expected = float((log_p.exp() * sampled_kl(log_p, log_r, estimator)).sum())
        assert expected == pytest.approx(exact, rel=1e-9, abs=1e-14)


@given(logits, logits)
def test_bounds(p: list[float], r: list[float]) -> None:
    log_p, log_r = log_probs(p), log_probs(r)
    assert float(exact_kl(log_p, log_r)) >= -1e-15
    assert float(sampled_kl(log_p, log_r, "k3").min()) >= 0
    assert -1e-15 <= float(entropy(log_p)) <= math.log(5) + 1e-15


def test_k3_stays_accurate_near_zero() -> None:
    # x - ln(1 + x) = x^2 / 2 - ...: with float32 and log-ratio 1e-4, exp(x) - 1 - x would keep no digit.
    log_p, log_r = torch.tensor([0.0]), torch.tensor([1e-4])
    assert float(sampled_kl(log_p, log_r, "k3")) == pytest.approx(5e-9, rel=2e-3)


def test_k1_as_a_loss_has_no_expected_gradient() -> None:
    """Why KL control needs the exact KL: on-policy, sum_v p(v) grad log p(v) = grad sum_v p(v) = 0."""
    theta = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    log_p = theta.log_softmax(-1)
    expected = (log_p.detach().exp() * sampled_kl(log_p, R)).sum()
    (as_loss,) = torch.autograd.grad(expected, theta, retain_graph=True)
    (exact,) = torch.autograd.grad(exact_kl(log_p, R), theta)
    assert float(as_loss.abs().max()) < 1e-15
    assert float(exact.abs().max()) > 0.05


class Case:
    """Five tokens over a vocabulary of seven, width three."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.reference = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.weight = torch.randn(7, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.tokens = torch.tensor([0, 6, 3, 3, 1])

    def __call__(self, **options) -> tuple[Tensor, Tensor, Tensor]:
        hidden = options.pop("hidden", self.hidden)
        output = OutputLayer(self.weight)
        chosen, spread, kl, _ = token_statistics(hidden, self.tokens, output, reference=self.reference, **options)
        assert spread is not None
        assert kl is not None
        return chosen, spread, kl


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_token_statistics_are_those_of_the_whole_logits(temperature: float) -> None:
    case = Case()
    p = (case.hidden @ case.weight.T / temperature).log_softmax(-1)
    r = (case.reference @ case.weight.T / temperature).log_softmax(-1)
    chosen, spread, kl = case(temperature=temperature)
    torch.testing.assert_close(chosen, p[torch.arange(5), case.tokens], rtol=1e-13, atol=0)
    torch.testing.assert_close(spread, -(p.exp() * p).sum(-1), rtol=1e-13, atol=0)
    torch.testing.assert_close(kl, (p.exp() * (p - r)).sum(-1), rtol=1e-13, atol=0)


def test_what_is_not_asked_for_is_not_computed() -> None:
    case = Case()
    chosen, spread, kl, _ = token_statistics(case.hidden, case.tokens, OutputLayer(case.weight), with_entropy=False)
    assert spread is None
    assert kl is None
    assert torch.equal(chosen, case()[0])


@pytest.mark.parametrize(
    ("vocabulary", "tokens"), [(2048, 1024), (16384, 1024), (151936, 110), (262144, 64), (2**25, 1)]
)
def test_a_large_vocabulary_has_fewer_tokens_at_once(vocabulary: int, tokens: int) -> None:
    assert chunk_of(vocabulary) == tokens
    assert (module.TOKENS, module.LOGITS) == (resources.VOCABULARY_TOKENS, resources.VOCABULARY_LOGITS)
    assert generation.PROBABILITIES == resources.SAMPLED_PROBABILITIES


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_chunks_change_neither_values_nor_gradients(chunk: int, grad: bool) -> None:
    case = Case()
    weights = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(3, 5)

    def loss(**options: int) -> tuple[Tensor, Tensor | None]:
        hidden = case.hidden.clone().requires_grad_()
        with torch.set_grad_enabled(grad):
            stacked = torch.stack(case(hidden=hidden, **options))
        if not grad:
            return stacked, None
        (gradient,) = torch.autograd.grad((weights * stacked).sum(), hidden)
        return stacked, gradient

    (whole, gradient), (parts, pieced) = loss(), loss(chunk=chunk)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-15)
    if grad:
        assert pieced is not None
        torch.testing.assert_close(pieced, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunk", [2, 1024])
def test_gradients_against_finite_differences(chunk: int) -> None:
    case = Case()
    hidden = case.hidden.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: case(hidden=h, chunk=chunk, temperature=0.7), hidden, fast_mode=False)


def test_gradients_do_not_reach_the_reference() -> None:
    case = Case()
    case.reference.requires_grad_()
    case.hidden.requires_grad_()
    kl = case()[2]
    assert torch.autograd.grad(kl.sum(), case.reference, allow_unused=True) == (None,)


def test_equal_states_have_exactly_no_kl() -> None:
    case = Case(torch.float32)
    case.reference = case.hidden.clone()
    assert not case()[2].any()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_over_the_vocabulary_are_at_least_float32(stored: torch.dtype, expected: torch.dtype) -> None:
    case = Case(stored)
    assert {x.dtype for x in case()} == {expected}
    # The states may be wider than the weights: then the weights' type is the logits', as in the model itself.
    assert {x.dtype for x in case(hidden=case.hidden.float())} == {expected}
