"""Lists catalogues, shows, finds and cleans recorded runs, and prints what this machine can run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safebench import config, registry
from safebench import doctor as diagnosis
from safebench.analysis import runs
from safebench.analysis.runs import Run, read
from safebench.config.schema import Settings
from safebench.crashes.inert import inert_in, sentence
from safebench.errors import BadResource, MissingResource, UsageError, nearest
from safebench.metrics import ALARM_KINDS, BY_KEY, CRASH_KINDS, HARM_KINDS
from safebench.recording import layout
from safebench.recording.files import is_locked
from safebench.recording.layout import StatusRecord
from safebench.registry import encoder_parameters, parameters
from safebench.resources import dimensions, encoder_layers, readable
from safebench.runner.progress import Result, label


def experiments() -> None:
    """Print the named experiments and presets."""
    print(columns([("EXPERIMENT", ""), *config.experiments()]))
    print()
    print(columns([("PRESET", ""), *config.presets()]))


def algorithms() -> None:
    """Print the algorithms."""
    print(columns([("ALGORITHM", ""), *((entry.name, entry.description) for entry in registry.entries("algorithms"))]))


def things(group: Literal["models", "rewards"]) -> None:
    """Print models or rewards: name, size, licence, source, description."""
    title = group.removesuffix("s").upper()
    print(columns([(title, "SIZE", "LICENCE", "FROM", ""), *(_row(group, entry) for entry in registry.entries(group))]))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as columns, each as wide as its widest cell, without trailing spaces."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def size(count: int | None) -> str:
    """Return a number of parameters in readable form: ``2.0M``, ``3.1B``."""
    if count is None:
        return "?"
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _row(group: str, entry: registry.Entry) -> tuple[str, str, str, str, str]:
    known = dimensions(entry)
    config = encoder_layers(entry)
    if config is not None:
        count: int | None = encoder_parameters(config)
    else:
        count = parameters(known, head=group == "models") if known else None
    place = "this package" if entry.kind == "embedded" else entry.target
    gated = " (licence to be accepted on the hub)" if entry.gated else ""
    if entry.packaged is not None:
        place, gated = f"safebench[{entry.packaged.extra}]", f" (under {entry.packaged.terms})"
    return entry.name, size(count), entry.licence, place, entry.description + gated


FIGURES = (
    ("reward", "reward/mean", ""),
    ("judge", "eval/judge", ""),
    ("KL", "kl/mean", " nats/token"),
    ("entropy", "entropy/mean", " nats/token"),
    ("distinct replies", "reply/distinct", ""),
)


def describe(result: Result) -> str:
    """Return the summary of a finished or unstable run: status, steps, last figures, crashes, files."""
    last, steps = last_values(read(result.folder)), result.settings.update.steps
    before = "" if result.fresh else " before, nothing was done"
    lines = [f"{label(result.settings)}: {result.status}{before}, step {_figure(last.get('step', '?'))} of {steps}"]
    figures = [f"{word} {_figure(last[key])}{unit}" for word, key, unit in FIGURES if key in last]
    if figures:
        lines.append(f"  {'  '.join(figures)}")
    lines.append(f"  crashes: {crashes(last)}")
    lines.append(f"  files: {result.folder}")
    return "\n".join(lines)


def last_values(run: Run) -> dict[str, float | str]:
    """Return the last value of every column of metrics.csv that has one."""
    filled = {key: [cell for cell in cells if cell] for key, cells in run.cells.items()}
    return {key: _number(cells[-1]) for key, cells in filled.items() if cells}


def crashes(row: Mapping[str, Any]) -> str:
    """Return the crash counts of a row of metrics in words: harms, alarms, and kinds that were not watched."""
    counts = {kind: row.get(f"crash/{kind}") for kind in CRASH_KINDS}
    known = {kind: count for kind, count in counts.items() if isinstance(count, int | float)}

    def told(kinds: tuple[str, ...]) -> str:
        return ", ".join(f"{kind} {int(known[kind])}" for kind in kinds if known.get(kind, 0) > 0)

    alarms = told(ALARM_KINDS)
    found = (told(HARM_KINDS) or "none") + (f"; alarms: {alarms}" if alarms else "")
    blind = [kind for kind in counts if kind not in known]
    if len(blind) == len(counts):
        return "not watched"
    return found + (f" (not watched: {', '.join(blind)})" if blind else "")


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def list_runs(model: str | None, results: Path) -> None:
    """Print the runs in the results, of one model or of all."""
    rows = [("MODEL", "EXPERIMENT", "SEED", "STATUS", "STEP", "FOLDER")]
    for run in runs.find(results, model):
        rows.append((run.model, run.variant, str(run.seed), state(run), _steps(run), str(run.folder)))
    print(columns(rows) if len(rows) > 1 else f"no runs in {results}")


def show(run: str, results: Path) -> None:
    """Print one run: its status, its differences from its experiment, its last figures and its crashes."""
    found = runs.read(locate(run, results))
    print(f"{found.model} {found.variant} seed {found.seed}: {state(found)}, step {_steps(found)}")
    if found.message:
        print(f"  {found.message}")
    record = _record(found)
    told = record.notices if record else ()
    inert = [sentence(term) for term in inert_in(found)]
    for notice in dict.fromkeys((*told, *inert)):
        print(f"  {notice}")
    if found.status != "damaged":
        try:
            _print_differences(config.load(found.folder / "config.yaml"))
        except BadResource as error:  # made by another version: its figures can still be shown
            print(f"\n{error}")
    last = last_values(found)
    print(f"\ncrashes: {crashes(last)}")
    print("\nlast figures:")
    figures = {key: value for key, value in last.items() if not key.startswith("crash/")}
    print(
        columns(
            [(f"  {key}", _text(value), BY_KEY[key].unit if key in BY_KEY else "") for key, value in figures.items()]
        )
    )
    print(f"\nfiles: {found.folder}")


def explain(run: str, results: Path) -> None:
    """Print when and why a run's penalty acted, from its log alone."""
    from safebench.report.explain import explain

    print(explain(runs.read(locate(run, results))), end="")


def clean(names: Sequence[str], results: Path, dry_run: bool) -> None:
    """Delete the files that ended runs no longer need, of the named runs or of all; print the freed size."""
    chosen = [runs.read(locate(name, results)) for name in names] if names else runs.find(results)
    freed = 0
    for one in chosen:
        if not one.complete or is_locked(one.folder):
            if names:
                print(f"kept {one.folder}: {state(one)}, so it may still need them")
            continue
        for path in _needless(one.folder):
            size = _size(path)
            freed += size
            print(f"{'would delete' if dry_run else 'deleted'} {path} ({readable(size)})")
            if not dry_run:
                shutil.rmtree(path)
    print(f"{'would free' if dry_run else 'freed'} {readable(freed)}")


def locate(name: str, root: Path) -> Path:
    """Return the run folder that ``name`` means: a path, or the unambiguous end of a path below ``root``."""
    for folder in (Path(name), root / name):
        if (folder / "config.yaml").is_file():
            return folder
    folders = [run.folder for run in runs.find(root)]
    parts = Path(name).parts
    ends = [folder for folder in folders if parts in (folder.parts[-len(parts) :], folder.parent.parts[-len(parts) :])]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{name} may be any of {', '.join(map(str, ends))}", hint="Name one of them.")
    if not folders:
        raise MissingResource(f"no run {name}: there are none in {root}", hint="`safebench run ppo` makes one.")
    near = nearest(name, ["/".join(folder.parts[-2:]) for folder in folders])
    advice = f"; did you mean {near}?" if near else ""
    raise UsageError(f"no run {name} in {root}{advice}", hint="`safebench list` lists them.")


def locate_all(name: str, root: Path) -> list[Path]:
    """Return every run folder that ``name`` means: one run as in ``locate``, or all seeds of an experiment's folder.

    The folder of a tuned experiment, or of another that came from a file, has a hash after its name. The name alone
    means this folder if it is the only one with that name.
    """
    parts = Path(name).parts
    found = runs.find(root)
    folders = [run.folder for run in found if parts == run.folder.parent.parts[-len(parts) :]]
    named = [run.folder for run in found if run.experiment == name and config.locate(name.partition("@")[0]) is None]
    if not folders and len({folder.parent for folder in named}) == 1:
        return named
    return folders or [locate(name, root)]


def state(run: Run) -> str:
    """Return a run's status; a run that is marked as running but not locked by a process was killed."""
    if run.status == "running" and not is_locked(run.folder):
        return "killed (resumable)"
    return f"{run.status} (resumable)" if run.status == "interrupted" else run.status


def _record(run: Run) -> StatusRecord | None:
    """Return the content of status.json; None if it is missing or this version cannot read it."""
    try:
        return None if run.status in ("damaged", "unknown") else layout.read_status(run.folder)
    except BadResource:
        return None


def _steps(run: Run) -> str:
    record = _record(run)
    return f"{record.step}/{record.steps}" if record else f"?/{run.planned_steps or '?'}"


def _print_differences(settings: Settings) -> None:
    original = config.shipped(settings)
    if original is None:
        print(f"\nno experiment {settings.experiment} is here to compare its settings with")
        return
    rows = [(f"  {key}", f"{_text(old)} -> {_text(new)}") for key, old, new in config.changes(settings, original)]
    print(f"\nsettings: {'those of ' + settings.experiment if not rows else 'not those of ' + settings.experiment}")
    if rows:
        print(columns(rows))


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _needless(folder: Path) -> Iterator[Path]:
    """Yield the folders that an ended run no longer needs; W&B's offline files are kept, because they await upload."""
    places = [folder / "checkpoints"]
    places += sorted((folder / "trackers").glob("**/artifacts")) + sorted((folder / "trackers").glob("**/logs"))
    yield from (place for place in places if place.is_dir() and not place.is_symlink())


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


MARKS = {True: "ok", False: "no", None: "-"}


def doctor(online: bool, results: Path) -> int:
    """Print what this machine can run and why not; return 3 if even the embedded run is not possible, else 0."""
    found = list(diagnosis.checks(results, online))
    print(columns([(MARKS[check.ok], check.name, check.text) for check in found]))
    print()
    rows = [("", "MODEL", "NEEDS", "")]
    for verdict in diagnosis.verdicts():
        needs = "?" if verdict.needs is None else readable(verdict.needs)
        rows.append((MARKS[verdict.ok], verdict.name, needs, verdict.text))
    print(columns(rows))
    print()
    print("Needs are estimates for ppo; models from the hub with the preset that --model takes by itself.")
    print("--random-weights needs no download.")
    return 3 if any(check.ok is False for check in found) else 0


def own_things(settings: Settings) -> int:
    """Print each check of the user's own model, reward and prompts as it is made; return 3 if one fails, else 0."""
    failed = False
    for check in diagnosis.own_checks(settings):
        print(f"{MARKS[check.ok]:2}  {check.name:22}  {check.text}", flush=True)
        failed = failed or check.ok is False
    return 3 if failed else 0
