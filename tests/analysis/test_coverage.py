"""What the intervals and tests promise, simulated or enumerated: coverage, power, error rates, closed testing.

Tolerances are four standard errors of the simulated share; the seeds are fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safebench.analysis import statistics

DRAWS = 50_000
CHANCE, DEPTH = 0.2, 10.0  # of a crash, in standard deviations of the runs that do not crash


def within(share: float, expected: float, draws: int = DRAWS) -> bool:
    return abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / draws)


def t_factor(n: int) -> float:
    """Half the width of our t-interval over the standard deviation, taken from the function itself."""
    data = [float(value) for value in range(n)]
    factor = statistics.mean(data).margin / float(np.std(data, ddof=1))
    other = np.random.default_rng(n).normal(3.0, 0.1, n)
    assert statistics.mean(other.tolist()).margin == pytest.approx(factor * other.std(ddof=1), rel=1e-12)
    return factor


def t_coverage(n: int, runs: np.ndarray, truth: float) -> float:
    margin = t_factor(n) * runs.std(axis=1, ddof=1)
    return float(np.mean(np.abs(runs.mean(axis=1) - truth) <= margin))


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_t_interval_covers_95_per_cent_on_normal_data(n):
    runs = np.random.default_rng(n).normal(size=(DRAWS, n))
    assert within(t_coverage(n, runs, 0.0), 0.95)


@pytest.mark.parametrize(("n", "coverage"), [(3, 0.752), (5, 0.699), (8, 0.829)])
def test_the_t_interval_on_crash_shaped_data_covers_less(n, coverage):
    # Its bulk by hand: with no crash among n runs (0.8^n) the interval cannot reach the mean; 0.67 and 0.83 at most.
    generator = np.random.default_rng(100 + n)
    runs = generator.normal(size=(DRAWS, n)) - DEPTH * (generator.random((DRAWS, n)) < CHANCE)
    found = t_coverage(n, runs, -CHANCE * DEPTH)
    assert found == pytest.approx(coverage, abs=4 * math.sqrt(0.25 / DRAWS))


def percentile_coverage(n: int, draws: int) -> float:
    """Coverage of the percentile bootstrap with every one of the n^n resamples, each multiset weighted."""
    counts = np.array([c for c in itertools.product(range(n + 1), repeat=n) if sum(c) == n])
    weights = np.array([math.factorial(n) / math.prod(map(math.factorial, c)) for c in counts.tolist()]) / n**n
    runs = np.random.default_rng(200 + n).normal(size=(draws, n))
    means = runs @ counts.T / n
    order = np.argsort(means, axis=1)
    reached = np.cumsum(weights[order], axis=1)
    sorted_ = np.take_along_axis(means, order, axis=1)
    low, high = (
        np.take_along_axis(sorted_, np.argmax(reached >= q - 1e-12, axis=1)[:, None], axis=1)[:, 0]
        for q in (0.025, 0.975)
    )
    return float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize(("n", "coverage"), [(3, 0.75), (5, 0.842)])
def test_the_percentile_bootstrap_covers_too_little_for_few_runs(n, coverage):
    # Three runs: the smallest resampled mean is the minimum, drawn with 1/27 > 2.5 %, so the interval reaches from
    # minimum to maximum and misses when all three lie on one side: 2/8.
    draws = 20_000
    assert within(percentile_coverage(n, draws), coverage, draws)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_sign_flip_test_errs_exactly_as_often_as_it_says(n):
    # Under no difference every pattern of signs is as likely: a share p of them has a p-value of at most p, for all p.
    sizes = np.random.default_rng(n).normal(size=n)
    found = [statistics.sign_flip((sizes * signs).tolist()) for signs in itertools.product((-1.0, 1.0), repeat=n)]
    for p in set(found):
        assert np.mean(np.array(found) <= p) == p
    assert min(found) == statistics.smallest_p(n)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_clopper_pearson_covers_at_least_what_it_says(n, share):
    found = [statistics.clopper_pearson(k, n) for k in range(n + 1)]
    covered = [k for k, estimate in enumerate(found) if estimate.low <= share <= estimate.high]
    assert sum(stats.binom.pmf(k, n, share) for k in covered) >= 0.95


@pytest.mark.parametrize("n", [2, 3, 5, 8, 20])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_detectable_difference_has_its_power_by_the_noncentral_t(n, samples):
    for alpha, power in ((0.05, 0.8), (0.01, 0.9)):
        reach = statistics.detectable(1.0, n, alpha, power, samples)
        freedom, shift = samples * (n - 1), reach * math.sqrt(n / samples)
        critical = stats.t.isf(alpha / 2, freedom)
        other_side = stats.nct.cdf(-critical, freedom, shift)  # NaN where scipy finds it too small to compute
        found = stats.nct.sf(critical, freedom, shift) + np.nan_to_num(other_side)
        assert found == pytest.approx(power, abs=2e-3)


def test_the_detectable_difference_of_two_samples_by_simulation():
    n, reach = 5, statistics.detectable(1.0, 5, samples=2)
    generator = np.random.default_rng(7)
    first, second = generator.normal(size=(DRAWS, n)), generator.normal(reach, size=(DRAWS, n))
    error = np.sqrt((first.var(axis=1, ddof=1) + second.var(axis=1, ddof=1)) / n)
    t = (second.mean(axis=1) - first.mean(axis=1)) / error
    assert within(float(np.mean(np.abs(t) > stats.t.isf(0.025, 2 * n - 2))), 0.8)


def test_welchs_reach_is_that_of_equal_samples_of_the_harmonic_mean_size():
    first, second = [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 5.0, 4.0, 0.0]
    spread = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    size = 2 / (1 / 4 + 1 / 6)
    found = statistics.unpaired(second, first)
    assert found.detectable == pytest.approx(statistics.detectable(spread, size, samples=2), rel=1e-12)
    assert found.detectable > statistics.detectable(spread, 5, samples=2)  # 4.8 runs see less than 5


def closed(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values by the closure of Bonferroni tests: rejected where every intersection with it is."""
    names = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(names, size)]
    return [max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if name in s) for name in names]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5))
def test_holm_is_the_closure_of_bonferroni(p_values):
    found = statistics.holm({str(i): p for i, p in enumerate(p_values)})
    assert list(found.values()) == pytest.approx(closed(p_values), rel=1e-12)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), st.integers(0, 2))
def test_tests_that_could_not_be_made_count_as_never_passed(p_values, missing):
    made = {str(i): p for i, p in enumerate(p_values)}
    padded = {**made, **{f"missing {i}": 1.0 for i in range(missing)}}
    found = statistics.holm(made, family=len(padded))
    assert found == pytest.approx({name: statistics.holm(padded)[name] for name in made}, rel=1e-12)


times = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12)


@given(times)
def test_kaplan_meier_equals_scipys(cases):
    ends, seen = [float(time) for time, _ in cases], [event for _, event in cases]
    reference = stats.ecdf(stats.CensoredData.right_censored(ends, [not event for event in seen])).sf
    below = [
        time for time, left in zip(reference.quantiles, reference.probabilities, strict=True) if left <= 0.5 + 1e-12
    ]
    assert statistics.median_survival(ends, seen) == (below[0] if below else math.inf)


def test_kaplan_meier_with_ties_by_hand():
    # Two of five at 10 (0.6 left), one leaves at 10, still at risk there; of two left one at 20: 0.6 x 1/2 = 0.3.
    assert statistics.median_survival([10, 10, 10, 20, 30], [True, True, False, True, False]) == 20
    # One that leaves before the first event was never at risk: two of three at 15, 1/3 left.
    assert statistics.median_survival([5, 15, 15, 40], [False, True, True, False]) == 15
    # Half left at 10 is the median, though the last run is seen for long.
    assert statistics.median_survival([10, 10, 50, 50], [True, True, False, False]) == 10
    assert statistics.median_survival([10, 50, 50], [True, False, False]) == math.inf
