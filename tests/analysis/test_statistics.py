"""Statistics against scipy, published tables and cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safebench.analysis import statistics

A = [1.2, 0.7, 1.9, 1.1, 0.4]
B = [0.9, 0.8, 1.0, 0.6, 0.1]
floats = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_mean_interval_by_hand():
    # 1, 2, 3: mean 2, standard error 1/sqrt(3); t at 2 degrees of freedom is (2p - 1) sqrt(2 / (4p(1 - p))).
    found = statistics.mean([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.n == 3
    assert found.margin == pytest.approx(0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)) / math.sqrt(3), rel=1e-9)
    assert (found.low + found.high) / 2 == pytest.approx(2.0, rel=1e-12)


def test_one_value_and_none_have_no_interval():
    one, none = statistics.mean([3.0]), statistics.mean([])
    assert one.value == 3.0 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(none.value) and none.n == 0


def test_paired_equals_scipys_one_sample_t():
    found = statistics.paired(A, B)
    interval = stats.ttest_rel(A, B).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    with pytest.raises(ValueError, match="5 and 4"):
        statistics.paired(A, B[:4])


def test_unpaired_equals_scipys_welch():
    found = statistics.unpaired(A, B[:4])
    interval = stats.ttest_ind(A, B[:4], equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert (found.p, found.n, found.method) == (statistics.permutation(A, B[:4]), 4, "Welch")


def test_unpaired_edges():
    assert statistics.unpaired([1.0, 1.0], [1.0, 1.0]).p == 1.0
    apart = statistics.unpaired([2.0, 2.0], [1.0, 1.0])
    assert (apart.low, apart.p) == (1.0, pytest.approx(2 / 6, rel=1e-15))
    assert math.isnan(statistics.unpaired([2.0], [1.0, 1.0]).low)
    assert math.isnan(statistics.unpaired([], [1.0]).value)


def test_the_permutation_test_by_hand():
    # 3 and 4 against 1 and 2: of the six ways to deal out two labels only this one and its mirror are 2 apart.
    assert statistics.permutation([3.0, 4.0], [1.0, 2.0]) == pytest.approx(2 / 6, rel=1e-15)
    # 5 against 1, 2, 3: the means are 3 apart. 1, 2 or 3 alone: 7/3, 1 and 1/3 apart.
    assert statistics.permutation([5.0], [1.0, 2.0, 3.0]) == 0.25
    # Five of five against none of five, as Fisher has it: 2 of 252.
    assert statistics.permutation([1.0] * 5, [0.0] * 5) == pytest.approx(2 / 252, rel=1e-15)
    assert statistics.permutation([0.1 + 0.2, 0.3], [0.3, 0.3]) == 1.0  # a difference by rounding is none
    assert math.isnan(statistics.permutation([], [1.0])) and math.isnan(statistics.permutation([1.0], []))


@given(floats, floats)
def test_the_permutation_test_equals_scipys_either_way_round(first, second):
    def apart(x, y, axis):
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    found = statistics.permutation(first, second)
    assert found == statistics.permutation(second, first)
    if len(first) + len(second) <= 8:
        data = [np.round(values, 3) for values in (first, second)]
        centred = [values - np.concatenate(data).mean() for values in data]
        reference = stats.permutation_test(
            centred, lambda x, y, axis: np.abs(np.round(apart(x, y, axis), 9)), vectorized=True, n_resamples=np.inf,
            alternative="greater",
        )  # fmt: skip
        assert statistics.permutation(*data) == pytest.approx(reference.pvalue, rel=1e-12)


def test_a_permutation_test_of_many_runs_is_drawn_and_never_zero():
    first, second = np.arange(12.0).tolist(), (np.arange(12.0) + 3.5).tolist()
    exact = stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), vectorized=True,
        n_resamples=100_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert statistics.permutation(first, second) == pytest.approx(exact, abs=4 * math.sqrt(2 * exact / 100_000))
    apart = statistics.permutation(first, [value + 1000 for value in first])
    assert apart == pytest.approx(1 / 100_001) and apart > 0


@pytest.mark.parametrize(
    ("counts", "interval"),
    # Table II of Newcombe 1998 (Statistics in Medicine 17, 873), method 10.
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_newcombes_interval_is_his_table(counts, interval):
    found = statistics.newcombe(*counts)
    assert (round(found.low, 4), round(found.high, 4)) == interval
    assert (found.p, found.n) == (statistics.fisher(*counts), min(counts[1], counts[3]))


def test_no_runs_have_no_difference_of_shares():
    assert math.isnan(statistics.newcombe(0, 0, 3, 5).value)


def test_sign_flip_by_hand():
    # Differences 1, 2, 3: of eight sign patterns only +++ and --- reach |sum| >= 6.
    assert statistics.sign_flip([1.0, 2.0, 3.0]) == 0.25
    # 1, 2, -3: the sum is 0, every pattern is at least as far.
    assert statistics.sign_flip([1.0, 2.0, -3.0]) == 1.0
    # 3, 1, -1: |sum| = 3; |s| >= 3 in 3±1±1 -> 5, 3, 3 (and 1), and mirrored: 6 of 8.
    assert statistics.sign_flip([3.0, 1.0, -1.0]) == 0.75
    assert statistics.sign_flip([0.0, 0.0]) == 1.0
    assert math.isnan(statistics.sign_flip([]))


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (5, 0.0625), (6, 0.03125)])
def test_smallest_p(n, p):
    assert statistics.smallest_p(n) == p
    assert statistics.sign_flip([0.1] * n) == p


def test_sign_flip_equals_scipys_permutation_test():
    differences = np.array([0.3, -0.1, 0.9, 0.5, 0.3, 1.7, -0.2])
    reference = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flip(differences.tolist()) == pytest.approx(reference.pvalue, rel=1e-12)


def test_sign_flip_of_yes_and_no_is_mcnemars_exact_test():
    # Four pairs changed from crash to none, one the other way: binomial(1 of 5, 1/2), two-sided.
    assert statistics.sign_flip([-1.0] * 4 + [1.0] + [0.0] * 3) == stats.binomtest(1, 5).pvalue


def test_drawn_sign_flip_is_near_the_normal_limit():
    differences = np.random.default_rng(1).normal(0.3, 1.0, 30)
    p = statistics.sign_flip(differences.tolist(), np.random.default_rng(2), draws=40_000)
    assert p == statistics.sign_flip(differences.tolist(), np.random.default_rng(2), draws=40_000)
    normal = 2 * stats.norm.sf(abs(differences.sum()) / math.sqrt((differences**2).sum()))
    assert p == pytest.approx(normal, abs=4 * math.sqrt(normal * (1 - normal) / 40_000) + 0.005)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (5, 5), (3, 17)])
def test_clopper_pearson_equals_scipy(k, n):
    found = statistics.clopper_pearson(k, n)
    reference = stats.binomtest(k, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-12)


def test_no_crash_in_five_runs_still_allows_half():
    assert statistics.clopper_pearson(0, 5).high == pytest.approx(0.522, abs=5e-4)
    assert statistics.clopper_pearson(0, 5, confidence=0.9).high == pytest.approx(0.451, abs=5e-4)
    assert (statistics.clopper_pearson(0, 0).low, statistics.clopper_pearson(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="6 successes in 5"):
        statistics.clopper_pearson(6, 5)


@pytest.mark.parametrize("table", [(5, 5, 0, 5), (4, 5, 1, 6), (0, 3, 0, 4), (2, 7, 5, 9)])
def test_fisher_equals_scipy(table):
    a, n, b, m = table
    reference = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert statistics.fisher(a, n, b, m) == pytest.approx(reference, rel=1e-12)


@given(floats, floats)
def test_probability_of_improvement_is_mann_whitneys_u(second, first):
    u = stats.mannwhitneyu(second, first).statistic
    found = statistics.probability_of_improvement(second, first)
    assert found == pytest.approx(u / (len(second) * len(first)), rel=1e-12)
    assert found + statistics.probability_of_improvement(first, second) == pytest.approx(1.0, rel=1e-12)


def test_holm_by_hand():
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert statistics.holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    part = statistics.holm({"a": 0.01, "b": math.nan}, family=3)
    assert part["a"] == pytest.approx(0.03) and math.isnan(part["b"])


def test_bca_needs_eight_and_equals_scipy():
    values = np.random.default_rng(5).exponential(size=10)
    found = statistics.bca(values.tolist(), np.random.default_rng(7), draws=999)
    reference = stats.bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(7))
    assert (found.low, found.high) == tuple(reference.confidence_interval)
    assert statistics.bca([2.0] * 8, np.random.default_rng(0)).high == 2.0
    with pytest.raises(ValueError, match="at least 8"):
        statistics.bca(values[:7].tolist(), np.random.default_rng(0))


@pytest.mark.parametrize(("n", "effect"), [(5, 1.6816), (8, 1.1547), (20, 0.6604)])
def test_detectable_difference_of_pairs_has_power_080(n, effect):
    found = statistics.detectable(2.0, n)
    assert found == pytest.approx(2.0 * effect, rel=2e-3)
    critical = stats.t.ppf(0.975, n - 1)
    z = np.random.default_rng(0).normal(found / 2.0, 1.0, (200_000, n))  # simulated: no noncentral t
    t = z.mean(1) / z.std(1, ddof=1) * math.sqrt(n)
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.004)


def test_detectable_difference_of_two_samples():
    # Cohen (1988): d = 0.5 needs 64 runs in each of two samples for power 0.8.
    assert statistics.detectable(1.0, 64, samples=2) == pytest.approx(0.499, abs=2e-3)
    assert math.isnan(statistics.detectable(1.0, 1)) and math.isnan(statistics.detectable(math.nan, 5))
    assert statistics.detectable(0.0, 5) == 0.0


def test_kaplan_meier_median_by_hand():
    # Crashes at 10, 20, 30; one run seen to 25, one to 40: survival 0.8, 0.6, then 0.6 * (1 - 1/2) = 0.3.
    assert statistics.median_survival([10, 20, 25, 30, 40], [True, True, False, True, False]) == 30
    assert statistics.median_survival([40, 40, 40], [False, False, False]) == math.inf
    assert statistics.median_survival([10, 40], [True, False]) == 10  # exactly half survive
    assert math.isnan(statistics.median_survival([], []))


def test_coverage_of_the_t_interval_on_normal_data():
    generator = np.random.default_rng(11)
    found = [statistics.mean(generator.normal(size=5).tolist()) for _ in range(2000)]
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) == pytest.approx(0.95, abs=0.015)


@given(floats)
def test_sign_flip_is_even_and_scale_free(differences):
    p = statistics.sign_flip(differences)
    assert p == statistics.sign_flip([-value for value in differences])
    assert p == statistics.sign_flip([value * 4.0 for value in differences])
    patterns = itertools.product((-1, 1), repeat=len(differences))
    total = sum(abs(value) for value in differences)
    sums = [abs(math.fsum(s * v for s, v in zip(signs, differences, strict=True))) for signs in patterns]
    assert p == np.mean([value >= abs(math.fsum(differences)) - 2e-12 * total for value in sums])
