"""The frontier of judge reward against KL: paths by hand, first passages, matched levels, and which record is fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safebench.analysis import frontier as frontiers
from safebench.analysis import runs, statistics
from safebench.analysis.frontier import COLUMNS, MUST_MATCH, Frontier, Point, RunPath, frontier, passage, run_path
from safebench.analysis.runs import Run
from safebench.errors import UsageError
from tests.support.synthetic import CONSTANTS, write_run

HASHES = {"model": "aa", "reward": "bb", "judge": "cc", "prompts": "dd"}
Triple = tuple[float, float, float]
"""KL per token, length, judge."""


def made(root: Path, experiment: str, seed: int, evaluations: Sequence[Triple | None], **more: Any) -> Run:
    """A run with an evaluation at every step that has one; its proxy is ten times the judge."""
    columns: dict[str, list[float | None]] = {
        "eval/kl": [e and e[0] for e in evaluations],
        "eval/length": [e and e[1] for e in evaluations],
        "eval/judge": [e and e[2] for e in evaluations],
        "eval/reward": [e and 10 * e[2] for e in evaluations],
    }
    return runs.read(write_run(root, experiment, seed, columns, constants={**CONSTANTS, "hashes": HASHES}, **more))


def path(*points: tuple[float, float]) -> RunPath:
    """A path of (KL, judge) at steps 0, 1, 2, ..."""
    return RunPath(0, tuple(Point(step, kl, judge, math.nan) for step, (kl, judge) in enumerate(points)))


def straight(root: Path, experiment: str, seed: int, slope: float, reach: float = 10.0) -> Run:
    """A run whose judge rises by ``slope`` per nat, in three evaluations up to ``reach`` nats per reply."""
    return made(root, experiment, seed, [(k * reach / 20, 10.0, slope * k * reach / 2) for k in range(3)])


def both(root: Path, reaches: Sequence[float] = (10.0, 10.0), **slopes: float) -> Frontier:
    """PPO rises by 0.1 per nat and seed number, SAFE by 0.2 more."""
    groups = {
        "ppo": [straight(root, "ppo", seed, 0.1 * (seed + 1), reach) for seed, reach in enumerate(reaches)],
        "safe": [straight(root, "safe", seed, 0.1 * (seed + 1) + 0.2) for seed in range(len(reaches))],
    }
    return frontier(groups, **slopes)


def test_kl_per_reply_is_that_per_token_times_the_length(tmp_path: Path) -> None:
    run = made(tmp_path, "ppo", 3, [(0.0, 11.0, 0.5), None, (0.25, 8.0, 0.75), (0.5, 6.0, 0.25)])
    assert run_path(run) == RunPath(3, (Point(0, 0.0, 0.5, 5.0), Point(2, 2.0, 0.75, 7.5), Point(3, 3.0, 0.25, 2.5)))
    assert run_path(run).reach == 3.0


def test_an_evaluation_that_is_not_finite_is_no_point(tmp_path: Path) -> None:
    run = made(tmp_path, "ppo", 0, [(0.0, 10.0, 0.5), (math.nan, 8.0, 0.75), (0.5, 6.0, 0.25)])
    assert [point.step for point in run_path(run).points] == [0, 2]


def test_a_level_is_passed_where_the_path_first_gets_there() -> None:
    there_and_back = path((0.0, 0.0), (4.0, 1.0), (2.0, 5.0), (8.0, -1.0))
    first = passage(there_and_back, 3.0)
    assert first.judge == 0.75
    assert first.start is not None
    assert first.end is not None
    assert (first.start.step, first.end.step, first.gap) == (0, 1, 4.0)
    assert passage(there_and_back, 4.0).judge == 1.0
    assert passage(there_and_back, 5.0).judge == 2.0  # half-way from (2, 5) to (8, -1)


def test_a_level_beyond_the_path_or_before_its_begin_is_missing() -> None:
    assert math.isnan(passage(path((0.0, 0.0), (4.0, 1.0)), 4.1).judge)
    late = path((2.0, 0.5), (1.0, 0.5), (3.0, 1.0))
    assert math.isnan(passage(late, 1.5).judge)
    assert math.isnan(passage(late, 1.5).gap)
    assert passage(late, 2.5).judge == 0.875


def test_evaluations_without_a_judge_are_stepped_over() -> None:
    assert passage(path((0.0, 0.0), (2.0, math.nan), (4.0, 1.0)), 2.0).judge == 0.5
    assert math.isnan(passage(path((0.0, math.nan), (4.0, math.nan)), 2.0).judge)


def test_a_path_that_stands_still_at_the_level_gives_the_first_point() -> None:
    assert passage(path((0.0, 0.5), (0.0, 0.7), (1.0, 0.9)), 0.0).judge == 0.5


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(-3, 3)), min_size=2, max_size=8),
    st.floats(0, 60),
)
def test_a_passage_lies_between_the_judges_of_its_ends(points: list[tuple[float, float]], level: float) -> None:
    whole = path((0.0, 0.0), *points)
    found = passage(whole, level)
    assert math.isnan(found.judge) == (whole.reach < level)
    if found.start is not None and found.end is not None:
        assert found.start.kl <= level <= found.end.kl
        low, high = sorted([found.start.judge, found.end.judge])
        assert low - 1e-12 <= found.judge <= high + 1e-12
        assert all(point.kl < level for point in whole.points[1 : found.end.step]), "not the first passage"


def test_arms_at_matched_kl_by_hand(tmp_path: Path) -> None:
    found = both(tmp_path)
    assert [level.kl for level in found.levels] == [2.5, 5.0, 7.5, 10.0]
    level = found.levels[1]
    # At 5 nats: PPO 0.5 and 1.0, SAFE 1.5 and 2.0.
    assert level.judge["ppo"] == statistics.mean([0.5, 1.0])
    assert level.judge["safe"].value == pytest.approx(1.75, rel=1e-15)
    assert level.differences["safe"].value == pytest.approx(1.0, rel=1e-15)
    assert level.differences["safe"].method == statistics.PAIRED
    assert found.baseline == "ppo"
    assert math.isnan(level.reference)


def test_the_mean_path_is_over_the_seeds_that_measured_a_step(tmp_path: Path) -> None:
    broken = made(tmp_path, "ppo", 1, [(0.0, 10.0, 0.0), (0.5, 10.0, 2.0)])
    whole = made(tmp_path, "ppo", 0, [(0.0, 10.0, 0.0), (0.1, 10.0, 1.0), (0.2, 10.0, 1.5)])
    (arm,) = frontier({"ppo": [broken, whole]}).arms
    assert [(p.step, p.kl.value, p.judge.value, p.proxy.value, p.kl.n) for p in arm.mean] == [
        (0, 0.0, 0.0, 0.0, 2),
        (1, 3.0, 1.5, 15.0, 2),
        (2, 2.0, 1.5, 15.0, 1),
    ]
    assert [path.seed for path in arm.paths] == [0, 1]


def test_levels_are_quarters_of_what_half_of_every_arms_seeds_reach(tmp_path: Path) -> None:
    # SAFE reaches 10 in all seeds; PPO 3, 8.88 and 40: the median, rounded down, quarter by quarter.
    assert [level.kl for level in both(tmp_path, (3.0, 8.88, 40.0)).levels] == [2.2, 4.4, 6.6, 8.8]


@given(st.floats(1e-3, 1e3))
def test_every_level_is_within_reach(reach: float) -> None:
    run = RunPath(0, (Point(0, 0.0, 0.0, 0.0), Point(1, reach, 1.0, 1.0)))
    levels = frontiers.levels_of([frontiers.ArmPaths("ppo", (run,), ())])
    assert len(levels) == 4
    for share, level in zip(frontiers.QUARTERS, levels, strict=True):
        assert 0.9 * share * reach < level <= share * reach
        assert math.isfinite(passage(run, level).judge)


def test_a_seed_that_never_gets_there_is_left_out_counted_and_said(tmp_path: Path) -> None:
    found = both(tmp_path, (3.0, 8.88, 40.0))
    last = found.levels[-1]
    assert last.missing("ppo") == (0,)
    assert last.missing("safe") == ()
    assert (last.judge["ppo"].n, last.judge["safe"].n, last.differences["safe"].n) == (2, 3, 2)
    assert last.differences["safe"].value == pytest.approx(0.2 * 8.8, rel=1e-12)
    assert any("KL 8.8" in note and "ppo seed 0" in note for note in found.notes)
    assert not any("KL 2.2" in note for note in found.notes)


def test_given_levels_and_baseline_are_taken(tmp_path: Path) -> None:
    found = both(tmp_path, levels=(1.0,), baseline="safe")
    assert [level.kl for level in found.levels] == [1.0]
    assert list(found.levels[0].differences) == ["ppo"]
    with pytest.raises(UsageError, match="rloo"):
        both(tmp_path / "again", baseline="rloo")


def test_an_arm_that_is_not_paired_is_compared_unpaired(tmp_path: Path) -> None:
    groups = {
        "ppo": [straight(tmp_path, "ppo", seed, 0.1 * (seed + 1)) for seed in range(3)],
        "safe": [straight(tmp_path, "safe", seed, 0.3) for seed in range(3)],
    }
    groups["safe"] = [replace(run, manifest={**run.manifest, "paired": False}) for run in groups["safe"]]
    assert frontier(groups).levels[0].differences["safe"].method == statistics.WELCH


def test_arms_without_a_measured_kl_have_no_frontier(tmp_path: Path) -> None:
    run = runs.read(write_run(tmp_path, "ppo", 0, {"reward/mean": [None, 1.0]}))
    found = frontier({"ppo": [run]})
    assert (found.arms, found.levels) == ((), ())


def record(root: Path, run: Run, name: str = "1234abcd", **changed: Any) -> Path:
    """A finished record beside ``run``: two prompts, two draws; best of two by proxy is draw 1."""
    folder = root / "embedded" / "best-of-n" / name
    folder.mkdir(parents=True)
    settings = {key: run.settings[key.partition(".")[0]][key.partition(".")[2]] for key in MUST_MATCH}
    manifest = {"complete": True, "prompts": 2, "draws": 2, "hashes": HASHES, "settings": settings, **changed}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [",".join(COLUMNS), "0,0,1.0,3.0,4", "0,1,2.0,1.0,5", "1,0,1.0,5.0,6", "1,1,2.0,3.0,7"]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_best_of_n_comes_from_the_record_beside_the_runs(tmp_path: Path) -> None:
    runs_of = [straight(tmp_path, "ppo", seed, 0.1, reach=0.4) for seed in range(2)]
    record(tmp_path, runs_of[0])
    found = frontier({"ppo": runs_of}, levels=(0.0, (math.log(2) - 0.5) / 2, 0.4))
    assert found.refused == ""
    assert [(best.n, best.proxy.value, best.judge and best.judge.value) for best in found.best_of_n] == [
        (1, 1.5, 3.0),
        (2, 2.0, 2.0),
    ]
    assert [level.reference for level in found.levels[:2]] == [3.0, 2.5]
    assert math.isnan(found.levels[2].reference)


def test_the_luck_of_the_first_evaluation_is_said(tmp_path: Path) -> None:
    run = straight(tmp_path, "ppo", 0, 0.1)
    assert not any("initial policy" in note for note in frontier({"ppo": [run]}).notes)
    record(tmp_path, run)  # its two draws have judge rewards of 4 and 2 on average
    (note,) = [note for note in frontier({"ppo": [run]}).notes if "initial policy" in note]
    assert "is 3.000 over 2 replies" in note
    assert "by 1.414" in note
    assert note.endswith("drew 0.000 on average")


def test_the_record_with_the_most_draws_is_taken_and_the_curves_end_is_said(tmp_path: Path) -> None:
    run = straight(tmp_path, "ppo", 0, 0.1)
    record(tmp_path, run)
    small = record(tmp_path, run, "0000aaaa", draws=1)
    (small / "scores.csv").write_text("\n".join([",".join(COLUMNS), "0,0,1.0,,4", "1,0,1.0,,4", ""]), encoding="utf-8")
    found = frontier({"ppo": [run]})
    assert found.record is not None
    assert found.record.draws == 2
    assert any("best of 2 ends at 0.2 nats" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hashes": {**HASHES, "model": "ee"}}, "its model has another hash"),
        ({"hashes": {**HASHES, "judge": "ee"}}, "its judge has another hash"),
        ({"hashes": {"model": "aa"}}, "its reward has another hash"),
        ({"settings": {}}, "its rollout.reply_tokens is None"),
        ({"complete": False}, "is not finished"),
        ({"draws": 3}, "has not the 2 x 3 rows"),
    ],
)
def test_a_record_of_something_else_is_refused_with_the_reason(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    run = straight(tmp_path, "ppo", 0, 0.1)
    record(tmp_path, run, **changed)
    found = frontier({"ppo": [run]})
    assert reason in found.refused
    assert (found.best_of_n, found.record) == ((), None)


def test_without_a_record_the_command_is_named(tmp_path: Path) -> None:
    assert "safebench report --best-of-n" in frontier({"ppo": [straight(tmp_path, "ppo", 0, 0.1)]}).refused


def test_a_torn_record_is_refused(tmp_path: Path) -> None:
    run = straight(tmp_path, "ppo", 0, 0.1)
    scores = record(tmp_path, run) / "scores.csv"
    scores.write_text(scores.read_text(encoding="utf-8").replace("1,0,1.0", "1,0,one"), encoding="utf-8")
    assert "damaged" in frontier({"ppo": [run]}).refused
    scores.write_text(scores.read_text(encoding="utf-8").replace("1,0,one", "1,0,"), encoding="utf-8")
    assert "lacks scores" in frontier({"ppo": [run]}).refused
