"""The ledger: what is asked of whom, what is missing and which command makes it, what a reader sees."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from safebench.analysis.claims import CLAIMS, MATCHED_TO, ask, ledger, matched, needed
from safebench.analysis.claims.ask import command, filled, lacking, seeds_text
from safebench.analysis.scalars import summarise
from safebench.errors import UsageError
from safebench.report import ledger as report
from tests.support.claims_runs import folder, jump, plain, with_settings
from tests.support.synthetic import unpaired

OPPONENT = (1, 2, 3, 4, 7, 10)
BETTER = {"kl/mean": lambda step, cell: cell and cell / 2, "eval/judge": lambda step, cell: cell and cell + 0.5}
WORSE = {
    "kl/mean": lambda step, cell: cell and cell + 1.5 * (step == 30),  # a spike
    "reply/distinct": lambda step, cell: cell and (0.05 if step > 20 else cell),
    "time/step": lambda step, cell: cell and 2 * cell,
}


def copies(run, seeds, **fields):
    return [replace(run, seed=seed, **fields) for seed in seeds]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One run of each arm; its copies under other seeds are the others. SAFE's is better in every respect."""
    root = tmp_path_factory.mktemp("results")
    wavy = jump(11)
    return {
        "ppo": folder(root, "ppo", 0, arm="ppo", reward=lambda step: wavy(step) + 0.5 * (step % 2), changes=WORSE),
        "safe": folder(root, "safe", 0, reward=lambda step: jump(1)(step) + 0.7, changes=BETTER),
    }


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Summarise each file once for all its copies: what a summary says does not depend on the seed."""
    made = {}

    def once(run, spec):
        key = run.folder, run.planned_steps, run.status
        made.setdefault(key, summarise(run, spec))
        return replace(made[key], run=run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "summarise", once)
        yield


def study(one, seeds=range(6)):
    """Every group, SAFE's arms good and the others bad."""
    ppo, safe = one["ppo"], one["safe"]
    long = with_settings(safe, {"update.steps": 160})
    collapsing = replace(with_settings(safe, {"penalty.gate": False}), folder=ppo.folder)
    return {
        **{name: copies(ppo, seeds) for name in ("ppo", "ppo-matched", "ppo-official")},
        **{name: copies(safe, seeds) for name in ("safe", "safe-official")},
        "safe-no-gate": copies(collapsing, seeds),
        "safe-no-pid": copies(replace(with_settings(safe, {"penalty.pid.enabled": False}), folder=ppo.folder), seeds),
        **{name: copies(long, seeds) for name in ("safe@long", "safe-official@long")},
    }


def swapped(groups):
    return {**groups, "ppo": groups["safe"], "ppo-matched": groups["safe"], "safe": groups["ppo"]}


@pytest.fixture(scope="module")
def whole(one):
    return ledger(study(one, range(7)))


# What is asked of whom


def test_what_is_asked_of_whom(whole):
    questions = {claim.number: [entry.question for entry in entries] for claim, entries in whole.by_claim}
    pairs = ["safe vs ppo", "safe vs ppo-matched", "safe-official vs ppo", "safe-official vs ppo-official"]
    assert {number: questions[number] for number in OPPONENT} == dict.fromkeys(OPPONENT, pairs)
    assert questions[5] == ["safe vs safe-no-gate", "safe-official"]
    assert questions[6] == ["safe vs safe-no-pid", "safe-official"]
    assert questions[8] == questions[9] == ["safe", "safe-official"]
    assert whole.entry(1, "safe", "ppo-matched").ours is whole.entry(1, "safe", "ppo-matched").parts[0].estimate
    with pytest.raises(KeyError):
        whole.entry(1, "safe", "grpo")


def test_the_groups_a_ledger_can_use():
    assert needed() == (
        *("safe", "ppo", "ppo-matched", "safe-official", "ppo-official", "safe-no-gate", "safe-no-pid"),
        *("safe@long", "safe-official@long", "ppo@long", "ppo-matched@long", "ppo-official@long"),
    )
    assert needed({"safe-predictive": ["ppo"]}) == ("safe-predictive", "ppo", "safe-predictive@long", "ppo@long")


def test_whom_an_arm_is_held_against():
    assert matched(["safe-official", "safe-published"]) == {
        "safe-official": ("ppo", "ppo-official"),
        "safe-published": ("ppo", "ppo-matched"),
    }
    assert matched([]) is MATCHED_TO


def test_whole_groups_give_whole_answers(whole):
    for number in (*OPPONENT, 8, 9):
        for entry in whole.by_claim[number - 1][1]:
            assert (number, entry.verdict, entry.missing) == (number, "holds", ())
    assert whole.seeds == tuple(range(7)) and whole.entry(2, "safe", "ppo").seeds == tuple(range(7))


def test_swapped_arms_mirror_what_is_directional(one):
    groups = study(one)
    there, back = ledger(groups), ledger(swapped(groups))
    for number in OPPONENT:
        assert there.entry(number, "safe", "ppo").verdict == "holds"
        assert back.entry(number, "safe", "ppo").verdict == "fails"


@pytest.mark.parametrize(("seeds", "verdict"), [(range(5), "not shown"), (range(6), "holds")])
def test_a_verdict_takes_six_pairs(one, seeds, verdict):
    found = ledger(study(one, seeds))
    for number in OPPONENT:
        entry = found.entry(number, "safe", "ppo")
        assert entry.verdict == verdict and entry.parts and entry.parts[0].estimate.n == len(seeds)
        assert entry.command == "safebench run safe ppo --seeds 0-5"
        assert entry.missing == (() if verdict == "holds" else ("safe: seed 5", "ppo: seed 5"))
    assert found.entry(9, "safe").verdict == "holds"  # a check, no statistics


# What is missing


def test_nothing_at_all_is_nothing_shown():
    found = ledger({})
    assert {entry.verdict for entry in found.entries} == {"not shown"} and found.seeds == ()
    assert found.entry(5, "safe", "safe-no-gate").command == "safebench run safe safe-no-gate --seeds 0-5"
    assert found.entry(6, "safe", "safe-no-pid").command == "safebench run safe safe-no-pid --seeds 0-6"
    assert found.entry(8, "safe").command == (
        "safebench run safe --seeds 0-5 && safebench run safe --preset long --seeds 0-5"
    )
    assert found.entry(9, "safe-official").command == "safebench run safe-official --seeds 0-5"
    assert all(entry.missing and entry.parts == () for entry in found.entries)


def test_only_what_is_missing_is_asked_for(one):
    groups = study(one)
    del groups["safe-no-gate"], groups["safe@long"], groups["ppo-matched"]
    found = ledger(groups)
    gate, long = found.entry(5, "safe", "safe-no-gate"), found.entry(8, "safe")
    assert (gate.command, gate.missing) == ("safebench run safe-no-gate --seeds 0-5", ("safe-no-gate: no run",))
    assert (long.command, long.why) == ("safebench run safe --preset long --seeds 0-5", "no runs of safe@long")
    assert found.entry(1, "safe", "ppo-matched").command == "safebench run ppo-matched --seeds 0-5"
    assert found.entry(1, "safe", "ppo-matched").seeds == ()
    assert found.entry(1, "safe", "ppo").verdict == "holds"


def test_a_seed_that_one_arm_lacks_keeps_the_verdict_open(one):
    groups = study(one) | {"safe": copies(one["safe"], range(7))}
    entry = ledger(groups).entry(1, "safe", "ppo")
    assert (entry.verdict, entry.missing) == ("not shown", ("ppo: seed 6",))
    assert entry.why.startswith("runs are missing (ppo: seed 6); ") and entry.parts[0].estimate.n == 6
    assert entry.command == "safebench run ppo --seeds 0-6"
    assert ledger(groups, seeds=range(6)).entry(1, "safe", "ppo").verdict == "holds"
    assert ledger(groups, seeds=range(8)).entry(9, "safe").missing == ("safe: seed 7",)


def test_a_run_that_is_not_complete_is_missing_and_an_unstable_one_is_not(one):
    groups = study(one)
    groups["ppo"][2] = replace(groups["ppo"][2], status="interrupted")
    assert ledger(groups).entry(1, "safe", "ppo").missing == ("ppo: seed 2",)
    groups["ppo"][2] = replace(groups["ppo"][2], status="unstable")
    found = ledger(groups)
    assert found.entry(1, "safe", "ppo").verdict == "holds" and found.entry(1, "safe", "ppo").ours.n == 6
    assert "ppo ended unstable in seed 2, and stays in, as far as it went." in found.notes
    groups["safe"][1] = replace(groups["safe"][1], status="unstable")
    found = ledger(groups)
    assert found.entry(1, "safe", "ppo").verdict == "not shown"  # it would speak for a run that broke off
    assert found.entry(2, "safe", "ppo").parts[0].means[0] == pytest.approx(1 / 6)  # and it has crashed
    assert found.entry(8, "safe").verdict == "holds"


def test_no_experiment_leaves_parts_out_of_the_released_arm(one):
    entry = ledger(study(one)).entry(5, "safe-official")
    assert entry.verdict == "not shown" and entry.missing == ("no experiment leaves this out of safe-official",)
    assert report.told(entry)
    assert entry.why == "its penalty was not seen inert in every run, and no experiment leaves this part out of it"


def test_an_inert_penalty_settles_the_released_arms_ablations(one, tmp_path):
    flat = {"grad/penalty": lambda step, cell: None if cell is None else 0.0}
    inert = folder(tmp_path, "safe-official", 0, steps=100, changes=flat)
    found = ledger({"safe-official": [inert]})
    for number in (5, 6):
        entry = found.entry(number, "safe-official")
        assert (entry.verdict, entry.missing, entry.seeds) == ("fails", (), (0,))
        assert entry.command == "safebench run safe-official --seeds 0"


def test_a_counterexample_needs_no_more_runs(one):
    bad = replace(with_settings(one["safe"], {"update.steps": 160}), folder=one["ppo"].folder)
    entry = ledger({"safe": copies(one["safe"], [0]), "safe@long": copies(bad, [0])}).entry(8, "safe")
    assert (entry.verdict, entry.missing) == ("fails", ())
    assert entry.command == "safebench run safe --seeds 0 && safebench run safe --preset long --seeds 0"


# What cannot be compared


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("reward.name", "other", "another reward"), ("update.steps", 50, "another number of steps")],
)
def test_unequal_ground_gives_no_verdict(one, key, value, said):
    groups = study(one)
    groups["ppo"] = [with_settings(run, {key: value}) for run in groups["ppo"]]
    entry = ledger(groups).entry(1, "safe", "ppo")
    assert entry.verdict == "not shown" and entry.why.startswith("not comparable") and said in entry.why
    assert entry.parts  # the figure is still shown


def test_an_ablation_that_changes_more_is_not_one(one):
    groups = study(one)
    groups["safe-no-gate"] = [with_settings(run, {"loss.clip": 0.1}) for run in groups["safe-no-gate"]]
    entry = ledger(groups).entry(5, "safe", "safe-no-gate")
    assert entry.verdict == "not shown" and "more than the part left out: loss.clip" in entry.why


def test_unpaired_arms_give_no_verdict(one):
    groups = study(one)
    groups["ppo"] = [unpaired(run) for run in groups["ppo"]]
    found = ledger(groups)
    for number in OPPONENT:
        entry = found.entry(number, "safe", "ppo")
        assert "not paired by seed" in entry.why and entry.verdict == "not shown"
        assert entry.parts == (), "a figure pair by pair of runs that are no pairs"
        assert found.entry(number, "safe", "ppo-matched").parts


def test_several_runs_of_one_seed_are_refused(one):
    with pytest.raises(UsageError, match="several runs of one seed"):
        ledger({"ppo": copies(one["ppo"], [0, 0])})
    ledger({"ppo": copies(one["ppo"], [0, 1, 1])}, seeds=[0])


def test_what_may_decide_by_itself_is_noted(whole):
    assert "safe and ppo also differ in normalisation, which may decide by itself." in whole.notes
    tested = [e for e in whole.entries if e.verdict != "not shown" and e.claim.number not in (8, 9)]
    assert f"Verdicts that rest on a test: {len(tested)}, each at 5 %" in whole.notes[1]


# Commands


def test_seeds_and_commands_as_the_command_line_takes_them():
    assert [seeds_text(seeds) for seeds in ([3], [4, 0, 1, 2], [0, 2, 7, 8, 9], [])] == ["3", "0-2,4", "0,2,7-9", ""]
    assert (filled([7, 1], 4), filled([0, 1], 1), filled([], 2)) == ([0, 1, 2, 7], [0, 1], [0, 1])
    assert lacking(["a", "b", "c"], {"a": [0, 1], "b": [1], "c": []}, [0, 1]) == ["b: seed 0", "c: no run"]
    assert command(["safe", "safe@long"], [0, 1], "--model x") == (
        "safebench run safe --seeds 0-1 --model x && safebench run safe --preset long --seeds 0-1 --model x"
    )


def test_a_preset_is_in_the_commands_and_long_runs_are_of_none(one):
    found = ledger(study(one), preset="stress-noise")
    entry = found.entry(8, "safe")
    assert (entry.verdict, entry.why) == ("not shown", ask.OTHER_PRESET) and report.told(entry)
    assert all("--preset stress-noise" in e.command for e in found.entries if e.claim.number != 8)


def test_options_follow_every_command(one):
    found = ledger(study(one), options="--model qwen2.5-3b")
    assert all(entry.command.endswith(" --model qwen2.5-3b") for entry in found.entries)


# What a reader sees


@pytest.fixture(scope="module")
def partial(one):
    groups = study(one, range(5))
    del groups["ppo-matched"], groups["ppo-official"], groups["safe-no-gate"], groups["safe@long"]
    return ledger(groups)


@pytest.mark.parametrize("width", [100, 140])
def test_the_table_fits_and_says_everything(whole, partial, width):
    for found in (whole, partial):
        text = report.render(found, width=width, color=False)
        assert max(map(len, text.splitlines())) <= width and text.endswith("\n") and "nan" not in text
        said = plain(text)
        for claim in CLAIMS:
            assert re.search(rf"^{claim.number} {re.escape(claim.title)}", text, re.MULTILINE)
        assert "paper: +5.15 % (0.725 against 0.689)" in text and text.count("paper: none obtained") == 9
        for entry in found.entries:
            assert entry.question in said and plain(entry.command) in said
            assert not report.told(entry) or plain(entry.why) in said
        assert all(note in said for note in map(plain, found.notes))


def test_the_word_significant_is_never_used(partial, whole):
    for found in (partial, whole):
        assert not any("significant" in report.render(found, fmt).lower() for fmt in report.FORMATS)


def test_entries_that_only_lack_runs_are_one_line(partial):
    text = plain(report.render(partial, width=100, color=False))
    assert "no runs yet: safe vs ppo-matched, safe-official vs ppo-official" in text
    assert "1 safe vs ppo-matched: not shown" not in text
    assert "safebench run safe ppo-matched --seeds 0-5 (1, 2, 3, 4, 7, 10 of safe vs ppo-matched)" in text


def test_figures_of_a_row(whole):
    rows = {line.label: line.cells for line in report.lines(whole.entry(3, "safe", "ppo"))}
    assert list(rows) == [
        "safe vs ppo",
        "KL, max [nats/token] ↓",
        "KL spikes [episodes] ↓",
        "judge reward, end [judge's σ₀] ↑ > −0.1",
    ]
    assert rows["safe vs ppo"] == ("", "", "", "", "holds") and rows["KL spikes [episodes] ↓"][3] == "7"
    (crashes,) = report.lines(whole.entry(2, "safe", "ppo"))
    assert crashes.cells == ("0/7", "7/7", "−1.000", "7", "holds")
    (long,) = report.lines(whole.entry(8, "safe"))
    assert long.cells == ("0/7", "", "[0.00, 0.41]", "7", "holds")


def test_colour_only_where_asked(whole):
    assert "\x1b[" in report.render(whole, color=True) and "\x1b[" not in report.render(whole, color=False)


def test_markdown_is_one_table_and_lists(partial, whole):
    text = report.render(partial, "md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert "log explains each penalty [share of runs] ↑** the controller's log explains what it did (paper" in text
    assert "peak memory, MiB [ratio] ↓ \\< 1.01" in report.render(whole, "md")  # no markup by accident
    assert "**holds**" in text and "- safebench run safe ppo --seeds 0-5" in text


def test_csv_has_a_line_per_figure(whole, partial):
    for found in (whole, partial):
        rows = list(csv.DictReader(io.StringIO(report.render(found, "csv"))))
        assert len(rows) == sum(max(1, len(entry.parts)) for entry in found.entries)
        assert {row["verdict"] for row in rows} <= {"holds", "fails", "not shown"} and "nan" not in str(rows)
    rows = list(csv.DictReader(io.StringIO(report.render(whole, "csv"))))
    (row,) = [r for r in rows if (r["claim"], r["arm"], r["opponent"]) == ("2", "safe", "ppo")]
    assert (row["n"], row["p"], row["side"], row["low"]) == ("7", str(1 / 128), "1", "")


def test_json_holds_everything(whole, partial):
    for found in (whole, partial):
        content = json.loads(report.render(found, "json"), parse_constant=pytest.fail)
        assert [claim["number"] for claim in content["claims"]] == list(range(1, 11))
        entries = [entry for claim in content["claims"] for entry in claim["entries"]]
        assert [entry["verdict"] for entry in entries] == [entry.verdict for entry in found.entries]
        assert content["crash_specification"]["version"] == 2 and content["notes"] == list(found.notes)
    first = content["claims"][0]
    assert first["paper"].startswith("+5.15 %") and "measure" not in first and first["meaning"] and first["claim"]
    entry = first["entries"][0]
    assert entry["ours"]["n"] == 5 and entry["figures"][0]["arm"] > entry["figures"][0]["opponent"]
    assert entry["missing"] == ["safe: seed 5", "ppo: seed 5"] and entry["opponent"] == "ppo"


def test_an_unknown_format_is_refused(whole):
    with pytest.raises(UsageError, match="latex"):
        report.render(whole, "latex")
