"""The kept runs on Gemma 3 270M: whole, without weights, and the page's table is theirs."""

from __future__ import annotations

from pathlib import Path

from safebench.analysis import runs
from tools.gemma_page import MARK, table
from tools.marks import insert

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "gemma"


def test_the_kept_runs_are_a_finished_pair_without_weights() -> None:
    found = runs.find(KEPT)
    assert {run.experiment for run in found} == {"ppo@small-cpu", "safe@small-cpu"}
    assert {(run.status, run.last_step, run.planned_steps) for run in found} == {("finished", 40, 40)}
    assert len({run.manifest["git"]["commit"] for run in found}) == 1
    assert not any(run.manifest["git"]["dirty"] for run in found)
    assert not list(KEPT.rglob("*.safetensors")), "an adapter is a derivative under Gemma's terms"


def test_the_page_has_their_table() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert insert(page, MARK, table(KEPT)) == page, "python -m tools.gemma_page docs/models.md results/gemma"
