"""Inert loss terms: found by value and gradient norm alone, the same live, from a file, in show and in compare."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from safebench import config
from safebench.analysis import runs
from safebench.analysis.compare import compare
from safebench.cli.main import main
from safebench.crashes.inert import LOGGED_STEPS, Inert, inert_in, sentence, watched
from safebench.metrics import LOSS_TERMS, MEASURED
from safebench.recording.layout import Status, read_status
from safebench.recording.recorder import Recorder
from safebench.training.run import execute
from tests.support.runs import make_parts, tiny_run
from tests.support.synthetic import CONSTANTS, healthy, write_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def rows(values, gradients, term="penalty"):
    """Make one row per pair of cells, from step 1 on."""
    pairs = zip(values, gradients, strict=True)
    return [{"step": i, f"loss/{term}": v, f"grad/{term}": g} for i, (v, g) in enumerate(pairs, 1)]


def test_ten_steps_in_a_row_make_a_term_inert_and_nine_do_not():
    assert LOGGED_STEPS == 10
    values = [0.1 * i for i in range(1, 11)]
    assert watched(rows(values, [0.0] * 10)).found() == (Inert("penalty", 1, 10, 10, 1.0),)
    assert watched(rows(values[:9], [0.0] * 9)).found() == ()


@pytest.mark.parametrize("term", LOSS_TERMS)
def test_every_named_term_is_watched(term):
    (found,) = watched(rows([-0.5, *[0.1] * 10], [0.0] * 11, term)).found()
    assert found == Inert(term, 1, 11, 11, -0.5)


def test_a_gradient_of_any_size_ends_the_stretch():
    values = [1.0] * 19
    assert watched(rows(values, [0.0] * 9 + [1e-300] + [0.0] * 9)).found() == ()
    assert watched(rows(values, [5e-324] * 19)).found() == ()
    (found,) = watched(rows([*values, 1.0], [0.0] * 9 + [1e-300] + [0.0] * 10)).found()
    assert (found.first, found.last, found.logged) == (11, 20, 10)


def test_a_gradient_later_does_not_hide_what_was_inert():
    assert watched(rows([1.0] * 12, [0.0] * 10 + [0.3, 0.3])).found()[0].last == 10


def test_the_longest_stretch_is_told():
    found = watched(rows([1.0] * 10 + [2.0] * 14, [0.0] * 10 + [1.0] * 3 + [0.0] * 11)).found()
    assert found == (Inert("penalty", 14, 24, 11, 2.0),)


@pytest.mark.parametrize("silent", [(0.0, 0.0), (1.0, None), (None, 0.0), (1.0, math.nan), (math.nan, 0.0), ("", "")])
def test_zero_values_gaps_and_nan_say_nothing(silent):
    value, gradient = silent
    assert watched(rows([value] * 40, [gradient] * 40)).found() == ()
    half = [1.0] * 5
    (found,) = watched(rows([*half, value, *half], [*[0.0] * 5, gradient, *[0.0] * 5])).found()
    assert found == Inert("penalty", 1, 11, 10, 1.0)
    assert watched(rows([*half, value, *half[1:]], [*[0.0] * 5, gradient, *[0.0] * 4])).found() == ()


def test_cells_as_text_are_read_as_numbers():
    assert watched(rows(["0.25"] * 10, ["0"] * 10)).found() == (Inert("penalty", 1, 10, 10, 0.25),)


def test_the_reference_runs_have_no_inert_term():
    found = runs.find(REFERENCE)
    assert len(found) == 20  # two comparisons of ten
    assert not [(run.variant, run.seed, inert_in(run)) for run in found if inert_in(run)]


def detached(seed):
    """Curves whose penalty is logged at every third step, without a gradient; the policy term has one."""
    curves = healthy(seed, 40)
    at = [t % 3 == 1 for t in range(41)]
    return curves | {
        "loss/penalty": [None, *[0.01 * t for t in range(1, 41)]],
        "grad/penalty": [0.0 if here else None for here in at],
        "loss/policy": [None, *[-0.02] * 40],
        "grad/policy": [0.4 if here else None for here in at],
    }


def test_show_and_compare_tell_it(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path, "ppo", seed, healthy(seed, 40))
        write_run(tmp_path, "safe", seed, detached(seed))
    found = runs.find(tmp_path)
    term = Inert("penalty", 1, 40, 14, 0.4)
    assert [inert_in(run) for run in found] == [(), (), (term,), (term,)]
    groups = {arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")}
    (warning,) = [text for text in compare(groups).warnings if "inert" in text]
    assert warning.startswith("safe: the loss term penalty is inert")
    assert "(seed 0: steps 1 to 40, 14 of them logged; seed 1: steps 1 to 40, 14 of them logged)" in warning
    for name, times in (("safe/seed-0", 1), ("ppo/seed-0", 0)):
        assert main(["show", name, "--results", str(tmp_path)]) == 0
        assert capsys.readouterr().out.count(sentence(term)) == times


@pytest.mark.parametrize("state", [Status.FINISHED, Status.UNSTABLE, Status.INTERRUPTED])
def test_the_recorder_tells_at_the_end_also_of_what_was_there_before_a_resume(tmp_path, state):
    settings = config.resolve("safe", overrides=["update.steps=12"])
    empty, told = dict.fromkeys(MEASURED), []
    with Recorder.open(tmp_path / "run", settings, CONSTANTS) as recorder:
        for row in rows([0.5] * 6, [0.0] * 6):
            recorder.step(empty | row)
        recorder.checkpoint(6, {"step": 6})
    with Recorder.open(tmp_path / "run", settings, CONSTANTS, after_step=6, notify=told.append) as recorder:
        for row in rows([0.5] * 12, [0.0] * 12)[6:]:
            recorder.step(empty | row)
        assert told == []
        recorder.finish(state)
    expected = [] if state is Status.INTERRUPTED else [sentence(Inert("penalty", 1, 12, 12, 0.5))]
    assert told == expected
    record = read_status(tmp_path / "run")
    assert record is not None
    assert list(record.notices) == expected


def test_the_released_arm_names_its_penalty_by_itself_and_safe_does_not(tmp_path, capsys):
    parts = make_parts(tmp_path)
    wanted = {"update__steps": 11, "recording__gradient_norms_every": 1, "penalty__asymmetric": "false"}
    for arm in ("safe-official", "safe"):
        outcome = execute(tiny_run(parts, arm, **wanted), tmp_path / "results")
        record = read_status(outcome.folder)
        assert record is not None
        told = [notice for notice in record.notices if "inert" in notice]
        assert [notice.split(" is inert")[0] for notice in told] == ["the loss term penalty"] * (arm == "safe-official")
        assert main(["show", str(outcome.folder)]) == 0
        assert capsys.readouterr().out.count("is inert") == (arm == "safe-official")
