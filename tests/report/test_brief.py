"""Many arms in few figures: by hand, over common seeds, kept in one file and printed from it again."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.analysis import overview, runs, statistics
from safebench.analysis.overview import FIGURES, Block, Packed, brief
from safebench.analysis.scalars import summarise
from safebench.cli.main import main
from safebench.errors import BadResource, ComparisonRefused, UsageError
from safebench.metrics import CRASH_KINDS
from safebench.report.small_tables import render_brief
from tests.support.synthetic import CONSTANTS, collapsing, healthy, unpaired, write_run

STEPS = config.resolve("ppo").update.steps
ARMS = {"ppo": range(4), "safe": range(3), "safe-no-pid": [1, 3, 7]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seeds of ppo, which collapses; three of safe; three others of safe-no-pid; two of ppo under stress."""
    root = tmp_path_factory.mktemp("results")
    for arm, seeds in ARMS.items():
        for seed in seeds:
            write_run(root, arm, seed, collapsing(seed, STEPS) if arm == "ppo" else healthy(seed + 10, STEPS))
    for seed in range(2):
        write_run(root, "ppo@stress-lr3", seed, collapsing(seed, STEPS))
    return root


@pytest.fixture(scope="module")
def arms(root: Path) -> dict[str, list[Packed]]:
    found = [overview.pack(run) for run in runs.find(root)]
    return {arm: [run for run in found if (run.arm, run.preset) == (arm, "default")] for arm in ARMS}


@pytest.fixture(scope="module")
def block(arms: dict[str, list[Packed]]) -> Block:
    return brief("default", arms)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return (code, *capsys.readouterr())

    return call


# One run as one line


def test_a_run_packed_is_what_its_summary_says(root: Path) -> None:
    run = runs.read(root / "embedded" / "ppo@stress-lr3" / "seed-1")
    line, summary = overview.pack(run), summarise(run)
    assert (line.experiment, line.preset, line.arm, line.seed, line.model) == (
        "ppo",
        "stress-lr3",
        "ppo",
        1,
        "embedded",
    )
    assert line.values == {key: summary.values[key] for key in FIGURES}
    assert line.crashes == {kind: summary.count(kind) for kind in CRASH_KINDS} and line.crashed()
    assert line.settings == config.digest(config.departures(config.resolve("ppo@stress-lr3", overrides=["seed=5"])))
    assert line.settings != config.digest(config.departures(config.resolve("ppo")))
    assert (line.status, line.steps, line.paired, line.code) == ("finished", STEPS, True, "012345678")


def test_reading_gives_back_what_was_written_to_the_last_digit(root: Path, tmp_path: Path) -> None:
    lines = [overview.pack(run) for run in runs.find(root)]
    blind = replace(
        lines[0], values={key: math.nan for key in FIGURES}, crashes=dict.fromkeys(CRASH_KINDS), paired=False
    )
    (tmp_path / "runs.csv").write_text(overview.to_csv([*lines, replace(blind, seed=9)]), encoding="utf-8")
    back = overview.read_packed(tmp_path / "runs.csv")
    assert repr(sorted(back, key=repr)) == repr(sorted([*lines, replace(blind, seed=9)], key=repr))
    assert len((tmp_path / "runs.csv").read_bytes()) < 400 * (len(back) + 2)


def test_settings_that_depart_from_the_experiment_are_another_arm(tmp_path: Path) -> None:
    given = ["update.epochs=3", "recording.samples=7", "compute.threads=1"]
    line = overview.pack(runs.read(write_run(tmp_path, "ppo", 0, healthy(0, STEPS), overrides=given)))
    assert (line.overrides, line.arm) == ("update.epochs=3", "ppo[update.epochs=3]")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("experiment", "name", 1), "its columns are others"),
        (lambda text: text.replace(",true,", ",maybe,", 1), "maybe"),
        (lambda text: text.replace(",finished,", ",", 1), "zip"),
    ],
)
def test_another_file_is_refused(
    arms: dict[str, list[Packed]], tmp_path: Path, damage: Callable[[str], str], said: str
) -> None:
    (tmp_path / "runs.csv").write_text(damage(overview.to_csv(arms["ppo"])), encoding="utf-8")
    with pytest.raises(BadResource, match=said):
        overview.read_packed(tmp_path / "runs.csv")


def test_a_damaged_run_is_not_packed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "ppo", 0, healthy(0, 10))
    (folder / "config.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(BadResource, match=r"config\.yaml"):
        overview.pack(runs.read(folder))


# A row per arm


def test_differences_are_over_the_seeds_that_both_have(block: Block, arms: dict[str, list[Packed]]) -> None:
    assert [(row.arm, row.seeds, row.common) for row in block.rows] == [
        ("ppo", (0, 1, 2, 3), ()),
        ("safe", (0, 1, 2), (0, 1, 2)),
        ("safe-no-pid", (1, 3, 7), (1, 3)),
    ]
    for key in ("judge_final", "kl_mean"):
        first, third = ({run.seed: run.values[key] for run in arms[arm]} for arm in ("ppo", "safe-no-pid"))
        by_hand = statistics.paired([third[1], third[3]], [first[1], first[3]])
        assert block.rows[2].differences[key] == by_hand and by_hand.n == 2
        assert block.rows[2].figures[key] == statistics.mean(list(third.values())), "of all its runs"
    assert block.rows[0].differences == {} and block.warnings == ()
    assert block.notes[:2] == (
        "seeds 0-3: ppo; 0-2: safe; 1,3,7: safe-no-pid",
        "differences to ppo, with 95 % intervals, are over the seeds that both have (0-2: safe; 1,3: safe-no-pid)",
    )


def test_crashes_are_episodes_and_the_runs_that_had_them(block: Block, root: Path) -> None:
    summaries = [summarise(run) for run in runs.find(root) if run.variant == "ppo"]
    ppo, safe, _ = block.rows
    assert (ppo.crashed, safe.crashed, safe.crashes) == (4, 0, {})
    for kind, tally in ppo.crashes.items():
        counts = [summary.count(kind) for summary in summaries]
        assert (tally.episodes, tally.hit, tally.watched) == (sum(counts), sum(c > 0 for c in counts), 4)
    assert "entropy_collapse" in ppo.crashes


def test_another_baseline_comes_first(arms: dict[str, list[Packed]]) -> None:
    found = brief("default", arms, baseline="safe")
    assert [row.arm for row in found.rows] == ["safe", "ppo", "safe-no-pid"]
    assert found.rows[2].common == (1,) and math.isnan(found.rows[2].differences["kl_mean"].low)
    with pytest.raises(UsageError, match="grpo"):
        brief("default", arms, baseline="grpo")


def test_nothing_is_left_out_silently(arms: dict[str, list[Packed]]) -> None:
    late = [replace(run, status="running") if run.seed == 2 else run for run in arms["safe"]]
    found = brief("default", {**arms, "safe": late, "safe-no-gate": []})
    assert found.rows[1].seeds == (0, 1)
    assert "no runs: safe-no-gate" in found.notes
    assert "not complete, left out: safe seed 2 (running)" in found.notes
    broken = [replace(run, status="unstable", steps=17) if run.seed == 2 else run for run in arms["safe"]]
    kept = brief("default", {**arms, "safe": broken})
    assert kept.rows[1].seeds == (0, 1, 2)
    assert kept.warnings == ("safe ended unstable, and stays in, with what it recorded until then: seed 2 at step 17",)


def test_without_runs_of_the_baseline_there_are_no_differences(arms: dict[str, list[Packed]]) -> None:
    found = brief("default", {**arms, "ppo": []})
    assert [row.differences for row in found.rows] == [{}, {}] and "no runs: ppo" in found.notes
    assert not [note for note in found.notes if note.startswith("differences")]


def test_arms_that_are_not_paired_are_compared_as_such_and_marked(root: Path, arms: dict[str, list[Packed]]) -> None:
    others = [overview.pack(unpaired(run)) for run in runs.find(root) if run.variant == "safe-no-pid"]
    found = brief("default", {**arms, "safe-no-pid": others})
    row = found.rows[2]
    assert (row.paired, row.common, row.differences["kl_mean"].method) == (False, None, "Welch")
    assert row.differences["kl_mean"].n == 3, "all its runs, whatever their seeds"
    text = render_brief([found], "md")
    assert "| safe-no-pid (unpaired) | 3 |" in text and text.count("(unpaired) |") == 3
    assert "- unpaired: safe-no-pid; " in text
    turned = brief("default", {"safe-no-pid": others, "safe": arms["safe"]}).rows[1]
    assert turned.paired and turned.common is None and turned.differences["judge_final"].method == "Welch"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ground": "0"}, "another model, data, reward or number of steps: ppo, safe-no-pid against safe"),
        ({"specification": 9}, "crashes were counted by specification 9, whose thresholds are not known here"),
    ],
)
def test_unequal_ground_is_refused_or_marked(arms: dict[str, list[Packed]], change: dict[str, Any], said: str) -> None:
    chosen = {**arms, "safe": [replace(run, **change) for run in arms["safe"]]}
    with pytest.raises(ComparisonRefused, match=said):
        brief("default", chosen)
    (warning,) = brief("default", chosen, force=True).warnings
    assert warning.startswith("UNMATCHED: ") and said in warning


def test_runs_of_one_arm_have_one_setting_and_one_run_a_seed(arms: dict[str, list[Packed]]) -> None:
    mixed = [replace(arms["safe"][0], settings="0"), *arms["safe"][1:]]
    with pytest.raises(ComparisonRefused, match="the runs of safe have unequal settings"):
        brief("default", {**arms, "safe": mixed})
    twice = [*arms["safe"], arms["safe"][0]]
    with pytest.raises(ComparisonRefused, match="safe has several runs of one seed"):
        brief("default", {**arms, "safe": twice}, force=True)


@pytest.mark.parametrize(
    "given", ["reward.noise=0.5", "update.steps=20", "prompts.max_tokens=16", "reward.name=safe-heuristic"]
)
def test_the_ground_is_what_must_be_equal(tmp_path: Path, given: str) -> None:
    one = overview.pack(runs.read(write_run(tmp_path, "ppo", 0, healthy(0, STEPS))))
    same = overview.pack(runs.read(write_run(tmp_path, "safe-no-pid", 3, healthy(0, STEPS))))
    steps = 20 if "steps" in given else STEPS
    other = write_run(tmp_path, "ppo", 1, healthy(0, steps), overrides=[given])
    hashed = CONSTANTS | {"hashes": {"model": "aa", "reward": "cc"}}
    assert one.ground == same.ground != overview.pack(runs.read(other)).ground
    another = write_run(tmp_path, "ppo", 2, healthy(0, STEPS), constants=hashed)
    assert overview.pack(runs.read(another)).ground != one.ground


def test_what_was_not_watched_is_said(tmp_path: Path) -> None:
    blind = healthy(0, STEPS)
    blind["reply/length"] = [None] * (STEPS + 1)
    for arm, curves in (("ppo", healthy(0, STEPS)), ("safe", blind)):
        write_run(tmp_path, arm, 0, curves)
    found = [overview.pack(run) for run in runs.find(tmp_path)]
    block = brief("default", {run.arm: [run] for run in found})
    (warning,) = block.warnings
    assert warning.startswith("safe: not watched in every run") and "length_collapse, length_blowup" in warning
    records = list(csv.DictReader(io.StringIO(render_brief([block], "csv"))))
    assert [record["crash/length_collapse"] for record in records] == ["0", ""]


# What a reader sees


def test_markdown_is_one_row_per_arm(block: Block) -> None:
    text = render_brief([block], "md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ARMS) and {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {12}
    assert table[0].startswith("| arm | n | judge, end ↑ | KL, mean ↓ | KL, max ↓ | entropy, end | s/update ↓ |")
    assert table[2].startswith("| ppo | 4 | ") and " | 4/4 | " in table[2] and "entropy\\_collapse 4 in 4" in table[2]
    assert table[3].endswith(" | 0/3 | none |")
    assert re.search(r"\| [+−][\d.]+ ± [\d.]+ \(2\) \| 0/3 \|", table[4]), "two pairs of three runs"
    assert "nan" not in text and not text.startswith("## ")
    both = render_brief([block, replace(block, preset="stress-lr3")], "md")
    assert re.findall(r"^## .*", both, re.MULTILINE) == ["## default, against ppo", "## stress-lr3, against ppo"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminals_tables_fit(block: Block, width: int) -> None:
    text = render_brief([block], width=width, color=False)
    assert max(map(len, text.splitlines())) <= width and "\x1b[" not in text
    assert text.count("safe-no-pid  3") == 2 and "Made from" in text
    assert "\x1b[" in render_brief([block], width=width, color=True)


def test_programs_get_every_digit(block: Block) -> None:
    records = list(csv.DictReader(io.StringIO(render_brief([block, replace(block, preset="stress-lr3")], "csv"))))
    assert [(r["preset"], r["arm"]) for r in records[2:5]] == [
        ("default", "safe-no-pid"), ("stress-lr3", "ppo"), ("stress-lr3", "safe"),
    ]  # fmt: skip
    row, record = block.rows[2], records[2]
    assert (record["n"], record["seeds"], record["paired"], record["kl_mean difference n"]) == (
        "3",
        "1 3 7",
        "true",
        "2",
    )
    assert float(record["kl_mean difference value"]) == row.differences["kl_mean"].value
    assert (records[0]["kl_mean difference value"], records[0]["crash/entropy_collapse"]) == ("", "4")
    (content,) = json.loads(render_brief([block], "json"), parse_constant=pytest.fail)
    assert content["arms"][2]["common_seeds"] == [1, 3] and content["notes"] == list(block.notes)
    assert content["arms"][2]["figures"]["kl_max"]["value"] == row.figures["kl_max"].value
    assert content["arms"][0]["crashes"]["entropy_collapse"] == {"episodes": 4, "hit": 4, "watched": 4}
    with pytest.raises(UsageError, match="latex"):
        render_brief([block], "latex")


# The commands


def test_the_table_of_the_kept_file_is_that_of_the_runs(call: Any, root: Path, tmp_path: Path) -> None:
    kept = tmp_path / "grid" / "runs.csv"
    kept.parent.mkdir()
    names = ["embedded/ppo@stress-lr3", *(f"embedded/{arm}" for arm in ARMS)]
    assert call("keep", *names, "--results", str(root), "--out", str(kept)) == (0, f"{kept}\n", "")
    assert len(overview.read_packed(kept)) == 12
    asked = ["compare", *ARMS, "--brief", "--preset", "default,stress-lr3"]
    for output in ("md", "csv", "json", "table"):
        code, lying, err = call(*asked, "--format", output, "--results", str(root))
        assert code == 0 and "missing: safe-no-pid@stress-lr3, seeds 0 (not there), 1 (not there)" in err
        assert call(*asked, "--format", output, "--results", str(kept)) == (0, lying, "")
    assert "no runs: safe, safe-no-pid" in lying
    code, few, _ = call(*asked[:5], "--seeds", "0-1", "--results", str(kept), "--baseline", "safe", "--format", "csv")
    assert [(r["arm"], r["n"]) for r in csv.DictReader(io.StringIO(few))] == [
        ("safe", "2"),
        ("ppo", "2"),
        ("safe-no-pid", "1"),
    ]


def test_a_preset_without_runs_is_named_and_the_others_shown(call: Any, root: Path) -> None:
    code, out, err = call("compare", "ppo", "--brief", "--preset", "stress-lr3,smoke", "--results", str(root))
    assert code == 0 and "missing: no runs in" in err and "ppo@smoke" in err and "ppo  2" in out
    assert call("compare", "ppo", "--brief", "--preset", "smoke", "--results", str(root))[0] == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--metric", "kl"], "--brief has rows of its own"),
        (["--judge", "x"], "--brief has rows of its own"),
        (["--format", "latex"], "--brief has rows of its own"),
        (["--preset", "default,"], "an empty preset"),
    ],
)
def test_what_the_brief_table_has_not_is_refused(call: Any, root: Path, more: list[str], said: str) -> None:
    code, out, err = call("compare", "ppo", "safe", "--brief", *more, "--results", str(root))
    assert (code, out) == (2, "") and said in err


def test_a_kept_file_holds_no_other_runs(call: Any, arms: dict[str, list[Packed]], tmp_path: Path) -> None:
    kept = tmp_path / "runs.csv"
    kept.write_text(overview.to_csv([run for found in arms.values() for run in found]), encoding="utf-8")
    for arguments, said in (
        (["ppo", "safe"], "Add --brief"),
        (["ppo", "saef", "--brief"], "did you mean safe?"),
        (["ppo", "safe", "--brief", "--steps", "3"], "keeps runs as they were made"),
    ):
        code, out, err = call("compare", *arguments, "--results", str(kept))
        assert (code, out) == (2, "") and said in err
