"""How the result moves with each choice: the chosen value is the comparison's own, and each alternative acts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from safebench.analysis import compare, runs, scalars, statistics
from safebench.analysis.sensitivity import sensitivity
from safebench.errors import UsageError
from safebench.report.small_tables import sensitivity_to_markdown
from tests.support.synthetic import collapsing, healthy, unpaired, write_run
from tools.marks import insert
from tools.sensitivity_page import MARK, from_runs

ROOT = Path(__file__).parents[2]
ARMS = ("ppo", "safe")
MATCHED = "held-out judge reward at matched KL"


def grouped(root):
    found = runs.find(root)
    return {name: [run for run in found if run.variant == name] for name in ARMS}


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Five seeds: ppo collapses at the end, safe spikes in its KL and dips for eleven steps."""
    root = tmp_path_factory.mktemp("results")
    for seed in range(5):
        write_run(root, "ppo", seed, collapsing(seed))
        curves = healthy(seed + 10)
        curves["kl/mean"][40 + seed] = 0.7
        curves["reply/distinct"][30:41] = [0.1] * 11
        write_run(root, "safe", seed, curves)
    return grouped(root)


@pytest.fixture(scope="module")
def variants(groups):
    return sensitivity(groups)


def one(variants, choice, value, metric=""):
    (found,) = [v for v in variants if (v.choice, v.value, v.metric) == (choice, value, metric)]
    return found


def test_every_choice_has_one_chosen_value_and_alternatives(variants):
    for key in {(variant.choice, variant.metric) for variant in variants}:
        chosen = [variant.chosen for variant in variants if (variant.choice, variant.metric) == key]
        assert chosen.count(True) == 1 and len(chosen) >= 2
    assert not [variant for variant in variants if variant.chosen and variant.flips]
    assert {variant.choice for variant in variants} == {
        "severity", "smoothing span", "length of windows", "windows in short runs", "history of kl_spike",
        "factor of kl_spike", "floor of kl_spike", "KL target", "judge points", "judge figure", "final share",
        "window of volatility", "normaliser", "pairing", "test", "correction",
    }  # fmt: skip


def test_the_chosen_values_are_the_comparisons(groups, variants):
    found = compare.compare(groups)
    hits = {
        row.scalar.label.removesuffix(" (alarm)"): (row.cells["ppo"].hit, row.cells["safe"].hit)
        for row in found.rows
        if row.kind in ("count", "share")
    }
    for variant in (variant for variant in variants if variant.chosen and variant.hits is not None):
        assert variant.hits["crashed"] == hits["crash rate"]
        assert {kind: hits[kind] for kind in variant.hits if kind != "crashed" and kind in hits} == {
            kind: count for kind, count in variant.hits.items() if kind in hits
        }
    labels = {
        ("judge figure", "end", "held-out judge reward"): "judge_final",
        ("judge figure", "peak", "held-out judge reward"): "judge_peak",
        ("final share", "10%", "final reward"): "final_reward",
        ("final share", "10%", "KL, final"): "kl_final",
        ("normaliser", "σ₀", "reward volatility"): "volatility",
        ("window of volatility", "50 steps", "reward volatility"): "volatility",
        ("normaliser", "σ₀", "max drawdown"): "max_drawdown",
        ("pairing", "paired by seed", MATCHED): "judge_matched",
        ("test", "t-interval, sign-flip p", "held-out judge reward, end"): "judge_final",
    }
    for key, scalar in labels.items():
        assert one(variants, *key).difference == found.row(scalar).differences["safe"]
    for test in found.tests:
        label = {"judge_final": "held-out judge reward, end", "judge_matched": MATCHED, "crash_rate": "crash rate"}
        assert one(variants, "correction", "Holm", label[test.scalar.key]).difference.p == test.adjusted


def test_each_alternative_does_what_it_says(groups, variants):
    # The dip of eleven steps counts with windows of 20 -> 4 or 2, of 40 -> 8, but not with all 20.
    assert one(variants, "length of windows", "double").hits["degenerate"] == (5, 5)
    assert one(variants, "windows in short runs", "shrunk").hits["degenerate"] == (5, 5)
    assert one(variants, "windows in short runs", "not shrunk").hits["degenerate"] == (5, 0)
    # The spike of 0.7 nats: five medians of some 0.2 are more; half of that is less.
    spikes = {v.value: v.hits["kl_spike"][1] for v in variants if v.choice == "factor of kl_spike"}
    assert (spikes["2.5"], spikes["5"], spikes["10"]) == (5, 0, 0)
    # The runs end at 3 nats: beyond 3 x 0.6, and the KL that goes there.
    runaway = {v.value: v.hits["kl_runaway"][0] for v in variants if v.choice == "KL target"}
    assert runaway["0.15 nats"] >= runaway["0.3 nats"] >= runaway["0.6 nats"] and runaway["0.3 nats"] == 5
    severe = {v.value: v.hits for v in variants if v.choice == "severity"}
    assert severe["0.5×"]["kl_spike"][1] == 5 and severe["2×"]["length_collapse"] == (0, 0)
    first, second = ([run.column("eval/judge")[-1] for run in groups[arm]] for arm in ARMS)
    label = "held-out judge reward, end"
    assert one(variants, "test", "t-interval, t-test's p", label).difference.p == pytest.approx(
        stats.ttest_rel(second, first).pvalue, rel=1e-9
    )
    welch = one(variants, "pairing", "unpaired (Welch)", label).difference
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    assert (welch.low, welch.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert welch.p == statistics.permutation(second, first)
    drawn = one(variants, "test", "percentile bootstrap, sign-flip p", label).difference
    plain = one(variants, "pairing", "paired by seed", label).difference
    assert plain.low < drawn.low < plain.value < drawn.high < plain.high
    assert one(variants, "correction", "Bonferroni", label).difference.p == pytest.approx(3 * plain.p)
    assert one(variants, "correction", "none", label).difference.p == plain.p
    for metric, factor in (("reward volatility", 2.0), ("max drawdown", 2.0)):  # sigma_0 is 2
        ours, none = (one(variants, "normaliser", value, metric).difference.value for value in ("σ₀", "none"))
        assert none == pytest.approx(factor * ours, rel=1e-12)
    drops = []
    for seed in range(5):
        ranges = [np.ptp(groups[arm][seed].column("reward/mean")[1:]) for arm in ARMS]
        ours, theirs = (scalars.max_drawdown(groups[arm][seed].column("reward/mean")[1:], 1.0) for arm in ARMS)
        drops.append(theirs / ranges[1] - ours / ranges[0])
    ranged = one(variants, "normaliser", "each run's own range", "max drawdown")
    assert ranged.difference.value == pytest.approx(np.mean(drops), rel=1e-12)
    means = [
        sum(b.column("eval/judge")[20::20]) / 5 - sum(a.column("eval/judge")[20::20]) / 5
        for a, b in zip(groups["ppo"], groups["safe"], strict=True)
    ]
    found = one(variants, "judge figure", "mean of all points after the first", "held-out judge reward")
    assert found.difference.value == pytest.approx(sum(means) / 5, rel=1e-12)


def test_what_turns_over_is_said(variants):
    flips = one(variants, "factor of kl_spike", "2.5").flips
    assert "kl_spike: more in ppo becomes equal" in flips
    assert "any: more in ppo becomes equal" not in one(variants, "KL target", "0.15 nats").flips
    shrunk = one(variants, "windows in short runs", "not shrunk").flips
    assert "degenerate: equal becomes more in ppo" in shrunk
    p = one(variants, "pairing", "unpaired (Welch)", "held-out judge reward, end").flips
    assert p == ("p is below 0.05",)


def test_a_sign_that_turns_over_is_said(tmp_path):
    for seed in range(3):
        better = {"eval/judge": [0.0, 1.0, 5.0 + seed, 1.0], "reward/mean": [None, 0.0, 1.0, 2.0 + seed]}
        worse = {"eval/judge": [0.0, 1.0, 2.0, 3.0 + seed], "reward/mean": [None, 0.0, 1.0, 2.0]}
        write_run(tmp_path, "ppo", seed, better)
        write_run(tmp_path, "safe", seed, worse)
    found = sensitivity(grouped(tmp_path))
    peak = one(found, "judge figure", "peak", "held-out judge reward")
    assert "the sign of the difference" in peak.flips
    text = sensitivity_to_markdown(found, ARMS)
    assert "Choices that change the sign of a difference: judge figure, peak (held-out judge reward);" in text
    assert "- judge figure, peak (held-out judge reward): the sign of the difference" in text
    assert "Choices that change which arm has more crashed runs: none." in text
    # What no run measured has no figure, and nothing turns over by its absence.
    kl = one(found, "pairing", "paired by seed", MATCHED).difference
    assert kl.n == 0 and math.isnan(kl.value)
    assert not one(found, "pairing", "unpaired (Welch)", MATCHED).flips


def test_arms_that_sample_elsewhere_are_unpaired_as_in_the_comparison(groups):
    chosen = {"ppo": groups["ppo"][:4], "safe": [unpaired(run) for run in groups["safe"]]}
    found, table = sensitivity(chosen), compare.compare(chosen, force=True)
    assert not [variant for variant in found if variant.value == "paired by seed"]
    assert found[0].runs == (4, 5), "no run is left out for want of a pair"
    for metric, key in (("held-out judge reward, end", "judge_final"), (MATCHED, "judge_matched")):
        welch = one(found, "pairing", "unpaired (Welch)", metric)
        assert welch.chosen and welch.difference == table.row(key).differences["safe"]
        tests = [variant for variant in found if (variant.choice, variant.metric) == ("test", metric)]
        assert [variant.chosen for variant in tests] == [True, False]
        assert tests[0].difference == welch.difference
        values = [[cell for cell in table.row(key).cells[arm].values.values()] for arm in ("safe", "ppo")]
        assert tests[1].difference.p == pytest.approx(stats.ttest_ind(*values, equal_var=False).pvalue, rel=1e-9)
    rate = one(found, "correction", "none", "crash rate").difference
    assert rate == table.row("crash_rate").differences["safe"] and rate.low < rate.value < rate.high


def test_what_was_not_measured_has_no_p_value_under_any_correction(tmp_path):
    for seed in range(2):
        for arm in ARMS:
            curves = healthy(seed, 20)
            del curves["eval/judge"]
            write_run(tmp_path, arm, seed, curves)
    found = sensitivity(grouped(tmp_path))
    assert math.isnan(one(found, "correction", "none", MATCHED).difference.p)
    for value in ("Holm", "none", "Bonferroni"):
        assert math.isnan(one(found, "correction", value, "held-out judge reward, end").difference.p)
    assert one(found, "correction", "Holm", "crash rate").difference.p == 1.0  # of three declared, not of one made


def test_markdown_is_whole(variants):
    text = sensitivity_to_markdown(variants, ARMS)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(variants) + 4
    assert sum("**" in line for line in lines) == sum(variant.chosen for variant in variants)
    assert "nan" not in text and "significant" not in text
    assert "All that turns over: nothing." in sensitivity_to_markdown([v for v in variants if not v.flips], ARMS)


def test_the_page_has_the_tables_of_the_reference():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    remedy = "python -m tools.sensitivity_page docs/evidence.md results/reference"
    assert insert(page, MARK, from_runs(ROOT / "results" / "reference")) == page, remedy


def test_two_arms_with_common_seeds_are_needed(groups):
    with pytest.raises(UsageError, match="not 1"):
        sensitivity({"ppo": groups["ppo"]})
    with pytest.raises(UsageError, match="no seed in common"):
        sensitivity({"ppo": groups["ppo"][:2], "safe": groups["safe"][3:]})
    assert sensitivity({"ppo": groups["ppo"][:3], "safe": groups["safe"][1:]})[0].runs == (2, 2)
