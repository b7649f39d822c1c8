"""Which runs and which rows: conditions on settings, keys of rows, nearest matches."""

from __future__ import annotations

from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.compare import Comparison, choose, compare, matching
from safebench.analysis.runs import Run
from safebench.errors import UsageError
from tests.support.synthetic import collapsing, healthy, write_run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """ppo at two learning rates, three seeds each, and safe."""
    root = tmp_path_factory.mktemp("results")
    for seed in range(3):
        write_run(root, "ppo", seed, collapsing(seed))
        write_run(root, "ppo", seed, healthy(seed), overrides=["update.learning_rate=1e-4"], folder="ppo-slow")
        write_run(root, "safe", seed, healthy(seed))
    return runs.find(root)


@pytest.fixture(scope="module")
def comparison(found: list[Run]) -> Comparison:
    return compare({arm: [run for run in found if run.variant == arm] for arm in ("ppo", "safe")})


def test_runs_are_chosen_by_their_settings_whatever_their_folder(found: list[Run]) -> None:
    slow = matching(found, ["update.learning_rate=1e-4"])
    assert [run.variant for run in slow] == ["ppo-slow"] * 3
    assert matching(found, ["update.learning_rate=1e-4", "seed=2"]) == [run for run in slow if run.seed == 2]
    assert matching(found, []) == found
    assert matching(found, ["update.learning_rate=0.5"]) == []


@pytest.mark.parametrize(
    ("condition", "hits"),
    [("update.epochs=2.0", 9), ("reward.normalise=true", 3), ("reward.normalise=1", 0), ("penalty=null", 6)],
)
def test_numbers_are_numbers_and_truth_is_none(found: list[Run], condition: str, hits: int) -> None:
    assert len(matching(found, [condition])) == hits


def test_a_condition_that_cannot_be_met_is_a_fault_with_advice(found: list[Run]) -> None:
    with pytest.raises(UsageError, match=r"did you mean update\.learning_rate"):
        matching(found, ["update.learning_rat=1"])
    with pytest.raises(UsageError, match="has no ="):
        matching(found, ["update.epochs"])


def test_rows_are_chosen_by_key_or_beginning_in_the_order_asked(comparison: Comparison) -> None:
    chosen = choose(comparison, ["kl", "judge_final", "kl_max"])
    assert [row.scalar.key for row in chosen.rows] == ["kl_mean", "kl_max", "kl_final", "judge_final"]
    assert choose(comparison, []) is comparison
    assert {row.scalar.key for row in choose(comparison, ["crash"]).rows} >= {"crash_rate", "crash/degenerate"}


def test_fewer_rows_make_no_test_easier(comparison: Comparison) -> None:
    whole = {test.scalar.key: test.adjusted for test in comparison.tests}
    (test,) = choose(comparison, ["judge_final"]).tests
    assert test.scalar.key == "judge_final"
    assert test.adjusted == whole["judge_final"]


def test_an_exact_key_is_not_a_beginning(comparison: Comparison) -> None:
    assert [row.scalar.key for row in choose(comparison, ["judge_gain"]).rows] == ["judge_gain"]


def test_an_unknown_row_is_a_fault_with_advice(comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="did you mean judge_final"):
        choose(comparison, ["jugde_final"])


def test_nothing_to_choose_from_is_nothing(tmp_path: Path) -> None:
    assert matching([], ["any.key=1"]) == []
