"""Comparisons of run folders written through the recorder's own writers: figures, refusals, warnings, formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics as plain

import pytest

from safebench.analysis import compare, fairness, runs
from safebench.analysis.scalars import summarise
from safebench.errors import ComparisonRefused, UsageError
from safebench.report import cells, table
from tests.support.synthetic import CONSTANTS, collapsing, healthy, unpaired, write_run

SEEDS = range(5)
STEPS = 100


def groups(root, *names):
    found = runs.find(root)
    return {name: [run for run in found if run.variant == name] for name in names}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five seeds of ppo that collapses and of safe that does not."""
    root = tmp_path_factory.mktemp("results")
    for seed in SEEDS:
        write_run(root, "ppo", seed, collapsing(seed))
        write_run(root, "safe", seed, healthy(seed + 10))
    return root


@pytest.fixture(scope="module")
def comparison(root):
    return compare.compare(groups(root, "ppo", "safe"))


# Reading run folders


def test_a_run_reads_back(root):
    (run,) = [run for run in runs.find(root, "embedded") if run.experiment == "ppo" and run.seed == 3]
    assert (run.status, run.complete, run.model, run.arm, run.planned_steps) == (
        "finished",
        True,
        "embedded",
        "ppo",
        STEPS,
    )
    assert (run.sigma0, run.judge_sigma0, run.vocabulary, run.reply_limit) == (2.0, 0.5, 1000, 23)
    assert run.metrics["step"].tolist() == [float(step) for step in range(STEPS + 1)]
    assert math.isnan(run.metrics["eval/judge"][1]) and run.metrics["controller/phase"][5] == "climbing"
    assert run.column("kl/mean")[7] == collapsing(3)["kl/mean"][7]
    assert run.samples == [] and runs.find(root, "qwen2.5-3b") == [] and runs.find(root / "nowhere") == []


def test_what_cannot_be_read_stays_visible(tmp_path):
    whole = write_run(tmp_path, "ppo", 0, healthy(0, 10), steps=30, state="interrupted")
    for name in ("config.yaml", "manifest.json", "status.json"):
        damaged = write_run(tmp_path, "ppo", 1 + len(list(tmp_path.glob("*/*/*"))), healthy(1, 5))
        (damaged / name).write_text("[1, 2", encoding="utf-8")
    found = runs.find(tmp_path)
    assert [run.status for run in found] == ["interrupted", "damaged", "damaged", "damaged"]
    assert "config.yaml" in found[1].message and "manifest.json" in found[2].message
    (whole / "status.json").unlink()
    assert runs.read(whole).status == "unknown"
    (whole / "metrics.csv").unlink()
    assert runs.read(whole).last_step == 0 and runs.read(whole).watched() == []


def test_a_line_that_was_never_finished_is_left_out(tmp_path):
    folder = write_run(tmp_path, "ppo", 0, healthy(0, 10))
    before = runs.read(folder).cells
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("11,3,0.25")
    (folder / "samples.jsonl").write_text('{"step": 1}\n{"step"', encoding="utf-8")
    assert runs.read(folder).cells == before
    assert runs.read(folder).samples == [{"step": 1}]


# One run's scalars


def test_scalars_by_hand(tmp_path):
    curves = {
        "reward/mean": [None, 1.0, 3.0, 2.0, 2.0],
        "kl/mean": [None, 0.1, 0.3, 0.2, 0.4],
        "eval/reward": [0.0, None, 4.0, None, 3.0],
        "eval/judge": [1.0, None, 1.5, None, 0.75],
        "entropy/mean": [None, 3.0, 2.0, 2.0, 1.5],
        "time/step": [None, 1.0, 1.5, 1.0, 1.25],  # evaluations are timed by themselves
        "time/evaluate": [9.0, None, 0.5, None, 0.25],
        "memory/peak": [10.0, 20.0, 30.0, 30.0, 30.0],
    }
    values = summarise(runs.read(write_run(tmp_path, "ppo", 0, curves))).values
    expected = {
        "train_reward": 2.0, "final_reward": 2.0, "proxy_final": 3.0, "proxy_peak": 4.0, "judge_final": 0.75,
        "judge_peak": 1.5, "proxy_gain": 1.5, "proxy_gain_best": 2.0, "judge_gain": -0.5, "judge_gain_best": 1.0,
        "kl_mean": 0.25, "kl_max": 0.4, "kl_final": 0.4, "entropy_final": 1.5, "max_drawdown": 0.5,
        "time_update": 1.125, "memory_peak": 30.0,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert math.isnan(values["distinct_final"]) and math.isnan(values["recovery"])


def test_final_is_the_last_tenth(tmp_path):
    curves = {"reward/mean": [None, *[0.0] * 36, 1.0, 2.0, 3.0, 6.0]}
    assert summarise(runs.read(write_run(tmp_path, "ppo", 0, curves))).values["final_reward"] == 3.0


def test_recovery_time_is_that_of_the_crashes_that_ended(tmp_path):
    curves = {"reward/mean": [None, *[0.0] * 100, *[-20.0] * 50, *[0.0] * 350]}
    summary = summarise(runs.read(write_run(tmp_path, "ppo", 0, curves)))
    # In sigma_0 = 2 the curve of test_crashes' reward crash by hand: steps 102 to 172.
    assert summary.values["recovery"] == 71.0
    assert (summary.first_crash, summary.count("reward_crash"), summary.count("unrecovered")) == (102, 1, 0)


# The comparison


def test_cells_are_means_over_seeds_and_differences_are_paired(root, comparison):
    row = comparison.row("kl_mean")
    each = {arm: [plain.fmean(collapsing(s)["kl/mean"][1:]) for s in SEEDS] for arm in ("ppo",)}
    each["safe"] = [plain.fmean(healthy(s + 10)["kl/mean"][1:]) for s in SEEDS]
    for arm, values in each.items():
        assert list(row.cells[arm].values.values()) == pytest.approx(values, rel=1e-12)
        assert row.cells[arm].estimate.value == pytest.approx(plain.fmean(values), rel=1e-12)
    differences = [s - p for s, p in zip(each["safe"], each["ppo"], strict=True)]
    found = row.differences["safe"]
    assert found.value == pytest.approx(plain.fmean(differences), rel=1e-12)
    assert found.margin == pytest.approx(2.7764451051977987 * plain.stdev(differences) / math.sqrt(5), rel=1e-9)
    assert found.p == 0.0625


def test_crash_rows(comparison):
    rate = comparison.row("crash_rate")
    assert (rate.cells["ppo"].hit, rate.cells["safe"].hit) == (5, 0)
    assert rate.cells["safe"].estimate.high == pytest.approx(0.5218, abs=1e-4)
    assert (rate.differences["safe"].value, rate.differences["safe"].p) == (-1.0, 0.0625)
    assert math.isnan(rate.differences["safe"].low)
    entropy = comparison.row("crash/entropy_collapse")
    assert entropy.cells["ppo"].counts == (5, 5, 5) and entropy.cells["safe"].counts == (0, 0, 0)
    assert comparison.row("first_crash").cells["safe"].estimate.value == math.inf
    with pytest.raises(KeyError):
        comparison.row("crash/numeric")


def test_primary_metrics_are_three_and_holm_is_over_them(comparison):
    assert [test.scalar.key for test in comparison.tests] == ["judge_final", "judge_matched", "crash_rate"]
    assert [test.adjusted for test in comparison.tests] == [0.1875] * 3
    assert all(test.improvement == 1.0 for test in comparison.tests)
    assert comparison.tests[0].difference.detectable > 0 and comparison.tests[0].bootstrap is None


def test_fairness_diff_is_every_differing_setting(root, comparison):
    chosen = groups(root, "ppo", "safe")
    flat = {arm: fairness.flatten(found[0].settings) for arm, found in chosen.items()}
    keys = set(flat["ppo"]) | set(flat["safe"])
    differing = {key for key in keys if flat["ppo"].get(key) != flat["safe"].get(key)} - set(fairness.NAMES)
    assert {unequal.key for unequal in comparison.fairness} == differing
    assert "reward.kl_coefficient" in differing and "update.steps" not in differing
    loud = {unequal.key: unequal.loud for unequal in comparison.fairness if unequal.loud}
    assert loud == {"reward.normalise": "normalisation"}
    assert [w for w in comparison.warnings if "normalisation" in w and "reward.normalise: ppo False, safe True" in w]


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("rollout.batch=64", "token budget"),
        ("update.epochs=4", "updates"),
        ("update.learning_rate=5e-4", "learning rate"),
        ("advantage.whiten=false", "normalisation"),
    ],
)
def test_what_may_decide_by_itself_is_warned_of_loudly(tmp_path, override, name):
    for seed in range(2):
        write_run(tmp_path, "ppo", seed, healthy(seed, 20))
        write_run(tmp_path, "ppo", seed, healthy(seed, 20), folder="other", overrides=[override])
    found = compare.compare(groups(tmp_path, "ppo", "other"))
    assert [unequal.loud for unequal in found.fairness] == [name]
    assert [warning for warning in found.warnings if f"differ in {name}" in warning]
    assert f"! the arms differ in {name}" in table.render(found, "table", width=100)


def test_equal_arms_have_no_warning(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "ppo", seed, healthy(seed, 20))
        write_run(tmp_path, "ppo", seed, healthy(seed, 20), folder="same", overrides=["recording.samples=3"])
    found = compare.compare(groups(tmp_path, "ppo", "same"))
    assert found.warnings == () and [unequal.key for unequal in found.fairness] == ["recording.samples"]
    for test in found.tests:
        assert (test.difference.value, test.difference.p, test.improvement) == (0.0, 1.0, 0.5)


# Refusals


@pytest.mark.parametrize(
    ("override", "constants", "reason"),
    [
        ("model.random_weights=true", {}, "another model: model.random_weights"),
        ("prompts.max_tokens=12", {}, "another data: prompts.max_tokens"),
        ("reward.noise=0.5", {}, "another reward: reward.noise"),
        ("update.steps=21", {}, "another number of steps: update.steps"),
        ("seed=0", {"hashes": {"model": "cc", "reward": "bb"}}, "another model: the hash"),
        ("seed=0", {"hashes": {"model": "aa", "reward": "dd"}}, "another reward: the hash"),
    ],
)
def test_unmatched_arms_are_refused_unless_forced(tmp_path, override, constants, reason):
    write_run(tmp_path, "ppo", 0, healthy(0, 20))
    changed = {**CONSTANTS, **constants}
    write_run(tmp_path, "safe", 0, healthy(0, 20), overrides=[override], constants=changed)
    chosen = groups(tmp_path, "ppo", "safe")
    with pytest.raises(ComparisonRefused, match=re.escape(reason)) as refusal:
        compare.compare(chosen)
    assert refusal.value.exit_code == 5 and "--force" in refusal.value.hint
    forced = compare.compare(chosen, force=True)
    assert forced.unmatched and all(f"UNMATCHED: {why}" in forced.warnings for why in forced.unmatched)
    for fmt in ("table", "md", "json", "latex"):
        assert "UNMATCHED" in table.render(forced, fmt)


def test_every_reason_is_told_at_once(tmp_path):
    write_run(tmp_path, "ppo", 0, healthy(0, 20))
    write_run(tmp_path, "ppo", 1, healthy(1, 20), state="interrupted")
    write_run(tmp_path, "safe", 0, healthy(0, 20), overrides=["reward.noise=1"])
    write_run(tmp_path, "safe", 2, healthy(0, 20), overrides=["update.epochs=3"])
    with pytest.raises(ComparisonRefused) as refusal:
        compare.compare(groups(tmp_path, "ppo", "safe"))
    for reason in (
        "ppo has no run of seed 2",
        "safe has no run of seed 1",
        "ppo is interrupted in seed 1",
        "the runs of safe differ among themselves in ",
        "another reward: reward.noise is 0.0 in ppo, 1.0 in safe",
    ):
        assert reason in str(refusal.value)


def test_seeds_choose_and_missing_ones_are_named(root):
    chosen = groups(root, "ppo", "safe")
    assert compare.compare(chosen, seeds=[0, 3]).seeds == (0, 3)
    with pytest.raises(ComparisonRefused, match="ppo has no run of seeds 7, 8"):
        compare.compare(chosen, seeds=[0, 7, 8])


def test_two_runs_of_one_seed_cannot_even_be_forced(root, tmp_path):
    chosen = groups(root, "ppo", "safe")
    for force in (False, True):
        with pytest.raises(ComparisonRefused, match="ppo has several runs of seed 0"):
            compare.compare({**chosen, "ppo": [*chosen["ppo"], chosen["ppo"][0]]}, force=force)
    with pytest.raises(ComparisonRefused, match="none has no run"):
        compare.compare({**chosen, "none": []}, force=True)


def test_faults_of_usage(root, comparison):
    with pytest.raises(UsageError, match="nothing to compare"):
        compare.compare({})
    with pytest.raises(UsageError, match="baseline 'sfe'"):
        compare.compare(groups(root, "ppo", "safe"), baseline="sfe")
    with pytest.raises(UsageError, match="unknown format 'html'"):
        table.render(comparison, "html")


def test_the_baseline_comes_first(root, comparison):
    turned = compare.compare(groups(root, "ppo", "safe"), baseline="safe")
    assert turned.arms == ("safe", "ppo")
    ours, theirs = comparison.row("kl_mean").differences["safe"], turned.row("kl_mean").differences["ppo"]
    assert (ours.value, ours.low) == (-theirs.value, -theirs.high)


def test_a_seed_that_one_arm_did_not_measure_makes_no_pair(tmp_path):
    for seed in range(3):
        curves = healthy(seed, 40)
        write_run(tmp_path, "ppo", seed, curves)
        raised = [None if value is None or seed == 1 else value + 1.0 + seed for value in curves["eval/judge"]]
        write_run(tmp_path, "safe", seed, {**curves, "eval/judge": raised})
    found = compare.compare(groups(tmp_path, "ppo", "safe")).row("judge_final")
    assert (found.cells["ppo"].estimate.n, found.cells["safe"].estimate.n) == (3, 2)
    assert (found.differences["safe"].n, found.differences["safe"].p) == (2, 0.5)
    assert found.differences["safe"].value == pytest.approx(2.0, rel=1e-12)  # 1 and 3


def test_a_run_that_broke_off_was_seen_until_its_last_step(tmp_path):
    curves = healthy(0, 40)
    crashed = {**curves, "loss/policy": [None, *[0.1] * 29, math.nan, *[0.1] * 10]}
    write_run(tmp_path, "ppo", 0, {key: values[:21] for key, values in curves.items()}, steps=40, state="interrupted")
    write_run(tmp_path, "ppo", 1, crashed)
    write_run(tmp_path, "ppo", 2, curves)
    found = compare.compare(groups(tmp_path, "ppo"), force=True).row("first_crash")
    assert found.cells["ppo"].estimate.value == 30  # one of the two still seen; one of three would leave two thirds


# Runs that ended badly, and arms that are not paired


def test_an_unstable_run_stays_in_and_counts_as_crashed(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "safe", seed, healthy(seed, 40))
        short = {key: values[:21] for key, values in healthy(seed, 40).items()}
        if seed == 0:
            short["reward/mean"][-1] = math.nan
        write_run(tmp_path, "ppo", seed, short, steps=40, state="unstable")
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    assert found.row("crash_rate").cells["ppo"].hit == 2  # by its row in one, by its status in the other
    assert found.row("crash/numeric").cells["ppo"].counts == (2, 2, 2)
    assert [event.start for s in found.summaries["ppo"] for event in s.events[1.0]] == [20, 20]
    assert found.row("train_reward").cells["ppo"].estimate.n == 2
    assert [
        w for w in found.warnings if w.startswith("ppo ended unstable") and "seed 0 at step 20, seed 1 at step 20" in w
    ]
    assert "ppo seed 0 (unstable): numeric" in table.render(found, "table")


def test_arms_that_sample_elsewhere_are_unpaired(root):
    chosen = groups(root, "ppo", "safe")
    found = compare.compare({"ppo": chosen["ppo"], "trl-ppo": [unpaired(run) for run in chosen["safe"]]})
    assert {row.differences["trl-ppo"].method for row in found.rows if row.kind == "mean"} == {"Welch"}
    assert found.row("kl_mean").differences["trl-ppo"].value < 0 < found.row("judge_final").differences["trl-ppo"].value
    # Five against five that overlap nowhere: 2 of the 252 ways to deal out the labels are as far apart.
    assert [test.difference.p for test in found.tests] == pytest.approx([2 / 252] * 3, rel=1e-12)
    assert all(test.improvement == 1.0 and test.bootstrap is None for test in found.tests)
    rate = found.row("crash_rate").differences["trl-ppo"]
    assert (rate.value, rate.low, rate.high) == pytest.approx((-1.0, -1.0, -0.3855), abs=5e-5)
    assert [w for w in found.warnings if w.startswith("trl-ppo is not paired by seed")]
    assert compare.compare(chosen).unpaired == () and found.unpaired == ("trl-ppo",)


@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_an_unpaired_arm_on_either_side_takes_the_pairs_apart_and_is_marked(root, arm):
    chosen = groups(root, "ppo", "safe")
    chosen[arm] = [unpaired(run) for run in chosen[arm]]
    found = compare.compare(chosen)
    assert found.unpaired == (arm,) and not found.paired("safe")
    heads = {"ppo": "ppo (n=5)", "safe": "safe (n=5)"} | {arm: f"{arm} (n=5, unpaired)"}
    text = table.render(found, "md")
    assert text.startswith(f"| metric | {heads['ppo']} | {heads['safe']} | safe − ppo (unpaired) |")
    assert "safe − ppo (unpaired) = " in text and "n 5 and 5, permutation p 0.0079" in text
    assert "n 5 and 5, Fisher's p 0.0079" in text and "\\[" not in text and "sign-flip" not in text
    for shown in (table.render(found, "table", width=110), table.render(found, "latex")):
        assert "unpaired" in shown and "[−1.00, −0.39]" in shown.replace("{[}", "[")
    lines = list(csv.DictReader(io.StringIO(table.render(found, "csv"))))
    assert {(line["pairing"], bool(line["baseline"])) for line in lines} == {("", False), ("unpaired", True)}
    assert json.loads(table.render(found, "json"))["unpaired"] == [arm]


def test_pairs_are_marked_as_such_for_programs(comparison):
    lines = list(csv.DictReader(io.StringIO(table.render(comparison, "csv"))))
    assert {(line["pairing"], bool(line["baseline"])) for line in lines} == {("", False), ("paired", True)}
    assert json.loads(table.render(comparison, "json"))["unpaired"] == []


def test_constants_that_are_missing_are_named(tmp_path):
    constants = {key: value for key, value in CONSTANTS.items() if key != "judge_sigma0"}
    for name in ("ppo", "safe"):
        write_run(tmp_path, name, 0, healthy(0, 20), constants=constants)
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    words = "not watched, which is not the same as no crash: judge_crash (no judge_sigma0)"
    assert found.warnings[-2:] == (f"ppo: {words}", f"safe: {words}")
    with pytest.raises(KeyError):
        found.row("judge_gain")


def test_what_was_never_measured_is_not_watched_and_never_no_crash(tmp_path):
    for seed in range(2):
        curves = collapsing(seed, 40)
        write_run(tmp_path, "ppo", seed, curves)
        for key in ("entropy/mean", "reply/distinct_2", *(["reply/length"] if seed else [])):
            curves[key] = [None] * 41
        write_run(tmp_path, "safe", seed, curves)
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    entropy, length = found.row("crash/entropy_collapse"), found.row("crash/length_collapse")
    assert entropy.cells["ppo"].counts == (2, 2, 2) and entropy.cells["safe"].counts == ()
    assert all(math.isnan(value) for value in entropy.cells["safe"].values.values())
    assert math.isnan(entropy.differences["safe"].value)
    assert length.cells["safe"].estimate.n == 1 and math.isnan(length.cells["safe"].values[1])
    text = table.render(found, "table", width=200)
    assert re.search(r"entropy_collapse .* 2 / 2 / 2 in 2 +not watched", text)
    assert re.search(r"length_collapse .* in 1 of 1 ", text)
    assert [w for w in found.warnings if w.startswith("safe: ")] == [
        "safe: not watched, which is not the same as no crash: entropy_collapse (no entropy/mean), "
        "entropy_explosion (no entropy/mean), length_collapse (no reply/length) in seed 1, "
        "length_blowup (no reply/length) in seed 1",
        "safe: watched in part only: degenerate (no reply/distinct_2)",
    ]
    assert [w for w in found.warnings if "crash rates" in w and "entropy_collapse" in w]
    for line in csv.DictReader(io.StringIO(table.render(found, "csv"))):
        if (line["metric"], line["arm"], line["baseline"]) == ("crash/entropy_collapse", "safe", ""):
            assert {line[key] for key in ("runs_hit", "value", "episodes_at_1")} == {""} and line["n"] == "0"
    content = json.loads(table.render(found, "json"))
    (kind,) = [metric for metric in content["metrics"] if metric["key"] == "crash/entropy_collapse"]
    assert (kind["cells"]["ppo"]["runs_hit"], kind["cells"]["safe"]["runs_hit"]) == (2, None)
    assert kind["cells"]["safe"]["by_seed"] == {"0": None, "1": None}
    blind = content["runs"]["safe"][0]["unmeasured"]
    assert blind == ["entropy_collapse", "entropy_explosion"]


def test_an_arm_without_events_says_that_it_was_not_watched_for_all(tmp_path):
    curves = healthy(0, 40)
    write_run(tmp_path, "safe", 0, curves)
    assert "safe: no crash in 1 runs" in table.render(compare.compare(groups(tmp_path, "safe")), "table")
    write_run(tmp_path, "ppo", 0, {**curves, "eval/judge": [None] * 41})
    text = table.render(compare.compare(groups(tmp_path, "ppo")), "table")
    assert "ppo: no crash of the kinds watched in 1 runs" in text


def test_holm_counts_the_primary_metrics_that_could_not_be_measured(tmp_path):
    for seed in range(5):
        for name, curves in (("ppo", collapsing(seed, 40)), ("safe", healthy(seed, 40))):
            del curves["eval/judge"]
            write_run(tmp_path, name, seed, curves)
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    assert [(test.scalar.key, test.adjusted) for test in found.tests] == [("crash_rate", 0.1875)]


def test_mixed_hardware_and_commits_are_told(tmp_path):
    other = {**CONSTANTS, "hardware": {"cpu": "Another"}, "git": {"commit": "fedcba987654", "dirty": True}}
    write_run(tmp_path, "ppo", 0, healthy(0, 20))
    write_run(tmp_path, "safe", 0, healthy(0, 20), constants=other)
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    assert [w for w in found.warnings if "different hardware" in w] and [w for w in found.warnings if "commits" in w]
    assert "commit 012345678, fedcba987 (changed)" in found.footers


# Words and formats


def test_below_six_seeds_nothing_is_called_significant(root, comparison):
    for fmt in table.FORMATS:
        assert "significant" not in table.render(comparison, fmt).lower()
    text = table.render(comparison, "table")
    assert "cannot give a p below 0.0625" in text.replace("\n    ", " ") and "detectable" in text


def test_from_six_seeds_the_verdict_is_told_and_from_eight_bca(tmp_path):
    for seed in range(8):
        write_run(tmp_path, "ppo", seed, collapsing(seed % 4, 40))
        write_run(tmp_path, "safe", seed, healthy(seed + 10, 40))
    six = compare.compare(groups(tmp_path, "ppo", "safe"), seeds=range(6))
    assert [test.difference.p for test in six.tests] == [0.03125] * 3
    assert "Significant at 5 % after Holm: none" in table.render(six, "md")  # 3 x 0.03125
    eight = compare.compare(groups(tmp_path, "ppo", "safe"))
    assert [test.adjusted for test in eight.tests] == [3 / 128] * 3
    bca = eight.tests[0].bootstrap
    assert bca is not None and bca.low < eight.tests[0].difference.value < bca.high
    assert "held-out judge reward, end (safe)" in table.render(eight, "md")


def test_the_terminal_table_fits_and_has_every_row(comparison):
    text = table.render(comparison, "table", width=100, color=False)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and "\x1b" not in text
    assert "\x1b[" in table.render(comparison, "table", width=100, color=True)
    head = next(line for line in lines if "metric" in line)
    assert re.search(r"metric +ppo \(n=5\) +safe \(n=5\) +safe − ppo", head)
    for row in comparison.rows:
        unit = f"{row.scalar.label} [{row.scalar.unit}]"
        (line,) = [line for line in lines if unit in line]
        assert ("↑" in line, "↓" in line) == (row.scalar.direction == "up", row.scalar.direction == "down")
        assert line.lstrip().startswith("* ") == row.scalar.primary
    assert "crash specification 2" in text and "seeds 0, 1, 2, 3, 4; steps 100" in text


def test_many_arms_are_split_over_tables_that_fit(root):
    chosen = groups(root, "ppo", "safe")
    found = compare.compare({"ppo": chosen["ppo"], **{f"arm{n}": chosen["safe"] for n in range(3)}})
    narrow, wide = (table.render(found, "table", width=width) for width in (100, 230))
    assert (narrow.count("ppo (n=5)"), wide.count("ppo (n=5)")) == (3, 1)
    assert max(len(line) for line in narrow.splitlines()) <= 100
    assert found.tests[0].adjusted == 9 * 0.0625  # the family is three metrics times three arms


def test_csv_and_json_hold_the_figures(comparison):
    rows = list(csv.DictReader(io.StringIO(table.render(comparison, "csv"))))
    (cell,) = [r for r in rows if r["metric"] == "kl_mean" and r["arm"] == "safe" and not r["baseline"]]
    assert float(cell["value"]) == comparison.row("kl_mean").cells["safe"].estimate.value
    (difference,) = [r for r in rows if r["metric"] == "judge_final" and r["baseline"] == "ppo"]
    assert (float(difference["p"]), float(difference["holm_p"])) == (0.0625, 0.1875)
    (counted,) = [r for r in rows if r["metric"] == "crash/length_collapse" and r["arm"] == "ppo"]
    assert [counted[f"episodes_at_{scale}"] for scale in ("0.5", "1", "2")] == ["5", "5", "0"]
    content = json.loads(table.render(comparison, "json"))
    metric = next(metric for metric in content["metrics"] if metric["key"] == "judge_final")
    assert metric["cells"]["ppo"]["by_seed"]["2"] == comparison.row("judge_final").cells["ppo"].values[2]
    assert content["crash_specification"]["version"] == 2
    assert content["runs"]["ppo"][0]["events"]["1"][0]["kind"] == "kl_spike"
    assert content["runs"]["ppo"][0]["folder"] == "embedded/ppo/seed-0"


def test_markdown_and_latex_are_whole(comparison):
    lines = [line for line in table.render(comparison, "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(comparison.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    latex = [line for line in table.render(comparison, "latex").splitlines() if not line.startswith("%")]
    assert latex[0] == r"\begin{tabular}{lrrr}" and latex[-1] == r"\end{tabular}"
    body = latex[latex.index(r"\midrule") + 1 : latex.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {3}
    assert all(ord(character) < 128 for line in latex for character in line)
    assert sum(r"\textbf" in line for line in body) == 3


def test_a_single_arm_has_no_difference(root):
    found = compare.compare(groups(root, "ppo"))
    assert found.tests == () and all(not row.differences for row in found.rows)
    for fmt in table.FORMATS:
        assert table.render(found, fmt)


def test_seeds_of_one_arm_have_the_same_files(tmp_path):
    for arm in ("ppo", "safe"):
        for seed in range(3):
            folder = write_run(tmp_path, arm, seed, healthy(seed))
            if seed == 2:
                file = folder / "manifest.json"
                made = json.loads(file.read_text(encoding="utf-8"))
                made["hashes"] = {**made["hashes"], "reward": "dd"}
                file.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(ComparisonRefused, match="another reward in some seeds of ppo"):
        compare.compare(groups(tmp_path, "ppo", "safe"))
    compare.compare(groups(tmp_path, "ppo", "safe"), seeds=[0, 1])


def test_a_metric_with_too_few_pairs_holds_up_no_other_verdict(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "ppo", seed, collapsing(seed, 40))
        curves = healthy(seed + 10, 40)
        if seed > 3:  # two of six never get to the level that the others reach
            curves["eval/kl"] = [value and value / 10 for value in curves["eval/kl"]]
        write_run(tmp_path, "safe", seed, curves)
    found = compare.compare(groups(tmp_path, "ppo", "safe"))
    matched = next(test for test in found.tests if test.scalar.key == "judge_matched")
    assert matched.difference.n == 4
    assert any("not reached by safe seed 4, 5" in footer for footer in found.footers)
    verdict = cells.tests(found)[-1]
    assert verdict.startswith("Significant at 5 % after Holm: ")
    assert "Too few for a verdict: held-out judge reward at matched KL (safe, n 4)." in verdict
