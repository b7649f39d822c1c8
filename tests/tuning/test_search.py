"""Equal tuning: knobs, points, the winner's rule, the tuned experiment as a file, and the command end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.analysis import runs
from safebench.analysis.compare import compare
from safebench.analysis.scalars import BY_KEY
from safebench.cli.main import main
from safebench.cli.request import RunRequest
from safebench.cli.train import plan
from safebench.errors import UsageError
from safebench.tuning.search import Point, Search, Tunable, criterion, points, search, tunable
from tests.support.synthetic import healthy, write_run

JUDGE = BY_KEY["judge_final"]
RATE = "tuning: {knobs: {update: {learning_rate: {low: 1e-4, high: 1e-2, scale: log}}}}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: experiments then come from the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(text: str, name: str = "mine") -> str:
    """Write an experiment that stands on its own, beside a base without knobs."""
    Path("_base.yaml").write_text("update: {learning_rate: 1e-3}\n", encoding="utf-8")
    Path(f"{name}.yaml").write_text(f"extends: _base\nalgorithm: ppo\n{text}", encoding="utf-8")
    return f"{name}.yaml"


def refused(experiment: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        tunable(experiment, **options)
    assert caught.value.hint
    return str(caught.value)


# Knobs


@pytest.mark.parametrize("name", [name for name, _ in config.experiments()])
def test_every_shipped_experiment_names_its_learning_rate_under_every_ordinary_preset(name: str) -> None:
    for preset in ("default", "large"):
        found = tunable(name, preset=preset)
        assert found.settings == config.resolve(name, preset=preset)
        assert "update.learning_rate" in found.knobs
        assert all(found.knobs[key].low <= value <= found.knobs[key].high for key, value in found.published.items())
    assert "tuning" not in config.dump(config.resolve(name))
    assert "tuned" not in config.dump(config.resolve(name))


def test_each_names_its_own_knobs_beside_it() -> None:
    assert set(tunable("ppo").knobs) == {"update.learning_rate", "reward.kl_coefficient"}
    assert set(tunable("safe").knobs) == {"update.learning_rate", "penalty.coefficient", "penalty.base_threshold"}
    assert set(tunable("ppo-matched").knobs) == {"update.learning_rate", "reward.kl_coefficient"}, "its penalty is off"
    assert set(tunable("safe", preset="stress-lr3").knobs) == {"penalty.coefficient", "penalty.base_threshold"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no knobs"),
        ("tuning: {knobs: {}}\n", "names no knobs"),
        ("tuning: 3\n", "tuning: is a section"),
        ("tuning: {knob: {}}\n", "tuning.knob: unknown key; there is knobs"),
        ("tuning: {knobs: {update: {rate: {low: 1, high: 2}}}}\n", "tuning.knobs.update.rate: unknown key"),
        ("tuning: {knobs: {update: {learning_rat: {low: 1, high: 2}}}}\n", "did you mean update.learning_rate?"),
        ("tuning: {knobs: {update.learning_rate: {low: 1, high: 2}}}\n", "write the key as sections"),
        ("tuning: {knobs: {update: {learning_rate: 3}}}\n", "is a section"),
        ("tuning: {knobs: {update: {learning_rate: {low: 2, high: 1}}}}\n", "low (2) must be below high (1)"),
        ("tuning: {knobs: {update: {learning_rate: {low: 1, high: 1}}}}\n", "low (1) must be below high (1)"),
        ("tuning: {knobs: {loss: {clip: {low: 0, high: 1, scale: log}}}}\n", "scale: log needs a low above 0"),
        ("tuning: {knobs: {loss: {clip: {low: 0, hihg: 1}}}}\n", "tuning.knobs.loss.clip.hihg"),
        ("tuning: {knobs: {loss: {clip: {low: 0}}}}\n", "tuning.knobs.loss.clip.high: is missing"),
        ("tuning: {knobs: {loss: {clip: {low: 0.5, high: 1}}}}\n", "outside of its knob's range, 0.5 to 1"),
        ("tuning: {knobs: {advantage: {whiten: {low: 0, high: 1}}}}\n", "is no number"),
        ("tuning: {knobs: {seed: {low: 0, high: 1}}}\n", "changes nothing that a run computes"),
        ("tuning: {knobs: {penalty: {coefficient: {low: 0, high: 1}}}}\n", "a section that is off"),
    ],
)
def test_what_is_no_knob_is_refused(text: str, expected: str) -> None:
    assert expected in refused(file(text))


def test_all_faults_are_told_at_once() -> None:
    said = refused(file("tuning: {knobs: {seed: {low: 0, high: 1}, loss: {clip: {low: 2, high: 1}}}}\n"))
    assert said.startswith("2 faults")


def test_a_knob_that_the_command_line_sets_is_refused() -> None:
    assert "tuning would not change it" in refused("ppo", overrides=["update.learning_rate=1e-3"])
    Path("more.yaml").write_text("reward: {kl_coefficient: 0.1}\n", encoding="utf-8")
    assert "tuning would not change it" in refused("ppo", files=["more.yaml"])


def test_the_command_line_can_move_a_range_and_a_file_takes_a_knob_away() -> None:
    wider = ["update.steps=3", "tuning.knobs.update.learning_rate.high=0.5"]
    assert tunable("ppo", overrides=wider).knobs["update.learning_rate"].high == 0.5
    assert list(tunable(file(RATE)).knobs) == ["update.learning_rate"]
    Path("child.yaml").write_text("extends: ppo\ntuning: {knobs: {reward: null}}\n", encoding="utf-8")
    assert list(tunable("child.yaml").knobs) == ["update.learning_rate"]


# Points


def test_points_begin_with_the_published_setting_stay_in_range_and_are_the_same_every_time() -> None:
    found = tunable("safe")
    chosen = points(found, 16)
    assert chosen[0].values == found.published
    assert [point.number for point in chosen] == [*range(1, 17)]
    assert chosen == points(found, 16)
    assert points(found, 5) == chosen[:5], "a larger budget goes on where a smaller one ended"
    for point in chosen:
        assert all(found.knobs[key].low <= value <= found.knobs[key].high for key, value in point.values.items())  # type: ignore[operator]
    assert len({json.dumps(point.values) for point in chosen}) == 16


def test_points_halve_the_range_on_its_scale() -> None:
    text = "update: {epochs: 1}\n" + RATE.replace("}}}}", "}, epochs: {low: 1, high: 4}}}}")
    values = [point.values for point in points(tunable(file(text)), 4)]
    assert values[1]["update.learning_rate"] == 1e-3, "the middle of 1e-4 to 1e-2 by logarithm; base 2"
    assert values[1]["update.epochs"] == 2, "a third of the way from 1 to 4; base 3"
    assert values[2] == {"update.learning_rate": 3.16e-4, "update.epochs": 3}
    assert all(isinstance(value["update.epochs"], int) for value in values)


def test_whole_numbers_give_no_more_points_than_there_are() -> None:
    found = tunable(file("tuning: {knobs: {update: {epochs: {low: 1, high: 3}}}}\n"))
    assert len(points(found, 3)) == 3
    with pytest.raises(UsageError, match="have 3 different points, and 4 are asked for"):
        points(found, 4)


# The plan


def planned(
    experiments: Sequence[str] = ("ppo", "safe"), budget: int = 8, key: str = "judge_final", **asked: Any
) -> Any:
    return plan(RunRequest(experiments, **({"seeds": "1000-1001"} | asked)), budget, key)


def test_every_experiment_gets_the_same_number_of_runs_on_the_same_seeds() -> None:
    found = planned(preset="smoke")
    for candidate in found.candidates:
        made = [settings for of_point in candidate.runs for settings in of_point]
        assert len(made) == len(set(made)) == 8
        assert [settings.seed for settings in made] == [1000, 1001] * 4
        assert candidate.runs[0][0] == config.resolve(candidate.title, overrides=["seed=1000"])
    assert "2 experiments, 4 points each, seeds 1000, 1001: 16 pilot runs" in found.told


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seeds": "0-1"}, "0 is below 1000"),
        ({"seeds": "1000,999"}, "999 is below 1000"),
        ({"budget": 7}, "no whole number of points"),
        ({"budget": 2}, "the published point alone"),
        ({"key": "judge_finl"}, "did you mean judge_final?"),
        ({"key": "judge_matched"}, "depends on the runs"),
        ({"key": "entropy_final"}, "no better and worse"),
        ({"overrides": ["reward.judge=null"]}, "needs a judge"),
        ({"preset": "stress"}, "several presets"),
        ({"experiments": ["ppo", "ppo@default"]}, "ppo is asked for twice"),
    ],
)
def test_what_cannot_be_planned_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(**options)
    assert expected in str(caught.value)
    assert caught.value.hint


# The winner


def searched(
    root: Path, judges: Sequence[Sequence[float | None]], *, states: Sequence[str] = (), key: str = "judge_final"
) -> Search:
    """Make a search of ppo whose points end at ``judges``, a value per seed; None: the judge was never asked."""
    chosen = points(tunable("ppo"), len(judges))
    found = []
    for point, ends in zip(chosen, judges, strict=True):
        folders = []
        for seed, end in enumerate(ends, start=1000):
            curves = healthy(seed, 20)
            curves["eval/judge"] = [None] * 20 + [end]
            curves["tokens"] = [None, *(10.0 * step for step in range(1, 21))]
            curves["time/step"] = [None, *[0.5] * 20]
            curves["time/evaluate"] = [1.0, *[None] * 20]
            state = states[point.number - 1] if states else "finished"
            folders.append(write_run(root, "ppo", seed, curves, state=state, folder=f"ppo-{point.number}"))
        found.append((point, [runs.read(folder) for folder in folders]))
    return search("ppo", tunable("ppo"), BY_KEY[key], found)


def test_the_best_mean_wins(tmp_path: Path) -> None:
    assert searched(tmp_path, [(1.0, 1.0), (0.9, 1.3), (2.0, 0.1)]).winner.point.number == 2


def test_a_tie_goes_to_the_published_setting_then_to_the_earlier_point(tmp_path: Path) -> None:
    assert searched(tmp_path / "a", [(1.0, 1.0), (1.0, 1.0), (0.5, 1.5)]).winner.point.number == 1
    assert searched(tmp_path / "b", [(0.0, 1.0), (1.0, 1.0), (0.5, 1.5)]).winner.point.number == 2


def test_a_crashed_run_counts_with_what_it_has(tmp_path: Path) -> None:
    found = searched(tmp_path / "a", [(0.5, 0.5), (0.4, -3.0)], states=["finished", "unstable"])
    assert found.winner.point.number == 1, "its mean is over both of its runs"
    assert found.trials[1].estimate.value == pytest.approx(-1.3)
    assert [pilot.crashed for pilot in found.trials[1].pilots] == [True, True]
    assert searched(tmp_path / "b", [(0.5, 0.5), (0.8, 0.8)], states=["finished", "unstable"]).winner.point.number == 2


def test_a_point_that_was_not_measured_on_every_seed_cannot_win(tmp_path: Path) -> None:
    assert searched(tmp_path / "a", [(0.5, 0.5), (9.0, None)]).winner.point.number == 1
    with pytest.raises(UsageError, match="no point of ppo has judge_final in every pilot run"):
        _ = searched(tmp_path / "b", [(0.5, None), (9.0, None)]).winner


def test_where_less_is_better_the_least_wins(tmp_path: Path) -> None:
    found = searched(tmp_path, [(1.0, 1.0), (2.0, 2.0)])
    sunk = replace(found, criterion=replace(JUDGE, direction="down"))
    assert (found.winner.point.number, sunk.winner.point.number) == (2, 1)


def test_the_cost_is_over_all_pilot_runs(tmp_path: Path) -> None:
    record = searched(tmp_path, [(1.0, 1.0), (2.0, 2.0)]).record
    assert (record.points, record.runs, record.steps, record.tokens) == (2, 4, 4 * 20, 4 * 200)
    assert record.seconds == 4 * (20 * 0.5 + 1.0)
    assert record.seeds == (1000, 1001)


def test_a_criterion_is_known_by_its_key() -> None:
    assert criterion("judge_final", judged=True) is JUDGE
    assert criterion("proxy_final", judged=False) is BY_KEY["proxy_final"]


# The tuned experiment


def test_the_tuned_file_differs_from_the_published_experiment_in_the_knobs_alone(tmp_path: Path) -> None:
    found = searched(tmp_path, [(1.0, 1.0), (2.0, 2.0)])
    path = tmp_path / "ppo-tuned.yaml"
    path.write_text(found.to_yaml(tmp_path), encoding="utf-8")
    tuned, published = config.resolve(str(path)), config.resolve("ppo")
    assert tuned.experiment == "ppo-tuned"
    assert tuned.tuned == found.record
    changed = {key: value for key, _, value in config.changes(tuned, published)}
    assert {key for key in changed if not key.startswith("tuned")} == {
        "experiment",
        "description",
        *found.tunable.knobs,
    }
    for key, value in found.winner.point.values.items():
        assert dict(config._leaves(tuned))[key] == value
    same = tuned.model_copy(update={"tuned": None, "description": "", "experiment": "ppo"})
    assert config.settings_hash(same) == config.settings_hash(tuned), "a run computes the same, whatever its record"
    assert config.load(_saved(tmp_path, tuned)) == tuned
    assert "is tuned already, from ppo" in refused(str(path))


def _saved(folder: Path, settings: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(config.dump(settings), encoding="utf-8")
    return path


def test_a_file_tuned_under_a_preset_stands_above_that_preset_alone(tmp_path: Path) -> None:
    found = searched(tmp_path, [(1.0, 1.0), (2.0, 2.0)])
    large = replace(found, tunable=tunable("ppo", preset="large"), trials=tuple(
        replace(trial, point=Point(trial.point.number, {"update.learning_rate": 2e-5})) for trial in found.trials
    ))  # fmt: skip
    path = tmp_path / "large.yaml"
    path.write_text(large.to_yaml(tmp_path), encoding="utf-8")
    assert config.resolve(str(path), preset="large").update.learning_rate == 2e-5
    assert config.resolve(str(path), preset="large").experiment == "ppo-tuned@large"
    assert config.resolve(str(path), preset="large").model == config.resolve("ppo", preset="large").model
    assert config.resolve(str(path), preset="stress-lr3").update.learning_rate == 3e-3
    assert config.resolve(str(path), preset="large", overrides=["update.learning_rate=1"]).update.learning_rate == 1


def test_a_file_of_the_users_is_found_from_where_the_tuned_one_lies(tmp_path: Path) -> None:
    mine = file("tuning: {knobs: {loss: {clip: {low: 0.1, high: 0.4}}}}\n")
    made = Search(
        mine, Tunable(config.resolve(mine), tunable(mine).knobs), JUDGE, searched(tmp_path, [(1.0,), (0.0,)]).trials
    )
    (tmp_path / "results" / "tuning").mkdir(parents=True)
    path = tmp_path / "results" / "tuning" / "mine-tuned.yaml"
    path.write_text(made.to_yaml(path.parent), encoding="utf-8")
    assert config.resolve(str(path)).experiment == "mine-tuned"


def test_a_comparison_tells_what_tuning_cost_and_holds_it_for_no_difference_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "ppo-tuned.yaml"
    path.write_text(searched(tmp_path / "pilots", [(1.0, 1.0), (2.0, 2.0)]).to_yaml(tmp_path), encoding="utf-8")
    groups = {
        name: [runs.read(write_run(tmp_path, experiment, seed, healthy(seed, 20), folder=name)) for seed in range(2)]
        for name, experiment in (("ppo", "ppo"), ("ppo-tuned", str(path)))
    }
    made = compare(groups)
    line = (
        "tuning of ppo-tuned from ppo by judge_final, 2 points on seeds 1000, 1001: "
        "4 pilot runs, 80 steps, 800 tokens, 44 s"
    )
    assert [footer for footer in made.footers if footer.startswith("tuning")] == [line]
    assert {unequal.key for unequal in made.fairness} == {"update.learning_rate", "reward.kl_coefficient"}
    assert made.unmatched == ()


# The command


def test_a_dry_run_prints_the_points_and_makes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "ppo", "safe", "--budget", "6", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Nothing is run. tune: 2 experiments, 3 points each" in out
    assert out.count("published") == 2
    assert not [*here.iterdir()]


def test_a_refusal_ends_with_2_before_any_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "ppo", "--budget", "4", "--pilot-seeds", "0-1"]) == 2
    assert "0 is below 1000" in capsys.readouterr().err
    assert not [*here.iterdir()]


@pytest.mark.slow
def test_tune_end_to_end(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.runs import make_parts, overrides  # imports torch: not for the other tests of this file

    parts = make_parts(tmp_path_factory.mktemp("parts"))
    given = [one for one in overrides(parts, update__steps=2) if not one.startswith("update.learning_rate")]
    sets = [word for one in given for word in ("--set", one)]
    command = ["tune", "ppo", "--budget", "2", "--pilot-seeds", "1000", "--criterion", "proxy_final", *sets]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "cost: 2 pilot runs, 4 steps" in out
    assert out.count("winner") == 1
    assert "ppo point 2 seed 1000: finished" in err
    folder = here / "results" / "tuning"
    (outcome,) = folder.glob("*.json")
    found = json.loads(outcome.read_text())
    assert [len(point["runs"]) for point in found["points"]] == [1, 1]
    best = max(found["points"], key=lambda point: point["mean"])
    assert found["winner"] == best["number"]
    assert runs.find(here / "results") == [], "no other command takes pilot runs for results"
    (tuned,) = folder.glob("*-tuned.yaml")
    before = tuned.read_bytes()

    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err.count("finished before, kept") == 2
    assert tuned.read_bytes() == before

    asked = ["compare", "ppo", str(tuned), "--seeds", "0", "--run", *sets]
    assert f"next: safebench compare ppo {tuned.relative_to(here)} --run" in out
    assert main(asked) == 0
    assert "tuning of ppo-tuned from ppo by proxy_final" in " ".join(capsys.readouterr().out.split())
