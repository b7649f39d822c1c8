"""What is kept of the grid is of its plan, and its table is what the kept lines say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safebench import config
from safebench.evidence import packed
from safebench.evidence.brief import brief
from safebench.evidence.statistics import Estimate
from safebench.report import grid_table
from safebench.report.cells import interval
from safebench.report.grid_table import MAIN, PARTS, PRESETS, tables

ROOT = Path(__file__).parents[1]
GRID = ROOT / "results" / "grid"
PLAN = {
    **{(arm, "default"): range(6) for arm in MAIN},
    **{(arm, preset): range(3) for arm in MAIN for preset in PRESETS[1:]},
    **{(arm, "default"): range(5) for arm in PARTS},
}
"""Seeds by arm and preset."""


def test_the_kept_runs_are_of_the_plan_each_once() -> None:
    kept = [(run.arm, run.preset, run.seed) for run in packed.read(GRID / "runs.csv")]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {(arm, preset, seed) for (arm, preset), seeds in PLAN.items() for seed in seeds}


def test_the_table_is_that_of_the_kept_runs() -> None:
    assert (GRID / "table.md").read_text(encoding="utf-8") == tables(GRID / "runs.csv"), "make grid-report"


def test_every_kept_run_is_of_the_experiment_as_it_now_stands() -> None:
    for run in packed.read(GRID / "runs.csv"):
        preset = None if run.preset == packed.PLAIN else run.preset
        asked = config.resolve(run.experiment, preset=preset)
        now = packed.digest(packed.departures(asked))
        assert (run.settings, run.overrides) == (now, ""), f"{run.arm}@{run.preset} is another experiment now"


def test_the_replicate_is_the_same_experiment_at_another_rounding() -> None:
    runs = {run.seed: run for run in packed.read(GRID / "runs.csv") if (run.arm, run.preset) == ("safe", "default")}
    again = packed.read(GRID / "replicate.csv")
    assert [run.seed for run in again] == list(range(6)) and runs.keys() == set(range(6))
    for run in again:
        other = runs[run.seed]
        assert (run.settings, run.ground, run.overrides) == (other.settings, other.ground, other.overrides)
        assert run.code != other.code and run.values["kl_mean"] != other.values["kl_mean"]


PAGE = {
    "nothing (the replicate)": grid_table.AGAIN,
    "momentum in place of gate, PID, phases": "safe-momentum",
    "phases": "safe-no-phase",
    "reward normalisation": "safe-no-reward-norm",
}
"""Arms by their name in docs/parts.md, where it is not that of the part."""


def test_the_page_of_the_parts_says_what_was_measured() -> None:
    """Each difference to ``safe`` and to its replicate, bold where its interval leaves zero out."""
    text = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-2]] for line in text.splitlines() if line.startswith("| ")]
    said = {PAGE.get(name, f"safe-no-{name.lower().replace(' ', '-')}"): cells for name, *cells in lines[2:]}
    (whole, again) = (_differences(first) for first in ("safe", grid_table.AGAIN))
    assert said.keys() == whole.keys()
    for arm, cells in said.items():
        found = [whole[arm], again.get(arm, {})]
        shown = [_shown(one.get(key)) for key in ("judge_final", "kl_mean") for one in found]
        assert cells == shown, arm


def _differences(first: str) -> dict[str, Mapping[str, Estimate]]:
    runs = packed.read(GRID / "runs.csv")
    arms = {arm: [run for run in runs if (run.arm, run.preset) == (arm, "default")] for arm in ("safe", *PARTS)}
    arms[grid_table.AGAIN] = packed.read(GRID / "replicate.csv")
    return {row.arm: row.differences for row in brief("default", arms, baseline=first).rows if row.arm != first}


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    bold = "**" if estimate.low > 0 or estimate.high < 0 else ""
    return f"{bold}{interval(estimate, sign=True)}{bold}"


def test_make_runs_the_plan() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    made = dict(re.findall(r"^(GRID_\w+) := (.*)$", text, re.MULTILINE))
    assert set(made["GRID_ARMS"].split()) == set(MAIN)
    assert made["GRID_STRESS"].split() == list(PRESETS[1:])
    assert set(made["GRID_PARTS"].split()) == set(PARTS)
    ablations = {name for name, _ in config.experiments() if name.startswith("safe-no-")}
    assert ablations <= set(PARTS) and len(ablations) == 9
    seeds = re.findall(r"safebench run \$\(GRID_(\w+)\) (--preset)?.*?--seeds (\S+)", text)
    assert seeds == [("ARMS", "", "0-5"), ("ARMS", "--preset", "0-2"), ("PARTS", "", "0-4")]
    assert f"{sum(map(len, PLAN.values()))} of them" in text


def test_the_parts_are_compared_with_the_whole() -> None:
    titles = re.findall(r"^## (.*)$", (GRID / "table.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == ["default, against ppo", "default, against safe", *(f"{p}, against ppo" for p in PRESETS[1:])]


def test_the_files_are_written_beside_the_lines(tmp_path: Path) -> None:
    for name in ("runs.csv", "replicate.csv"):
        shutil.copy(GRID / name, tmp_path)
    grid_table.main(str(tmp_path))
    assert (tmp_path / "table.md").read_bytes() == (GRID / "table.md").read_bytes()
    assert (tmp_path / "differences.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
