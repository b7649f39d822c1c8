"""The group-sequential test: its error over all looks, enumerated and simulated; its direction; its stopping.

Simulated shares are held to their bound within five standard errors; the seeds are fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from safebench.analysis import stopping
from safebench.analysis.statistics import sign_flip
from safebench.analysis.stopping import Look, Round, group_sequential, paired_round, spent_by, unpaired_round

Draw = Callable[[np.random.Generator, int], np.ndarray]
SYMMETRIC: dict[str, Draw] = {
    "normal": lambda generator, n: generator.normal(size=n),
    "heavy-tailed": lambda generator, n: generator.standard_cauchy(size=n),
    "rare": lambda generator, n: generator.choice([-1.0, 0.0, 0.0, 1.0], size=n),
}


def looks_of(values: Sequence[float], size: int, alpha: float, **options: int) -> tuple[Look, ...]:
    """Differences in rounds of ``size``, all of them spent on by the last."""
    rounds = [Round(np.asarray(values[i : i + size], dtype=float)) for i in range(0, len(values), size)]
    return group_sequential(
        rounds, [spent_by(alpha, (k + 1) * size, len(values)) for k in range(len(rounds))], **options
    )


def below(hits: int, draws: int, alpha: float) -> bool:
    return hits / draws <= alpha + 5 * math.sqrt(alpha * (1 - alpha) / draws)


def test_one_look_is_the_sign_flip_test() -> None:
    values = [0.3, 1.2, 0.7, -0.1, 2.0, 0.4, 0.9, 0.2]
    p = sign_flip(values)
    assert p == 4 / 256  # the pattern as it is, the one with -0.1 turned, and their mirror images
    assert looks_of(values, 8, p)[0].crossed
    assert not looks_of(values, 8, p - 1e-6)[0].crossed
    assert looks_of(values, 8, p)[0].spent <= p


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_of_all_sign_patterns_no_more_than_alpha_cross_at_any_look(name: str, alpha: float) -> None:
    sizes = np.abs(SYMMETRIC[name](np.random.default_rng(3), 9))
    patterns = list(itertools.product([-1.0, 1.0], repeat=9))
    found = [looks_of(sizes * signs, 3, alpha) for signs in patterns]
    crossed = sum(looks[-1].crossed for looks in found) / len(patterns)
    whole = next(looks for looks in found if len(looks) == 3 and not looks[-1].crossed)
    assert crossed == pytest.approx(whole[-1].spent, abs=1e-12), "what is said to be spent is what crosses"
    assert crossed <= alpha
    if name != "rare":
        assert crossed > 0.7 * alpha, "and most of it is used"


@pytest.mark.parametrize("name", SYMMETRIC)
def test_no_difference_is_decided_no_more_often_than_alpha(name: str) -> None:
    generator, draws, alpha = np.random.default_rng(7), 2000, 0.1
    hits = sum(looks_of(SYMMETRIC[name](generator, 9), 3, alpha)[-1].crossed for _ in range(draws))
    assert below(hits, draws, alpha)
    assert name == "rare" or hits > 0.05 * draws


def test_drawn_patterns_keep_the_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "EXACT_WAYS", 40)  # the first look visits all patterns, the others draw
    generator, draws, alpha = np.random.default_rng(8), 2000, 0.1
    found = [
        looks_of(generator.standard_cauchy(size=15), 5, alpha, seed=seed, draws=199)
        for seed in range(draws)
    ]  # fmt: skip
    assert below(sum(looks[-1].crossed for looks in found), draws, alpha)
    assert {look.exact for looks in found for look in looks[1:]} == {False}
    assert all(looks[0].exact for looks in found)
    assert max(looks[-1].spent for looks in found) <= alpha + 1e-12


def test_testing_the_plain_p_after_every_round_would_err_more_often() -> None:
    generator, draws = np.random.default_rng(7), 2000
    values = generator.normal(size=(draws, 12))
    hits = sum(any(sign_flip(row[:n].tolist()) <= 0.1 for n in (6, 9, 12)) for row in values)
    assert not below(hits, draws, 0.1)


def test_unpaired_arms_keep_the_error() -> None:
    generator, draws, alpha = np.random.default_rng(9), 1500, 0.1
    allowed = [alpha / 2, alpha]

    def crossed() -> bool:
        values = generator.standard_cauchy(size=(2, 2, 4))
        return group_sequential([unpaired_round(*one) for one in values.tolist()], allowed)[-1].crossed

    hits = sum(crossed() for _ in range(draws))
    assert below(hits, draws, alpha)
    assert hits > 0.04 * draws


def test_a_clear_difference_is_decided_early_and_in_its_direction() -> None:
    generator = np.random.default_rng(1)
    for sign in (1.0, -1.0):
        looks = looks_of(sign * generator.normal(3.0, 1.0, 20), 5, 0.05 / 3)
        assert (looks[-1].n, looks[-1].crossed) == (10, True)
        assert math.copysign(1.0, looks[-1].statistic) == sign


def test_five_pairs_cannot_decide_and_spend_nothing_that_is_lost() -> None:
    first, second = looks_of([1.0, 2.0, 3.0, 4.0, 5.0] * 2, 5, 0.1)
    assert (first.crossed, first.spent) == (False, 0.0)  # 0.05 allowed, and the smallest share of 32 patterns is 2/32
    assert first.boundary == 15.0
    assert second.crossed
    assert second.spent <= 0.1


def test_drawn_patterns_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(0.2, 1.0, 12)
    exact = looks_of(values, 4, 0.2)
    monkeypatch.setattr(stopping, "EXACT_WAYS", 1)
    drawn = looks_of(values, 4, 0.2)
    assert len(exact) == len(drawn) == 3
    for one, other in zip(exact, drawn, strict=True):
        assert (one.exact, other.exact) == (True, False)
        assert other.statistic == one.statistic
        assert other.spent == pytest.approx(one.spent, abs=2 / 256 + 5 * math.sqrt(0.1 / 100_000))
        assert other.boundary == pytest.approx(one.boundary, rel=0.05)


def test_label_patterns_are_dealt_out_within_rounds() -> None:
    one = unpaired_round([3.0, 4.0], [1.0, 2.0])
    assert one.ways == 6
    assert one.observed == 2.0  # 2 · 2 / 4 times the difference of means, which is 2
    assert sorted(one.every()) == [-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]
    drawn = one.drawn(6000, np.random.default_rng(0))
    assert drawn[0] == 2.0
    assert np.mean(drawn[1:] == 2.0) == pytest.approx(1 / 6, abs=5 * math.sqrt(5 / 36 / 6000))
    assert unpaired_round([1.0], []).ways == 1


def test_ties_cross_together_or_not_at_all() -> None:
    looks = looks_of([0.1] * 8, 8, 0.05)  # sums are multiples of 0.1, unequal in their last digits
    assert looks[0].spent == 2 / 256  # all of one sign; one other among them would be 18 / 256 > 0.05
    assert looks[0].crossed


def test_what_is_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired_round([1.0], [])
    with pytest.raises(ValueError, match="finite"):
        paired_round([math.nan], [0.0])
    with pytest.raises(ValueError, match="finite"):
        unpaired_round([1.0], [math.inf])
    with pytest.raises(ValueError, match="never fall"):
        group_sequential([Round(np.ones(2))] * 2, [0.05, 0.01])
    with pytest.raises(ValueError, match="never fall"):
        group_sequential([Round(np.ones(2))], [])
    with pytest.raises(ValueError, match="between 0 and 1"):
        spent_by(1.0, 5, 20)
    with pytest.raises(ValueError, match="at most 20"):
        spent_by(0.05, 25, 20)
