"""Two runs side by side: what differs in their settings and files, and where their curves part."""

from __future__ import annotations

import math

import pytest

from safebench.analysis import runs
from safebench.analysis.diff_runs import differences
from safebench.report.small_tables import difference_to_text
from tests.support.synthetic import CONSTANTS, healthy, write_run


def written(root, name, curves, seed=0, **options):
    return runs.read(write_run(root, name, seed, curves, **options))


def test_a_run_equals_itself_but_for_time(tmp_path):
    curves = healthy(0, 40)
    slower = {**curves, "time/step": [2 * (value or 0) for value in curves["time/step"]], "memory/peak": [7.0] * 41}
    found = differences(written(tmp_path, "ppo", curves), written(tmp_path, "ppo", slower, folder="again"))
    assert found.equal and found.first is None and found.common == tuple(range(41))
    assert (found.settings, found.environment, found.hashes, found.constants) == ({}, {}, {}, {})
    assert {part.column for part in found.parts} & {"time/step", "memory/peak", "crash/numeric", "step"} == set()
    assert {"reward/mean", "controller/phase", "eval/judge"} <= {part.column for part in found.parts}
    text = difference_to_text(found)
    assert f"equal in every digit, in all {len(found.parts)} columns" in text and "Settings: equal" in text


def test_the_first_step_that_differs_and_the_first_beyond_the_tolerance(tmp_path):
    curves = healthy(0, 40)
    other = {key: list(values) for key, values in curves.items()}
    other["kl/mean"][7] = math.nextafter(curves["kl/mean"][7], 1.0)  # the last bit
    other["kl/mean"][9] *= 1 + 0.9e-4
    other["kl/mean"][12] *= 1 + 1.1e-4
    other["entropy/mean"][11] *= 1 - 0.9e-4
    other["reward/mean"][7] = 0.0
    other["controller/phase"][30] = "plateau"
    other["loss/total"][20] = math.nan
    found = differences(written(tmp_path, "ppo", curves), written(tmp_path, "safe", other))
    parts = {part.column: part for part in found.parts if part.differs is not None}
    assert {key: (part.differs, part.beyond) for key, part in parts.items()} == {
        "kl/mean": (7, 12),
        "entropy/mean": (11, None),
        "reward/mean": (7, 7),
        "controller/phase": (30, 30),
        "loss/total": (20, 20),
    }
    assert found.first == parts["reward/mean"]  # of those that part at step 7 the first in the schema
    assert (found.first.first, found.first.second) == (repr(curves["reward/mean"][7]), "0.0")
    assert [part.column for part in found.groups["kl"]] == ["kl/mean"]
    assert found.settings["algorithm"] == ("ppo", "safe") and found.settings["penalty.coefficient"] == ("–", 0.1)
    assert not found.equal
    lines = difference_to_text(found).splitlines()
    assert any(line.split()[:3] == ["kl", "7", "12"] for line in lines)
    assert any(line.split()[:3] == ["entropy", "11", "never"] for line in lines)
    assert "  reward/mean parts first, at step 7: " in "\n".join(lines)


def test_nan_equals_nan_and_other_steps_are_told_apart_from_other_values(tmp_path):
    curves = {**healthy(0, 40), "reward/mean": [None, 1.0, math.nan, *[1.0] * 38]}
    other = {**curves, "eval/judge": [None if t == 20 else v for t, v in enumerate(curves["eval/judge"])]}
    del other["controller/phase"]
    found = differences(written(tmp_path, "ppo", curves), written(tmp_path, "ppo", other, folder="again"))
    assert found.equal and found.only == (("controller/phase",), ())
    assert {part.column: part.alone for part in found.parts if part.alone} == {"eval/judge": 1}
    text = difference_to_text(found)
    assert "alone at some steps: eval/judge (1 steps)" in text
    assert "measured only in the first: controller/phase" in text


def test_only_common_steps_are_compared_and_lengths_told(tmp_path):
    long, short = healthy(0, 40), {key: values[:11] for key, values in healthy(0, 40).items()}
    short["memory/peak"] = [1.0] * 11
    constants = {**CONSTANTS, "sigma0": 2.5, "hashes": {"model": "cc", "reward": "bb"}, "python": "3.12.0"}
    found = differences(
        written(tmp_path, "ppo", long),
        written(tmp_path, "ppo", short, folder="again", steps=40, state="interrupted", constants=constants),
    )
    assert (found.status, found.steps) == (("finished", "interrupted"), (40, 10))
    assert found.equal and found.common[-1] == 10
    assert found.hashes == {"hashes.model": ("aa", "cc")}
    assert found.environment == {"python": ("–", "3.12.0")} and found.constants == {"sigma0": (2.0, 2.5)}
    assert "second  embedded/again/seed-0: interrupted, 10 steps" in difference_to_text(found)


def test_runs_without_rows_have_no_step_in_common(tmp_path):
    run = written(tmp_path, "ppo", healthy(0, 10))
    other = write_run(tmp_path, "safe", 0, healthy(0, 10))
    (other / "metrics.csv").unlink()
    found = differences(run, runs.read(other))
    assert (found.common, found.equal, found.first) == ((), False, None)
    assert "no step in common" in difference_to_text(found)


@pytest.mark.parametrize("width", [60, 100])
def test_no_line_is_wider_than_asked_and_columns_line_up(tmp_path, width):
    constants = {**CONSTANTS, "platform": "Linux-" + "x" * 90, "versions": {"torch": "2.13.0+cpu"}}
    found = differences(
        written(tmp_path, "ppo", healthy(0, 20)),
        written(tmp_path, "safe", healthy(1, 20), constants=constants, overrides=["rollout.batch=64"]),
    )
    lines = difference_to_text(found, width).splitlines()
    assert max(map(len, lines)) <= width
    block = lines[lines.index("Settings") + 1 : lines.index("Settings") + 6]
    starts = {line.index(line.split()[-1]) for line in block if len(line.split()) == 3}
    assert len(starts) == 1
