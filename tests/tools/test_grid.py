"""The grid's plan is the Makefile's, and its tables are of the kept lines of its arms alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy import stats

from safebench import config
from safebench.analysis import overview, runs
from safebench.analysis.statistics import Estimate
from tests.support.synthetic import healthy, write_run
from tools import grid_table
from tools.grid_table import MAIN, PARTS, REPLICATE, WHOLE, blocks, parts, tables
from tools.marks import insert

ROOT = Path(__file__).parents[2]
GRID = ROOT / "results" / "grid"
PLAN = dict.fromkeys((*MAIN, *PARTS, REPLICATE), range(6))
"""Seeds by arm."""
SEEDS = range(3)
STEPS = config.resolve("ppo").update.steps


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of every arm, of the replicate, and of a run under another preset."""
    root = tmp_path_factory.mktemp("grid")
    for number, arm in enumerate((*MAIN, *PARTS, "ppo@stress-lr3")):
        for seed in SEEDS:
            write_run(root, arm, seed, healthy(100 * number + seed, STEPS))
    for seed in SEEDS:
        write_run(root, WHOLE, seed, healthy(5000 + seed, STEPS), overrides=["compute.replicate=1"], folder="safe-1")
    lines = overview.to_csv([overview.pack(run) for run in runs.find(root)])
    (root / "runs.csv").write_text(lines, encoding="utf-8")
    return root / "runs.csv"


def test_make_runs_the_plan() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    made = dict(re.findall(r"^(GRID_\w+) := (.*)$", text, re.MULTILINE))
    assert set(made["GRID_ARMS"].split()) == set(MAIN)
    assert set(made["GRID_PARTS"].split()) == set(PARTS)
    first, last = map(int, made["GRID_SEEDS"].split("-"))
    assert f"{(len(MAIN) + len(PARTS) + 1) * (last - first + 1)} of them" in text
    there = {name for name, _ in config.experiments()}
    assert {*MAIN, *PARTS} <= there


def test_main_arms_are_held_against_ppo_and_parts_against_safe(kept: Path) -> None:
    main, ablations = blocks(kept)
    assert [row.arm for row in main.rows] == list(MAIN) and main.baseline == "ppo"
    assert [row.arm for row in ablations.rows] == [WHOLE, REPLICATE, *PARTS] and ablations.baseline == WHOLE
    lines = overview.read_packed(kept)
    values = {
        arm: {r.seed: r.values["judge_final"] for r in lines if (r.arm, r.preset) == (arm, overview.PLAIN)}
        for arm in ("ppo", WHOLE, REPLICATE)
    }
    for block, arm, baseline in ((main, WHOLE, "ppo"), (ablations, REPLICATE, WHOLE)):
        row = next(row for row in block.rows if row.arm == arm)
        expected = [values[arm][seed] - values[baseline][seed] for seed in SEEDS]
        assert row.differences["judge_final"].value == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_the_files_are_written_beside_the_lines(kept: Path) -> None:
    page = kept.with_name("page.md")
    page.write_text("<!-- parts: start -->old<!-- parts: end -->", encoding="utf-8")
    grid_table.main(str(kept.parent), str(page))
    assert page.read_text(encoding="utf-8") == f"<!-- parts: start -->\n{grid_table.parts(kept)}<!-- parts: end -->"
    text = kept.with_name("table.md").read_text(encoding="utf-8")
    assert text == grid_table.tables(kept)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["default, against ppo", "default, against safe"]
    assert kept.with_name("differences.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_verdict_takes_both_baselines_on_one_side() -> None:
    def said(*judge: tuple[float, float]) -> str:
        found = tuple(Estimate(value, value - margin, value + margin, 6, "t") for value, margin in judge)
        level = Estimate(0.0, -1.0, 1.0, 6, "t")
        return grid_table._verdict({"judge_final": found, "kl_mean": (level, level)})

    assert said((-1.0, 0.9), (-2.0, 1.0)) == "earns its place (judge)"
    assert said((-1.0, 0.5), (-2.0, 1.0)) == "earns its place, clear (judge)"
    assert said((1.0, 0.5), (2.0, 1.5)) == "stands in the way (judge)"
    assert said((-1.0, 0.5), (-2.0, 2.5)) == said((-1.0, 0.5), (2.0, 0.5)) == "nothing shown"
    assert stats.t.ppf(0.9975, 5) / stats.t.ppf(0.975, 5) == pytest.approx(grid_table.CLEAR, abs=0.005)
    high = Estimate(1.0, 0.5, 1.5, 6, "t")
    level = Estimate(0.0, -1.0, 1.0, 6, "t")
    told = grid_table._verdict({"judge_final": (level, level), "kl_mean": (high, high)})
    assert told == "earns its place, clear (KL)"  # without the part KL is higher


def test_the_kept_runs_are_of_the_plan_each_once() -> None:
    kept = [(run.arm, run.seed) for run in overview.read_packed(GRID / "runs.csv")]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {(arm, seed) for arm, seeds in PLAN.items() for seed in seeds}
    assert {run.preset for run in overview.read_packed(GRID / "runs.csv")} == {overview.PLAIN}


def test_every_kept_run_is_of_the_experiment_as_it_now_stands() -> None:
    for run in overview.read_packed(GRID / "runs.csv"):
        asked = config.resolve(run.experiment, overrides=["compute.replicate=1"] if run.arm == REPLICATE else [])
        now = config.digest(config.departures(asked))
        assert run.settings == now, f"{run.arm} is another experiment now"
        assert run.overrides == ("compute.replicate=1" if run.arm == REPLICATE else "")


def test_the_replicate_is_the_same_experiment_at_another_rounding() -> None:
    kept = overview.read_packed(GRID / "runs.csv")
    whole, again = ({run.seed: run for run in kept if run.arm == arm} for arm in (WHOLE, REPLICATE))
    for seed, run in again.items():
        assert run.ground == whole[seed].ground and run.values["kl_mean"] != whole[seed].values["kl_mean"]


def test_the_tables_are_those_of_the_kept_runs() -> None:
    assert (GRID / "table.md").read_text(encoding="utf-8") == tables(GRID / "runs.csv"), "make grid-report"
    page = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    assert insert(page, grid_table.MARK, parts(GRID / "runs.csv")) == page, "make grid-report"
