"""Tune experiments: the same number of pilot runs for each, and the winner as an experiment file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safebench import config
from safebench.cli.asked import EMBEDDED, Asked, parse_seeds
from safebench.cli.options import IfExists
from safebench.cli.said import tell
from safebench.cli.tables import columns
from safebench.errors import UsageError
from safebench.evidence import runs
from safebench.evidence.notes import cost_told
from safebench.evidence.scalars import Scalar
from safebench.knobs import Tunable
from safebench.launch import Result, exit_code, is_main, launch, open_view
from safebench.recording.files import write_atomic
from safebench.settings import Settings
from safebench.tuning.points import Point, points
from safebench.tuning.search import Search, Trial, criterion, search

FOLDER = "tuning"
"""Where pilot runs and outcomes lie, below the results: no other command looks for runs there."""
FIRST_SEED = 1000
"""Comparisons count their seeds from 0."""


@dataclass(frozen=True)
class Candidate:
    """An experiment to tune: how it was asked for, its knobs, its points, and each point's settings, seed by seed."""

    name: str
    tunable: Tunable
    points: tuple[Point, ...]
    runs: tuple[tuple[Settings, ...], ...]

    @property
    def title(self) -> str:
        """The experiment with its preset."""
        return self.tunable.settings.experiment


@dataclass(frozen=True)
class Plan:
    """All pilot runs of a command."""

    asked: Asked
    criterion: Scalar
    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]

    @property
    def told(self) -> str:
        """The plan in a line."""
        count, seeds = len(self.candidates[0].points), ", ".join(map(str, self.seeds))
        several = "s" if len(self.candidates) > 1 else ""
        return (
            f"tune: {len(self.candidates)} experiment{several}, {count} points each, seeds {seeds}: "
            f"{len(self.candidates) * count * len(self.seeds)} pilot runs; criterion {self.criterion.key}"
        )


def plan(asked: Asked, budget: int, key: str) -> Plan:
    """Return the pilot runs that a budget means. Raises ``UsageError`` for whatever is wrong, before any run."""
    if len(config.expand_preset(asked.preset)) > 1:
        raise UsageError(f"--preset {asked.preset} is several presets", "Tune under one preset at a time.")
    seeds = _pilot_seeds(asked.seeds or "")
    count = _points_of(budget, len(seeds))
    tunables = asked.tunable()
    names = list(dict.fromkeys(asked.experiments))
    titles = [tunable.settings.experiment for tunable in tunables]
    if doubled := sorted({title for title in titles if titles.count(title) > 1}):
        raise UsageError(f"{', '.join(doubled)} is asked for twice", "Name each experiment once.")
    chosen = criterion(key, judged=all(tunable.settings.reward.judge is not None for tunable in tunables))
    pairs = zip(names, tunables, strict=True)
    return Plan(asked, chosen, tuple(seeds), tuple(_candidate(asked, *pair, count, seeds) for pair in pairs))


def dry_run(plan: Plan) -> int:
    """Print every experiment's points."""
    print(f"Nothing is run. {plan.told}")
    for candidate in plan.candidates:
        print(f"\n{candidate.title}")
        knobs = list(candidate.tunable.knobs)
        rows = [(str(point.number), *_values(point), _published(point)) for point in candidate.points]
        print(columns([("POINT", *knobs, ""), *rows]))
    return 0


def tune(plan: Plan, root: Path, jobs: int, if_exists: IfExists) -> int:
    """Make the pilot runs that are missing, write and print each experiment's outcome; return the exit code."""
    folder = root / FOLDER
    called = dict(_named(plan))
    if is_main():
        print(plan.told, file=sys.stderr)
    view = open_view(len(called))
    results = launch(list(called), folder, view, jobs=jobs, if_exists=if_exists.value, name=called.__getitem__)
    code = exit_code([result for result in results if result.status not in ("finished", "unstable")])
    if not is_main():
        return code
    made = {result.settings: result for result in results}
    files = [_settle(plan, candidate, made, folder) for candidate in plan.candidates]
    if (left := sum(result.exit_code == 130 for result in results)) > 0:
        text = f"stopped: {left} of {len(results)} pilot runs unfinished; the same command continues them"
        print(text, file=sys.stderr)
    if all(files):
        print(f"\nnext: {_comparison(plan, [file for file in files if file], root)}")
    return code or (0 if all(files) else UsageError.exit_code)


def _pilot_seeds(text: str) -> list[int]:
    seeds = parse_seeds(text)
    if low := [seed for seed in seeds if seed < FIRST_SEED]:
        raise UsageError(
            f"--pilot-seeds {text}: {low[0]} is below {FIRST_SEED}, where the seeds of comparisons lie",
            f"Tuning must not see a comparison's seeds: write {FIRST_SEED}-{FIRST_SEED + len(seeds) - 1}.",
        )
    return seeds


def _points_of(budget: int, seeds: int) -> int:
    """Return the number of points. A remainder is refused: the budget is what is reported as the cost."""
    if budget % seeds or budget < 2 * seeds:
        nearest = max(2, round(budget / seeds)) * seeds
        reason = "no whole number of points" if budget % seeds else "the published point alone"
        raise UsageError(f"--budget {budget} on {seeds} pilot seeds is {reason}", f"Write --budget {nearest}.")
    return budget // seeds


def _candidate(asked: Asked, name: str, tunable: Tunable, count: int, seeds: list[int]) -> Candidate:
    chosen = tuple(points(tunable, count))
    made = []
    for point in chosen:
        one = replace(asked, experiments=[name], overrides=[*asked.overrides, *point.overrides])
        (settings,) = one.settings()
        made.append(tuple(settings.model_copy(update={"seed": seed}) for seed in seeds))
    return Candidate(name, tunable, chosen, tuple(made))


def _named(plan: Plan) -> Iterator[tuple[Settings, str]]:
    """Yield every pilot run and its name on the screen; points in the outer order, experiments take turns."""
    for number in range(len(plan.candidates[0].points)):
        for candidate in plan.candidates:
            for settings in candidate.runs[number]:
                yield settings, f"{candidate.title} point {number + 1} seed {settings.seed}"


def _settle(plan: Plan, candidate: Candidate, made: dict[Settings, Result], folder: Path) -> Path | None:
    """Write and print the outcome of one experiment; None where runs are missing or nothing can win."""
    results = [[made[settings] for settings in of_point] for of_point in candidate.runs]
    ended = [result.status in ("finished", "unstable") for of_point in results for result in of_point]
    if not all(ended):
        text = f"{candidate.title}: no outcome, {len(ended) - sum(ended)} of {len(ended)} pilot runs are missing"
        print(text, file=sys.stderr)
        return None
    read = [[runs.read(result.folder) for result in of_point] for of_point in results]
    found = search(candidate.name, candidate.tunable, plan.criterion, zip(candidate.points, read, strict=True))
    try:
        print(f"\n{_table(found)}")
    except UsageError as error:
        tell(error)
        return None
    stem = config.safe_name(candidate.title)
    if (model := candidate.tunable.settings.model.name) != EMBEDDED:
        stem += f"-{config.model_folder(model)}"
    write_atomic(folder / f"{stem}.json", found.to_json().encode())
    file = folder / f"{stem}-tuned.yaml"
    write_atomic(file, found.to_yaml(folder).encode())
    print(f"files: {file}, {folder / f'{stem}.json'}")
    return file


def _table(found: Search) -> str:
    record, winner = found.record, found.winner
    header = ("POINT", *found.tunable.knobs, found.criterion.key, "RUNS", "CRASHED", "")
    rows = [_row(trial, trial is winner) for trial in found.trials]
    mark = "the published setting wins" if winner.point.number == 1 else f"point {winner.point.number} wins"
    better = {"up": "more", "down": "less"}[found.criterion.direction]
    return "\n".join(
        [
            f"{found.tunable.settings.experiment}: {mark} by {found.criterion.key}, {better} is better: "
            f"mean over seeds {', '.join(map(str, record.seeds))} [95 % interval]",
            columns([header, *rows]),
            f"cost: {cost_told(record.model_dump())}",
        ]
    )


def _row(trial: Trial, wins: bool) -> tuple[str, ...]:
    estimate = trial.estimate
    figure = f"{estimate.value:.3f}"
    if estimate.n > 1:
        figure += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    if not trial.whole:
        figure += f" in {estimate.n} of {len(trial.pilots)} runs: cannot win"
    crashed = sum(pilot.crashed for pilot in trial.pilots)
    marks = [mark for mark in (_published(trial.point), "winner" if wins else "") if mark]
    number, count = str(trial.point.number), str(len(trial.pilots))
    return number, *_values(trial.point), figure, count, str(crashed), ", ".join(marks)


def _values(point: Point) -> tuple[str, ...]:
    return tuple("null" if value is None else f"{value:g}" for value in point.values.values())


def _published(point: Point) -> str:
    return "published" if point.number == 1 else ""


def _comparison(plan: Plan, files: list[Path], root: Path) -> str:
    """Return the command that compares every experiment as published and as tuned, with what else was asked for."""
    asked = plan.asked
    names = [word for one, file in zip(plan.candidates, files, strict=True) for word in (one.name, str(file))]
    words = ["safebench", "compare", *names, "--run"]
    given = {
        "--preset": asked.preset,
        "--model": asked.model,
        "--reward": asked.reward,
        "--prompts": asked.prompts,
        "--steps": asked.steps,
    }
    for flag, value in given.items():
        words += [flag, str(value)] if value is not None else []
    words += ["--random-weights"] * asked.random_weights
    for flag, several in (("--config", asked.files), ("--set", asked.overrides), ("--trust-remote-code", asked.trust)):
        words += [word for one in several for word in (flag, str(one))]
    if root != Path("results"):
        words += ["--results", str(root)]
    return shlex.join(words)
