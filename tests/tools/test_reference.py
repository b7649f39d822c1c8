"""What is kept under results/reference/ is what its runs say, and the README says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.claims import ledger
from safebench.analysis.compare import Comparison
from safebench.analysis.runs import Run
from safebench.errors import BadResource
from safebench.report import ledger as ledgers
from safebench.report.table import render
from tools.excerpt import (
    ARMS,
    METRICS,
    TUNED_ARMS,
    TUNED_METRICS,
    comparison_of,
    excerpt,
    points,
    tuned_excerpt,
)
from tools.marks import insert

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
SEEDS = list(range(5))


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Run]]:
    found = runs.find(REFERENCE)
    return {arm: [run for run in found if run.experiment == arm] for arm in (*ARMS, *TUNED_ARMS)}


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    return {"comparison": comparison_of(REFERENCE, ARMS), "comparison-tuned": comparison_of(REFERENCE, TUNED_ARMS)}


@pytest.mark.parametrize("arms", [ARMS, TUNED_ARMS])
def test_each_comparison_is_one_whole_honest_run(groups: dict[str, list[Run]], arms: tuple[str, str]) -> None:
    made = []
    for arm in arms:
        assert [run.seed for run in groups[arm]] == SEEDS
        assert all(run.complete for run in groups[arm])
        made += [run.manifest["git"] for run in groups[arm]]
    assert len({git["commit"] for git in made}) == 1
    assert not any(git["dirty"] for git in made)


@pytest.mark.parametrize("name", ["comparison", "comparison-tuned"])
@pytest.mark.parametrize(("fmt", "ending"), [("md", "md"), ("csv", "csv"), ("json", "json"), ("latex", "tex")])
def test_the_tables_are_those_of_the_runs(
    comparisons: dict[str, Comparison], name: str, fmt: str, ending: str
) -> None:
    kept = (REFERENCE / f"{name}.{ending}").read_text(encoding="utf-8")
    assert kept == render(comparisons[name], fmt), "make reference"


@pytest.mark.parametrize("arm", ARMS)
def test_the_tuned_runs_are_those_of_the_searches_winner(groups: dict[str, list[Run]], arm: str) -> None:
    search = json.loads((REFERENCE / "tuning" / f"{arm}.json").read_text(encoding="utf-8"))
    best = max(search["points"], key=lambda point: point["mean"])
    assert (search["criterion"]["key"], search["winner"]) == ("judge_final", best["number"])
    means = [sum(run["value"] for run in point["runs"]) / len(point["runs"]) for point in search["points"]]
    assert means == pytest.approx([point["mean"] for point in search["points"]], rel=1e-12)
    first = groups[arm][0].settings
    for run in groups[f"{arm}-tuned"]:
        for key, value in best["values"].items():
            assert _at(run.settings, key) == value
        known = {"experiment", "description", "tuned", "seed", *best["values"]}
        assert {key for key, value in _flat(run.settings).items() if value != _flat(first).get(key)} <= known
        assert run.settings["tuned"]["runs"] == search["cost"]["runs"] == sum(len(p["runs"]) for p in search["points"])


def _at(tree: object, key: str) -> object:
    for part in key.split("."):
        assert isinstance(tree, dict)
        tree = tree[part]
    return tree


def _flat(tree: dict[str, object], above: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in tree.items():
        deeper = isinstance(value, dict) and key != "tuned"
        found |= _flat(value, f"{above}{key}.") if deeper else {f"{above}{key}": value}  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("fmt", ["md", "csv", "json"])
def test_the_claims_are_those_of_the_runs(groups: dict[str, list[Run]], fmt: str) -> None:
    kept = (REFERENCE / f"claims.{fmt}").read_text(encoding="utf-8")
    asked = {arm: groups[arm] for arm in ARMS}
    assert kept == ledgers.render(ledger(asked, seeds=SEEDS), fmt), "make reference"


@pytest.mark.parametrize(
    ("file", "mark", "make", "rows"),
    [
        ("README.md", "table", excerpt, len(METRICS) + 2),
        ("README.md", "tuned", tuned_excerpt, len(TUNED_METRICS) + 2),
        ("docs/tuning.md", "tuning", points, None),
    ],
)
def test_the_pages_have_the_tables_of_the_reference(
    file: str, mark: str, make: Callable[[Path], str], rows: int | None
) -> None:
    page = (ROOT / file).read_text(encoding="utf-8")
    table = make(REFERENCE)
    assert insert(page, mark, table) == page, "make reference"
    assert rows is None or table.count("\n") == rows, "a row that is asked for is not in the comparison"


def test_a_page_without_marks_is_left_alone() -> None:
    page = "a<!-- x: start -->old<!-- x: end -->b"
    assert insert(page, "x", "new\n") == "a<!-- x: start -->\nnew\n<!-- x: end -->b"
    for wrong in ("no marks", "<!-- x: start --> alone", "<!-- x: end --><!-- x: start -->"):
        with pytest.raises(BadResource):
            insert(wrong, "x", "new")
