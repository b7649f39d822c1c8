"""Makes the requested runs, prints what they would need, and tunes experiments on pilot runs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safebench import config
from safebench.analysis import runs
from safebench.analysis.compare import cost_told
from safebench.analysis.scalars import Scalar
from safebench.cli.manage import columns, describe
from safebench.cli.options import IfExists
from safebench.cli.request import EMBEDDED, RunRequest, parse_seeds
from safebench.config.schema import Sampler, Settings
from safebench.doctor import device_kind, free_memory
from safebench.errors import UsageError, tell
from safebench.recording.files import write_atomic
from safebench.resources import Estimate, estimate, readable
from safebench.runner.pool import launch
from safebench.runner.progress import Result, exit_code, is_main, label, open_view
from safebench.tuning import tpe
from safebench.tuning.search import Point, Search, Trial, Tunable, criterion, points, search

COMPARED_SEEDS = "0-4"
"""Seeds of a comparison that makes its runs."""


def make(runs: Sequence[Settings], root: Path, jobs: int, if_exists: IfExists, *, summaries: bool = True) -> int:
    """Make the runs, print how each ended (on stdout with ``summaries``), and return the exit code."""
    outcomes = launch(runs, root, open_view(len(runs)), jobs=jobs, if_exists=if_exists.value)
    for outcome in outcomes:
        if summaries and is_main() and outcome.status in ("finished", "unstable"):
            print(describe(outcome))
    failed = [label(outcome.settings) for outcome in outcomes if outcome.status == "failed"]
    if failed and len(runs) > 1 and is_main():
        print(f"failed: {len(failed)} of {len(runs)} runs: {', '.join(failed)}", file=sys.stderr)
    left = sum(outcome.exit_code == 130 for outcome in outcomes)
    if left and is_main():
        print(f"stopped: {left} of {len(runs)} runs unfinished; the same command continues them", file=sys.stderr)
    return exit_code(outcomes)


def dry_run(request: RunRequest, root: Path, seeds: str = "0") -> int:
    """Print each experiment's settings as YAML, with the needs of a run in comments."""
    chosen = parse_seeds(request.seeds or seeds)
    for number, settings in enumerate(request.settings()):
        print("---" if number else "# Nothing is run. YAML, with what a run needs in comments.")
        print(estimated(settings.model_copy(update={"seed": chosen[0]}), root, chosen))
    return 0


def estimated(settings: Settings, root: Path, seeds: list[int]) -> str:
    """Return the settings of one experiment as YAML, with updates, tokens, memory and disk in comments."""
    kind = device_kind(settings.compute.device)
    needs = estimate(settings, kind)
    folder = config.run_folder(root, settings)
    runs = f"{folder.parent}/seed-…, {len(seeds)} seeds from {seeds[0]}" if len(seeds) > 1 else str(folder)
    lines = [
        f"run: {runs}",
        f"hash: {config.settings_hash(settings)}",
        f"steps: {settings.update.steps}, optimizer updates: {needs.updates}",
        f"reply tokens: at most {needs.tokens}",
        *_memory(needs, kind),
        *_disk(needs, root),
        *needs.notes,
    ]
    return "\n".join(f"# {line}" for line in lines) + "\n" + config.dump(settings).rstrip()


def _memory(needs: Estimate, kind: str) -> list[str]:
    if needs.total_memory is None:
        return ["memory: not known"]
    free = free_memory(kind)
    here = f", {readable(free)} free here" if free is not None else ""
    parts = ", ".join(f"{name} {readable(size)}" for name, size in needs.memory.items())
    counts = f"{needs.parameters} parameters, {needs.trainable} trained"
    return [f"memory on {kind}: about {readable(needs.total_memory)}{here} ({parts})", f"model: {counts}"]


def _disk(needs: Estimate, root: Path) -> list[str]:
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = readable(shutil.disk_usage(there).free)
    parts = ", ".join(f"{name} {readable(size)}" for name, size in needs.disk.items())
    return [f"disk: about {readable(needs.total_disk)} per run, {free} free here ({parts})"]


FOLDER = "tuning"
"""Folder of pilot runs and outcomes, below the results; no other command looks for runs there."""
FIRST_SEED = 1000
"""Smallest seed of a pilot run; the seeds of comparisons start at 0."""

Made = Mapping[Settings, Result]
"""The results of the pilot runs so far, by settings."""


@dataclass(frozen=True)
class Candidate:
    """An experiment to tune: its name as requested, its knobs, its points, and each point's settings, seed by seed.

    Its points are those known so far; later ones may be chosen from the results of earlier ones.
    """

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
    """All pilot runs of a command: ``count`` points of each candidate, each on every seed."""

    request: RunRequest
    criterion: Scalar
    seeds: tuple[int, ...]
    count: int
    sampler: Sampler
    candidates: tuple[Candidate, ...]

    @property
    def left(self) -> int:
        """Number of points of each experiment that are still to be chosen from the results."""
        return self.count - len(self.candidates[0].points)

    @property
    def runs(self) -> int:
        """Number of pilot runs of each experiment."""
        return self.count * len(self.seeds)

    @property
    def told(self) -> str:
        """The plan in one line of text."""
        seeds, several = ", ".join(map(str, self.seeds)), "s" if len(self.candidates) > 1 else ""
        chosen = f" ({self.left} of them chosen by Optuna)" if self.left else ""
        return (
            f"tune: {len(self.candidates)} experiment{several}, {self.count} points each{chosen}, seeds {seeds}: "
            f"{len(self.candidates) * self.runs} pilot runs; criterion {self.criterion.key}"
        )


def plan(request: RunRequest, budget: int, key: str, sampler: Sampler = "halton") -> Plan:
    """Return the plan of pilot runs for a budget, with the points that do not depend on results.

    Before any run, raises ``UsageError`` for a fault, and ``MissingResource`` without the sampler's library.
    """
    if len(config.expand_preset(request.preset)) > 1:
        raise UsageError(f"--preset {request.preset} is several presets", "Tune under one preset at a time.")
    if sampler == "optuna" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{tpe.OPTION} and several processes per run do not go together", "Use --jobs.")
    seeds = _pilot_seeds(request.seeds or "")
    count = _points_of(budget, len(seeds), sampler)
    tunables = request.tunable()
    names = list(dict.fromkeys(request.experiments))
    titles = [tunable.settings.experiment for tunable in tunables]
    if doubled := sorted({title for title in titles if titles.count(title) > 1}):
        raise UsageError(f"{', '.join(doubled)} is asked for twice", "Name each experiment once.")
    chosen = criterion(key, judged=all(tunable.settings.reward.judge is not None for tunable in tunables))
    pairs = zip(names, tunables, strict=True)
    candidates = tuple(_candidate(request, *pair, count, seeds, sampler) for pair in pairs)
    return Plan(request, chosen, tuple(seeds), count, sampler, candidates)


def dry_run_tuning(plan: Plan) -> int:
    """Print every experiment's points that do not depend on results."""
    print(f"Nothing is run. {plan.told}")
    for candidate in plan.candidates:
        print(f"\n{candidate.title}")
        knobs = list(candidate.tunable.knobs)
        rows = [(str(point.number), *_values(point), _source(point)) for point in candidate.points]
        print(columns([("POINT", *knobs, ""), *rows]))
    if plan.left:
        print(f"\nOf each experiment Optuna chooses {plan.left} more from the results.")
    return 0


def tune(plan: Plan, root: Path, jobs: int, if_exists: IfExists) -> int:
    """Make the missing pilot runs, write and print each experiment's outcome, and return the exit code."""
    folder = root / FOLDER
    if is_main():
        print(plan.told, file=sys.stderr)
    candidates, made, stopped = plan.candidates, dict[Settings, Result](), False
    while called := {settings: name for settings, name in _named(candidates) if settings not in made}:
        view = open_view(len(called))
        results = launch(list(called), folder, view, jobs=jobs, if_exists=if_exists.value, name=called.__getitem__)
        made |= {result.settings: result for result in results}
        if stopped := any(result.exit_code == 130 for result in results):
            break
        candidates = tuple(_grown(plan, candidate, made) for candidate in candidates)
    code = exit_code([result for result in made.values() if not _ended(result)])
    if not is_main():
        return code
    files = [_settle(plan, candidate, made, folder) for candidate in candidates]
    if stopped:
        planned = len(candidates) * plan.runs
        left = planned - sum(result.exit_code != 130 for result in made.values())
        text = f"stopped: {left} of {planned} pilot runs unfinished; the same command continues them"
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


def _points_of(budget: int, seeds: int, sampler: Sampler) -> int:
    """Return the number of points; raise ``UsageError`` for a remainder, because the budget is reported as the cost."""
    least = tpe.LEAST if sampler == "optuna" else 2
    if budget % seeds or budget < least * seeds:
        nearest = max(least, round(budget / seeds)) * seeds
        reason = "no whole number of points" if budget % seeds else "the published point alone"
        if budget == 2 * seeds:
            reason = f"2 points: they leave {tpe.OPTION} none to choose"
        raise UsageError(f"--budget {budget} on {seeds} pilot seeds is {reason}", f"Write --budget {nearest}.")
    return budget // seeds


def _candidate(
    request: RunRequest, name: str, tunable: Tunable, count: int, seeds: Sequence[int], sampler: Sampler
) -> Candidate:
    chosen = tuple((tpe.first_points if sampler == "optuna" else points)(tunable, count))
    return Candidate(name, tunable, chosen, tuple(_pilot_runs(request, name, point, seeds) for point in chosen))


def _pilot_runs(request: RunRequest, name: str, point: Point, seeds: Sequence[int]) -> tuple[Settings, ...]:
    """Return the settings of an experiment's point, seed by seed."""
    one = replace(request, experiments=[name], overrides=[*request.overrides, *point.overrides])
    (settings,) = one.settings()
    return tuple(settings.model_copy(update={"seed": seed}) for seed in seeds)


def _named(candidates: Sequence[Candidate]) -> Iterator[tuple[Settings, str]]:
    """Yield every pilot run and its display name; the outer loop is over points, the next over experiments."""
    for number in range(max(len(candidate.points) for candidate in candidates)):
        for candidate in candidates:
            for of_point in candidate.runs[number : number + 1]:
                for settings in of_point:
                    yield settings, f"{candidate.title} point {number + 1} seed {settings.seed}"


def _grown(plan: Plan, candidate: Candidate, made: Made) -> Candidate:
    """Return a candidate with one more point, chosen from its results; unchanged if it has all, or lacks a run."""
    if len(candidate.points) == plan.count or not all(_ended(result) for result in _results(candidate, made)):
        return candidate
    point = tpe.propose(_search(plan, candidate, made))
    settings = _pilot_runs(plan.request, candidate.name, point, plan.seeds)
    return replace(candidate, points=(*candidate.points, point), runs=(*candidate.runs, settings))


def _results(candidate: Candidate, made: Made) -> list[Result]:
    return [made[settings] for of_point in candidate.runs for settings in of_point]


def _ended(result: Result) -> bool:
    """Return whether a run is complete, whether unstable or not."""
    return result.status in runs.COMPLETE


def _search(plan: Plan, candidate: Candidate, made: Made) -> Search:
    """Return the search with the runs of a candidate's points, all of which must have ended."""
    read = ([runs.read(made[settings].folder) for settings in of_point] for of_point in candidate.runs)
    of_points = zip(candidate.points, read, strict=True)
    return search(candidate.name, candidate.tunable, plan.criterion, of_points, plan.sampler)


def _settle(plan: Plan, candidate: Candidate, made: Made, folder: Path) -> Path | None:
    """Write and print the outcome of one experiment; None if runs are missing or no point can win."""
    if missing := plan.runs - sum(_ended(result) for result in _results(candidate, made)):
        text = f"{candidate.title}: no outcome, {missing} of {plan.runs} pilot runs are missing"
        print(text, file=sys.stderr)
        return None
    found = _search(plan, candidate, made)
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
    marks = [mark for mark in (_source(trial.point), "winner" if wins else "") if mark]
    number, count = str(trial.point.number), str(len(trial.pilots))
    return number, *_values(trial.point), figure, count, str(crashed), ", ".join(marks)


def _values(point: Point) -> tuple[str, ...]:
    return tuple("null" if value is None else f"{value:g}" for value in point.values.values())


def _source(point: Point) -> str:
    """Return where a point comes from; empty for Halton's sequence, the usual source."""
    return "" if point.source == "halton" else point.source


def _comparison(plan: Plan, files: list[Path], root: Path) -> str:
    """Return the command that compares every experiment as published and as tuned, with the request's other options."""
    names = [word for one, file in zip(plan.candidates, files, strict=True) for word in (one.name, str(file))]
    words = ["safebench", "compare", *names, "--run", *plan.request.words()]
    if root != Path("results"):
        words += ["--results", str(root)]
    return shlex.join(words)
