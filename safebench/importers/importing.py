"""Imports a metric history of TRL, verl or OpenRLHF as a run folder, so that it gets the same crash table."""

from __future__ import annotations

import csv
import io
import math
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safebench import config
from safebench import config as own_config
from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.crashes.detect import SPEC, Blind, Detectors, Event
from safebench.crashes.signals import NUMERIC_KEYS
from safebench.errors import BadResource, UsageError
from safebench.importers import history as by_steps
from safebench.importers.history import Raw, Steps, read, whole
from safebench.importers.keys import Converted, Taken, Trainer, Value, convert, recognise, setting
from safebench.metrics import CRASH_KINDS, MEASURED
from safebench.recording import layout
from safebench.recording import manifest as manifest_file
from safebench.recording.files import FolderLock, make_folder, now, write_atomic
from safebench.recording.jsonl import EventsWriter
from safebench.recording.layout import Status, StatusRecord
from safebench.recording.metrics_csv import MetricsWriter

FOREIGN = "foreign.csv"
"""The history as it was read, with every key under the trainer's own name."""


@dataclass(frozen=True)
class Watched:
    """Rows with their crash columns, events by step, events still open, and kinds of crash that were not watched."""

    rows: list[dict[str, Value]]
    events: list[tuple[int, list[Event]]]
    still_open: list[Event]
    blind: tuple[Blind, ...]


def watch(rows: Mapping[int, Mapping[str, Value]], settings: Settings, manifest: Mapping[str, Any]) -> Watched:
    """Return all steps, from the first possible one to the last, with their crash counts.

    A step that was not logged is an empty row. A kind of crash that was never watched has no count, because 0 would
    mean that none occurred.
    """
    known = settings.model_dump(exclude_unset=True)
    detectors = Detectors(
        SPEC,
        settings.update.steps,
        manifest["sigma0"],
        manifest["vocabulary"],
        reply_limit=known.get("rollout", {}).get("reply_tokens"),
    )
    full: list[dict[str, Value]] = []
    events: list[tuple[int, list[Event]]] = []
    for step in range(min(1, min(rows)), max(rows) + 1):
        row = {**dict.fromkeys(MEASURED), **rows.get(step, {}), "step": step}
        found = detectors.update(row)
        if found:
            events.append((step, found))
        full.append({**row, **{f"crash/{kind}": count for kind, count in detectors.counts().items()}})
    blind = detectors.blind
    for kind in [one.kind for one in blind if one.wholly]:
        for row in full:
            row[f"crash/{kind}"] = None
    return Watched(full, events, detectors.finish(), blind)


def write(
    folder: Path,
    settings: Settings,
    manifest: Mapping[str, Any],
    watched: Watched,
    entries: Sequence[tuple[int, Raw]],
    notices: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Write the run folder; status.json is written last, so that a folder without it is known to be incomplete.

    ``config.yaml`` has only the settings that were given: a default would state something unknown about a foreign
    run. Raises ``UsageError`` if the folder holds a run, unless it is an import and may be overwritten.
    """
    _refuse_existing(folder, overwrite)
    make_folder(folder)
    with FolderLock(folder):
        layout.clear(folder)
        described = {"run_id": uuid.uuid4().hex[:12], **manifest}
        text = yaml_text.write(settings.model_dump(mode="json", exclude_unset=True))
        write_atomic(folder / layout.CONFIG, text.encode())
        manifest_file.write(folder, described)
        write_atomic(folder / FOREIGN, _table(entries).encode())
        _write_rows(folder, watched)
        layout.write_status(folder, _status(settings, watched, notices), durable=True)


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not any((folder / name).exists() for name in (layout.CONFIG, "metrics.csv")):
        return
    if not overwrite:
        raise UsageError(f"{folder} holds a run already", "Use --overwrite, or another name with --as.")
    try:
        imported = "foreign" in manifest_file.read(folder)
    except BadResource:
        imported = False
    if not imported:
        raise UsageError(
            f"{folder} holds a run that was not imported: it is not overwritten", "Use another name with --as."
        )


def _table(entries: Sequence[tuple[int, Raw]]) -> str:
    """Return all that was logged as CSV, with a line per entry; column ``#`` is the step assigned to the entry."""
    keys = list(dict.fromkeys(key for _, row in entries for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["#", *keys])
    for step, row in entries:
        writer.writerow([step, *(row.get(key) for key in keys)])
    return text.getvalue()


def _write_rows(folder: Path, watched: Watched) -> None:
    events = EventsWriter(folder / "events.jsonl", watched.events)
    try:
        events.write(int(watched.rows[-1]["step"] or 0), watched.still_open, "open")
        events.sync()
    finally:
        events.close()
    metrics = MetricsWriter(folder / "metrics.csv")
    try:
        for row in watched.rows:
            metrics.write(row)
        metrics.sync()
    finally:
        metrics.close()


def _status(settings: Settings, watched: Watched, notices: Sequence[str]) -> StatusRecord:
    last, time = int(watched.rows[-1]["step"] or 0), now()
    values = {key: row[key] for row in watched.rows for key in row if row[key] is not None}
    state = Status.FINISHED
    message = "imported: how it ended is read from its last row"
    if _broken(watched.rows[-1]):
        state = Status.UNSTABLE
    elif last < settings.update.steps:
        state = Status.INTERRUPTED
        message = f"imported: the history ends at step {last} of {settings.update.steps} planned"
    summary = {key: value for key, value in values.items() if key.removeprefix("crash/") not in CRASH_KINDS}
    return StatusRecord(
        state, last, settings.update.steps, time, time, message, state.exit_code, tuple(notices), summary
    )


def _broken(row: Mapping[str, Value]) -> bool:
    cells = [row[key] for key in NUMERIC_KEYS]
    return any(cell is not None and not math.isfinite(cell) for cell in cells)


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    ``kept`` columns have the trainer's own numbers; ``converted`` columns are computed from them. ``left``: each key
    that no column uses, with the reason; foreign.csv has these keys. ``gaps``: what is missing from the rows.
    ``blind``: kinds of crash that could not be watched, or only in part. ``assumed``: settings that the history does
    not state.
    """

    folder: Path
    trainer: str
    arm: str
    steps: int
    planned: int
    kept: tuple[Taken, ...]
    converted: tuple[Taken, ...]
    left: tuple[tuple[str, str], ...]
    gaps: tuple[str, ...]
    blind: tuple[Blind, ...]
    assumed: tuple[str, ...]
    notices: tuple[str, ...]


def import_history(
    path: Path,
    *,
    root: Path,
    model: str,
    trainer: str | None = None,
    name: str | None = None,
    seed: int = 0,
    sigma0: float | None = None,
    reply_limit: int | None = None,
    vocabulary: int | None = None,
    steps: int | None = None,
    known: Mapping[str, Any] | None = None,
    if_exists: Literal["error", "overwrite"] = "error",
    command: Sequence[str] = (),
) -> Imported:
    """Read the history in ``path`` and write ``<root>/<model>/<name>/seed-<seed>``.

    ``trainer``: one of ``keys.NAMES``; by default it is recognised by the keys. ``name``: the experiment; by
    default the trainer's algorithm (with ``-imported`` if the bench has an experiment of that name). ``sigma0``
    (spread of the reward under the initial policy), ``reply_limit`` (tokens), ``vocabulary`` (tokens) and ``steps``
    (planned) are taken from the history's own settings if they are not given. If they are not there either, they stay
    unknown (``steps``: the last step), and crashes that need them are not watched. ``known``: settings of the trainer
    that its history does not hold, by dotted name, such as ``{"vf_coef": 0.1}``. Everything is checked before a file
    is written.

    Raises ``MissingResource``, ``BadResource`` or ``UsageError`` if ``path`` cannot be read, holds no such history or
    several, is of no known trainer, or if the folder holds a run.
    """
    _refuse_impossible(sigma0, vocabulary)
    history = read(path)
    keys = list(dict.fromkeys(key for row in history.rows for key in row))
    found = recognise(keys, trainer)
    config = {**history.config, **(known or {})}
    rows = by_steps.by_step(history, found.counters, found.takes)
    converted = convert(rows, found, config)
    arm = found.arm_of({found.plain(key) for key in keys}, config)
    experiment = name or _free_name(arm)
    _refuse_own_name(experiment)
    settings = _settings(
        experiment=experiment,
        arm=arm,
        seed=seed,
        model=model,
        reply_limit=_whole(found.limit, config) if reply_limit is None else reply_limit,
        steps=_planned(rows, steps, found, config),
        source=f"imported from a history of {found.name}",
    )
    described = {
        "sigma0": sigma0,
        "judge_sigma0": None,
        "paired": False,
        "vocabulary": _whole(found.vocabulary, config) if vocabulary is None else vocabulary,
        "started": now(),
        "command": shlex.join(command),
        "hashes": {"history": manifest_file.hash_folder(history.path)},
        "foreign": _provenance(found, history.path, converted),
    }
    watched = watch(converted.rows, settings, described)
    imported = Imported(
        folder=Path(root) / own_config.model_folder(model) / own_config.safe_name(experiment) / f"seed-{seed}",
        trainer=found.name,
        arm=arm,
        steps=rows.last,
        planned=settings.update.steps,
        kept=converted.kept,
        converted=converted.converted,
        left=converted.left,
        gaps=tuple(by_steps.gaps(rows)),
        blind=watched.blind,
        assumed=converted.assumed,
        notices=(*rows.notices, *converted.notices, *found.notes),
    )
    write(
        imported.folder,
        settings,
        described,
        watched,
        rows.entries,
        _told(imported),
        overwrite=if_exists == "overwrite",
    )
    return imported


def _settings(
    *, experiment: str, arm: str, seed: int, model: str, reply_limit: int | None, steps: int, source: str
) -> Settings:
    """Return settings that set only what is known."""
    known: dict[str, Any] = {
        "experiment": experiment,
        "algorithm": arm,
        "seed": seed,
        "description": source,
        "model": {"name": model},
        "reward": {"name": UNKNOWN, "judge": None},
        "prompts": {"name": UNKNOWN},
        "update": {"steps": max(1, steps)},
    }
    if reply_limit is not None:
        known["rollout"] = {"reply_tokens": reply_limit}
    try:
        return Settings.model_validate(known)
    except ValueError as error:
        raise UsageError(
            f"these settings cannot be of a run: {error}", "Check --seed, --reply-tokens and --steps."
        ) from error


def _planned(rows: Steps, given: int | None, trainer: Trainer, config: Mapping[str, Any]) -> int:
    """Return the planned steps: those given, or those of the history's settings, or the last step.

    A plan that ends before the next log was due counts as completed.
    """
    if given is not None and given < rows.last:
        raise UsageError(f"--steps {given}, but the history goes to step {rows.last}", "Leave --steps out.")
    plan = _whole(trainer.plan, config) if given is None else given
    return plan if plan is not None and plan >= rows.last + rows.every else rows.last


def _whole(paths: tuple[str, ...], config: Mapping[str, Any]) -> int | None:
    values = (whole(setting(config, path)[1]) for path in paths)
    return next((value for value in values if value is not None and value > 0), None)


def _refuse_impossible(sigma0: float | None, vocabulary: int | None) -> None:
    if sigma0 is not None and not 0.0 < sigma0 < math.inf:
        raise UsageError(f"--sigma0 {sigma0} is no spread", "It is a standard deviation: positive, in reward units.")
    if vocabulary is not None and vocabulary < 2:
        raise UsageError(f"--vocabulary {vocabulary} is none", "It is the number of tokens the policy chooses from.")


def _free_name(arm: str) -> str:
    return arm if config.locate(arm) is None else f"{arm}-imported"


def _refuse_own_name(name: str) -> None:
    if config.locate(name.partition("@")[0]) is not None:
        raise UsageError(f"{name!r} is an experiment of this bench", "An imported run needs a name of its own: --as.")


def _provenance(trainer: Trainer, file: Path, converted: Converted) -> dict[str, Any]:
    """Return the manifest's entry on the import; its presence marks the run as foreign."""
    columns = {one.ours: one.formula for one in (*converted.kept, *converted.converted)}
    return {
        "trainer": trainer.name,
        "file": file.name,
        "imported_by": manifest_file.versions(("safebench",))["safebench"],
        "columns": columns,
        "left": dict(converted.left),
        "assumed": list(converted.assumed),
    }


def _told(imported: Imported) -> list[str]:
    """Return what a reader of the run must know; status.json holds it."""
    missing = [f"{one.kind} ({', '.join(one.reasons)})" for one in imported.blind if one.wholly]
    parts = [f"not watched: {', '.join(missing)}"] if missing else []
    parts += [f"assumed: {text}" for text in imported.assumed]
    return [*parts, *imported.gaps, *imported.notices]


def describe(imported: Imported) -> str:
    """Return the report of an import: columns with their source, keys left out and why, crashes not watched."""
    lines = [f"imported {imported.trainer} as {imported.arm}, {_steps(imported)}: {imported.folder}"]
    lines += _section("kept", [_taken(one) for one in imported.kept])
    lines += _section("converted", [_taken(one) for one in imported.converted])
    lines += _section("left out (foreign.csv has them)", [f"{key}: {why}" for key, why in imported.left])
    lines += _section("assumed, since the history does not say", imported.assumed)
    lines += _section("gaps", imported.gaps)
    lines += _section("notes", imported.notices)
    lines += _section("not watched, which is not the same as no crash", _blind(imported, wholly=True))
    lines += _section("watched in part only", _blind(imported, wholly=False))
    seen = [kind for kind in CRASH_KINDS if kind not in {one.kind for one in imported.blind if one.wholly}]
    return "\n".join([*lines, f"watched: {', '.join(seen) or 'nothing'}"])


def _steps(imported: Imported) -> str:
    of = "" if imported.planned == imported.steps else f" of {imported.planned} planned"
    return f"{imported.steps} steps{of}"


def _taken(one: Taken) -> str:
    return f"{one.ours} = {one.formula}" + (f" ({one.note})" if one.note else "")


def _blind(imported: Imported, *, wholly: bool) -> list[str]:
    return [f"{one.kind}: {', '.join(one.reasons)}" for one in imported.blind if one.wholly == wholly]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    found = [f"  {line}" for line in lines]
    return [f"{title}:", *found] if found else []
