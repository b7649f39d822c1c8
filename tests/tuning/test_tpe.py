"""Points that Optuna chooses: from what, in which ranges, again the same; and the command from its first run on.

Optuna is real in all of it. Where no training is of interest, runs are written in place of made.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from safebench import config, doctor
from safebench.analysis import runs
from safebench.analysis.compare import tunings
from safebench.analysis.scalars import BY_KEY
from safebench.cli.main import main
from safebench.cli.request import RunRequest
from safebench.cli.train import plan
from safebench.config.schema import Knob, Settings, Tuned
from safebench.errors import MissingResource, UsageError
from safebench.runner.progress import Result, interrupted
from safebench.tuning import tpe
from safebench.tuning.search import Pilot, Point, Search, Trial, Tunable, points, tunable, value_of
from tests.support.synthetic import healthy, leave, write_run

JUDGE = BY_KEY["judge_final"]
RATE = "update: {learning_rate: {low: 1e-4, high: 1e-2, scale: log}}"
EPOCHS = "update: {epochs: {low: 1, high: 3}}"
OPTUNA = ["--sampler", "optuna"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: experiments then come from the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def knobs(text: str) -> Tunable:
    """Return an experiment with these knobs alone, whose learning rate is 1e-3 and which takes two epochs."""
    Path("_base.yaml").write_text("update: {learning_rate: 1e-3, epochs: 2}\n", encoding="utf-8")
    Path("mine.yaml").write_text(f"extends: _base\nalgorithm: ppo\ntuning: {{knobs: {{{text}}}}}\n", encoding="utf-8")
    return tunable("mine.yaml")


def trial(point: Point, *values: float) -> Trial:
    """Return a trial with these values of the criterion, a seed each; NaN: not measured."""
    pilots = (Pilot(1000 + i, "", "finished", value, False, 1, 1, 1.0) for i, value in enumerate(values))
    return Trial(point, tuple(pilots))


def searched(found: Tunable, chosen: Sequence[Point], value: Callable[[Mapping[str, Any]], float]) -> Search:
    return Search("mine", found, JUDGE, tuple(trial(point, value(point.values)) for point in chosen), "optuna")


def rate(values: Mapping[str, Any]) -> float:
    """Return the logarithm of the learning rate: the more, the better."""
    return math.log10(values["update.learning_rate"])


def epochs(values: Mapping[str, Any]) -> float:
    return float(values["update.epochs"])


def proposed(found: Search, count: int, value: Callable[[Mapping[str, Any]], float] = rate) -> list[Point]:
    """Return the points that bring a search to ``count``, each chosen from the results of all before it."""
    chosen = []
    while len(found.trials) < count:
        chosen.append(tpe.propose(found))
        found = replace(found, trials=(*found.trials, trial(chosen[-1], value(chosen[-1].values))))
    return chosen


# The first half


@pytest.mark.parametrize(("count", "first"), [(3, 2), (4, 2), (5, 3), (8, 4), (9, 5)])
def test_the_first_half_is_haltons_with_the_published_setting_in_front(count: int, first: int) -> None:
    safe = tunable("safe")
    chosen = tpe.first_points(safe, count)
    assert chosen == points(safe, count)[:first]
    assert [point.source for point in chosen] == ["published", *["halton"] * (first - 1)]


def test_a_search_that_has_too_few_points_is_refused_before_its_first_half_is_run() -> None:
    found = knobs(EPOCHS)
    assert len(tpe.first_points(found, 3)) == 2
    with pytest.raises(UsageError, match="have 3 different points, and 4 are asked for"):
        tpe.first_points(found, 4)


# What is chosen


def test_points_stay_in_range_at_three_digits_whole_where_the_setting_is_and_none_comes_twice() -> None:
    found = knobs("update: {learning_rate: {low: 1e-4, high: 1e-2, scale: log}, epochs: {low: 1, high: 4}}")
    first = tpe.first_points(found, 24)
    chosen = proposed(searched(found, first, rate), 24)
    assert [point.number for point in chosen] == [*range(13, 25)]
    assert {point.source for point in chosen} == {"optuna"}
    for values in (point.values for point in chosen):
        assert list(values) == list(found.knobs)
        chosen_rate, count = values["update.learning_rate"], values["update.epochs"]
        assert isinstance(chosen_rate, float) and 1e-4 <= chosen_rate <= 1e-2
        assert chosen_rate == float(f"{chosen_rate:.3g}")
        assert isinstance(count, int) and 1 <= count <= 4
    assert len({json.dumps(point.values) for point in (*first, *chosen)}) == 24


@pytest.mark.parametrize(
    ("low", "high", "scale", "whole", "told"),
    [
        (0.5, 4.5, "linear", True, "IntDistribution(high=4, log=False, low=1, step=1)"),
        (1.5, 64.0, "log", True, "IntDistribution(high=64, log=True, low=2, step=1)"),
        (0.5, 4.5, "linear", False, "FloatDistribution(high=4.5, log=False, low=0.5, step=None)"),
        (0.5, 4.5, "log", False, "FloatDistribution(high=4.5, log=True, low=0.5, step=None)"),
    ],
)
def test_optuna_is_told_a_knobs_range_and_scale(low: float, high: float, scale: Any, whole: bool, told: str) -> None:
    import optuna

    assert str(tpe._distribution(optuna, Knob(low=low, high=high, scale=scale), whole)) == told


def test_a_range_of_whole_numbers_ends_at_the_last_of_them() -> None:
    found = knobs("update: {epochs: {low: 0.5, high: 6.5, scale: log}}")
    chosen = proposed(searched(found, tpe.first_points(found, 6), epochs), 6, epochs)
    tried = {point.values["update.epochs"] for point in (*points(found, 6)[:3], *chosen)}
    assert tried == {1, 2, 3, 4, 5, 6}


def test_the_same_results_give_the_same_points_and_others_give_others() -> None:
    found = knobs(RATE)
    begun = searched(found, tpe.first_points(found, 12), rate)
    chosen = proposed(begun, 12)
    assert proposed(begun, 12) == chosen
    assert proposed(begun, 8) == chosen[:2], "a point depends on those before it alone"
    other = replace(begun, trials=(*begun.trials[:5], trial(begun.trials[5].point, 9.0)))
    assert proposed(other, 12) != chosen


@pytest.mark.parametrize(("direction", "above"), [("up", True), ("down", False)])
def test_points_go_where_the_criterion_is_better(direction: str, above: bool) -> None:
    found = knobs(RATE)
    begun = replace(searched(found, tpe.first_points(found, 20), rate), criterion=replace(JUDGE, direction=direction))
    halves = [rate(point.values) > -3 for point in proposed(begun, 20)]
    assert halves.count(above) > 2 * halves.count(not above)


def test_a_point_that_a_seed_did_not_measure_is_told_as_failed() -> None:
    found = knobs(RATE)
    begun = searched(found, tpe.first_points(found, 12), rate)
    best = max(range(6), key=lambda i: rate(begun.trials[i].point.values))

    def with_best(*values: float) -> Point:
        told = trial(begun.trials[best].point, *values)
        return tpe.propose(replace(begun, trials=(*begun.trials[:best], told, *begun.trials[best + 1 :])))

    assert with_best(9.0, math.nan) == with_best(-9.0, math.nan) == with_best(math.nan, math.nan)
    assert with_best(9.0, 9.0) != with_best(9.0, math.nan)


def test_where_every_point_failed_others_are_still_chosen() -> None:
    found = knobs(RATE)
    chosen = proposed(searched(found, tpe.first_points(found, 6), lambda values: math.nan), 6, lambda values: math.nan)
    assert len({rate(point.values) for point in chosen}) == 3


def test_a_published_setting_that_is_off_lies_in_no_range_and_decides_nothing() -> None:
    found = knobs("loss: {value_huber: {low: 0.1, high: 10, scale: log}}")
    assert found.published == {"loss.value_huber": None}
    first = tpe.first_points(found, 8)

    def next_with(published: float) -> Point:
        return tpe.propose(searched(found, first, lambda values: values["loss.value_huber"] or published))

    assert next_with(-99.0) == next_with(99.0)
    assert 0.1 <= next_with(0.0).values["loss.value_huber"] <= 10  # type: ignore[operator]


@pytest.mark.parametrize("best", [1, 2, 3])
def test_a_point_that_was_tried_is_drawn_again_until_one_is_new(best: int) -> None:
    found = knobs(EPOCHS)
    begun = searched(found, tpe.first_points(found, 3), lambda values: -abs(values["update.epochs"] - best))
    (left,) = {1, 2, 3} - {one.point.values["update.epochs"] for one in begun.trials}
    assert tpe.propose(begun) == Point(3, {"update.epochs": left}, "optuna")


def test_where_no_draw_is_new_the_next_of_haltons_points_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = knobs(EPOCHS)
    begun = searched(found, tpe.first_points(found, 3), epochs)
    monkeypatch.setattr(tpe, "PATIENCE", 0)
    assert proposed(begun, 3, epochs) == [points(found, 3)[2]]
    assert points(found, 3)[2].source == "halton"


def test_optuna_says_nothing_and_its_own_level_of_logging_is_left(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import optuna

    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("optuna"), optuna.logging.get_verbosity()
    logger.addHandler(listener)
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        optuna.create_study()
        assert heard, "a new study is told"
        heard.clear()
        found = knobs(RATE)
        proposed(searched(found, tpe.first_points(found, 6), rate), 6)
        assert heard == []
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(level)
        logger.removeHandler(listener)
    assert not recwarn.list


# Without it


def test_without_optuna_the_error_says_what_to_install_and_halton_needs_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    command = ["tune", "ppo", "--budget", "6", "--dry-run"]
    assert main([*command, *OPTUNA]) == MissingResource.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "--sampler optuna needs Optuna, which is not installed" in said
    (requirement,) = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["tune"]
    assert f'hint: Install it with: pip install "{requirement}" (the extra tune)' in said
    assert main(command) == 0


def test_the_doctor_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    (check,) = [check for check in doctor._packages() if check.name == "optuna"]
    assert (check.ok, check.text) == (None, "not installed (optional): pip install safebench[tune]")


def test_an_optuna_that_is_broken_is_not_called_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    (here / "optuna").mkdir()
    (here / "optuna" / "__init__.py").write_text("import something_that_optuna_needs\n")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(ModuleNotFoundError, match="something_that_optuna_needs"):
        tpe.first_points(tunable("ppo"), 4)


# The plan


@pytest.mark.parametrize(
    ("budget", "said", "hint"),
    [
        (4, "is 2 points: they leave --sampler optuna none to choose", "Write --budget 6."),
        (2, "is the published point alone", "Write --budget 6."),
        (3, "is no whole number of points", "Write --budget 6."),
        (9, "is no whole number of points", "Write --budget 8."),
    ],
)
def test_a_budget_that_leaves_nothing_to_choose_is_refused(budget: int, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(RunRequest(["ppo"], seeds="1000-1001"), budget, "judge_final", "optuna")
    assert said in str(caught.value)
    assert caught.value.hint == hint


def test_several_processes_per_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = RunRequest(["ppo"], seeds="1000-1001")
    assert plan(asked, 6, "judge_final").count == 3
    with pytest.raises(UsageError, match="--sampler optuna and several processes per run do not go together"):
        plan(asked, 6, "judge_final", "optuna")


def test_a_dry_run_prints_haltons_points_and_says_how_many_follow(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", "ppo", "safe", "--budget", "10", "--dry-run"]
    assert main([*command, *OPTUNA]) == 0
    out = capsys.readouterr().out
    told = "tune: 2 experiments, 5 points each (2 of them chosen by Optuna), seeds 1000, 1001: 20 pilot runs"
    assert told in out
    assert out.endswith("\nOf each experiment Optuna chooses 2 more from the results.\n")
    assert main(command) == 0
    halton = capsys.readouterr().out
    assert "Optuna" not in halton
    assert _rows(out) == [row for row in _rows(halton) if row[0] in ("1", "2", "3")]
    assert [row[0] for row in _rows(out)] == ["1", "2", "3"] * 2
    assert not [*here.iterdir()]


def _rows(text: str) -> list[list[str]]:
    """Return the words of each row of the printed tables: a point's number and its values."""
    return [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]


# The command


@dataclass
class Bench:
    """Stands in for training: writes each run, better the nearer its learning rate is to 3e-3."""

    made: list[str] = field(default_factory=list)
    """Runs made, by name, in their order."""
    stops_at: int | None = None
    """How many runs are made before the user stops the next one."""
    stopped: bool = False
    failing: str = ""
    """Begins the name of runs that fail."""

    def one(self, settings: Settings, root: Path, view: Any, if_exists: str, name: Callable[[Settings], str]) -> Result:
        folder = config.run_folder(root, settings)
        assert not self.stopped, "after an interruption no run begins"
        if len(self.made) == self.stops_at:
            self.stopped = True
            return interrupted(settings, root)
        if self.failing and name(settings).startswith(self.failing):
            return Result(settings, folder, "failed", {}, True, "no tea", "Make tea.", 3)
        self.made.append(name(settings))
        curves = healthy(settings.seed, 20)
        judge = -((math.log10(value_of(settings, "update.learning_rate")) + 2.5) ** 2) + 1e-3 * settings.seed
        leave(folder, settings, curves | {"eval/judge": [None] * 20 + [judge]})
        return Result(settings, folder, "finished")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench()
    monkeypatch.setattr("safebench.runner.pool.one", lambda *arguments: found.one(*arguments))
    return found


def outcome(root: Path, experiment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "results" / "tuning" / f"{experiment}.json").read_text())
    return found


COMMAND = ["tune", "ppo", "safe", "--budget", "10", *OPTUNA]
SHORT = ["tune", "ppo", "safe", "--budget", "5", "--pilot-seeds", "1000", *OPTUNA]


def test_every_experiment_gets_the_whole_budget_and_takes_turns(
    here: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(COMMAND) == 0
    turns = [(point, arm, seed) for point in range(1, 6) for arm in ("ppo", "safe") for seed in (1000, 1001)]
    assert bench.made == [f"{arm} point {point} seed {seed}" for point, arm, seed in turns]
    for arm in ("ppo", "safe"):
        found = outcome(here, arm)
        assert found["sampler"] == "optuna"
        assert [point["source"] for point in found["points"]] == ["published", "halton", "halton", *["optuna"] * 2]
        assert [len(point["runs"]) for point in found["points"]] == [2] * 5
        assert found["cost"]["runs"] == 10
        assert found["winner"] == max(found["points"], key=lambda point: point["mean"])["number"]
    out, err = capsys.readouterr()
    assert "5 points each (2 of them chosen by Optuna)" in err
    assert out.count("optuna") == 4, "each point that it chose is marked"
    assert "A new study" not in out + err


def test_what_is_chosen_is_proposed_from_the_runs_as_they_lie(here: Path, bench: Bench) -> None:
    assert main(COMMAND) == 0
    for arm in ("ppo", "safe"):
        found, known = tunable(arm), outcome(here, arm)["points"]
        told = [
            trial(Point(point["number"], point["values"]), *(run["value"] for run in point["runs"])) for point in known
        ]
        for number in (4, 5):
            again = tpe.propose(Search(arm, found, JUDGE, tuple(told[: number - 1])))
            assert again == Point(number, known[number - 1]["values"], "optuna")


def test_called_again_it_makes_no_run_twice_and_writes_the_same(
    here: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(COMMAND) == 0
    files = {path.name: path.read_bytes() for path in (here / "results" / "tuning").glob("*.*")}
    assert sorted(files) == ["ppo-tuned.yaml", "ppo.json", "safe-tuned.yaml", "safe.json"]
    bench.made.clear()
    capsys.readouterr()
    assert main(COMMAND) == 0
    assert bench.made == []
    assert capsys.readouterr().err.count("finished before, kept") == 20
    assert {path.name: path.read_bytes() for path in (here / "results" / "tuning").glob("*.*")} == files


@pytest.mark.parametrize("stops_at", [0, 5, 6, 7, 9])
def test_stopped_anywhere_the_same_command_goes_on_to_the_same_outcome(
    here: Path, bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stops_at: int
) -> None:
    (here / "whole").mkdir()
    monkeypatch.chdir(here / "whole")
    assert main(SHORT) == 0
    whole = [*bench.made]
    bench.made.clear()
    (here / "parts").mkdir()
    monkeypatch.chdir(here / "parts")
    bench.stops_at = stops_at
    capsys.readouterr()
    assert main(SHORT) == 130
    assert f"stopped: {10 - stops_at} of 10 pilot runs unfinished" in capsys.readouterr().err
    assert not [*Path("results").glob("tuning/safe.json")]
    bench.stops_at, bench.stopped = None, False
    assert main(SHORT) == 0
    assert sorted(bench.made) == sorted(whole), "each run once"
    for arm in ("ppo", "safe"):
        assert outcome(here / "parts", arm) == outcome(here / "whole", arm)


def test_where_a_run_fails_its_experiment_gets_no_more_points_and_the_others_get_theirs(
    here: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.failing = "ppo point 4"
    assert main(SHORT) == 3
    out, err = capsys.readouterr()
    assert "ppo: no outcome, 2 of 5 pilot runs are missing" in err
    assert "next:" not in out
    assert not (here / "results" / "tuning" / "ppo.json").exists()
    assert len(outcome(here, "safe")["points"]) == 5
    bench.failing = ""
    assert main(SHORT) == 0
    assert len(bench.made) == 10
    assert len(outcome(here, "ppo")["points"]) == 5


def test_the_record_names_the_sampler_and_a_comparison_tells_it(here: Path, bench: Bench) -> None:
    assert main(["tune", "ppo", "--budget", "6", *OPTUNA]) == 0
    tuned = here / "results" / "tuning" / "ppo-tuned.yaml"
    settings = config.resolve(str(tuned))
    assert settings.tuned is not None and settings.tuned.sampler == "optuna"
    run = runs.read(write_run(here, str(tuned), 0, healthy(0, 20), folder="ppo-tuned"))
    (line,) = tunings([run])
    assert "by judge_final, 3 points (sampler optuna) on seeds 1000, 1001: 6 pilot runs" in line


def test_a_record_from_before_there_was_a_choice_is_of_haltons_points(here: Path, bench: Bench) -> None:
    assert main(["tune", "ppo", "--budget", "4"]) == 0
    settings = config.resolve(str(here / "results" / "tuning" / "ppo-tuned.yaml"))
    assert settings.tuned is not None
    record = settings.tuned.model_dump(mode="json")
    assert record.pop("sampler") == "halton"
    assert Tuned(**record) == settings.tuned
    run = runs.read(write_run(here, "ppo", 0, healthy(0, 20), folder="old"))
    (line,) = tunings([replace(run, settings={**run.settings, "tuned": record})])
    assert "2 points on seeds" in line


@pytest.mark.slow
def test_tune_end_to_end(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.runs import make_parts, overrides  # imports torch: not for the other tests of this file

    parts = make_parts(tmp_path_factory.mktemp("parts"))
    given = [one for one in overrides(parts, update__steps=2) if not one.startswith("update.learning_rate")]
    sets = [word for one in given for word in ("--set", one)]
    command = ["tune", "ppo", "--budget", "3", "--pilot-seeds", "1000", "--criterion", "proxy_final", *OPTUNA, *sets]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "cost: 3 pilot runs, 6 steps" in out
    assert "ppo point 3 seed 1000: finished" in err
    assert f"next: safebench compare ppo {shlex.quote('results/tuning')}" in out
    (file,) = (here / "results" / "tuning").glob("*.json")
    before = file.read_bytes()
    assert [point["source"] for point in json.loads(before)["points"]] == ["published", "halton", "optuna"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("finished before, kept") == 3
    assert file.read_bytes() == before
