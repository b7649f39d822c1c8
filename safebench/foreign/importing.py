"""Imports a metric history of TRL, verl or OpenRLHF as a run folder, so that it gets the same crash table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safebench import config as own_config
from safebench import layers
from safebench.errors import UsageError
from safebench.evidence.crashes import Blind
from safebench.foreign import folder as run_folder
from safebench.foreign import steps as by_steps
from safebench.foreign.convert import Converted, Taken, convert
from safebench.foreign.history import read, whole
from safebench.foreign.keys import Trainer, setting
from safebench.foreign.steps import Steps
from safebench.foreign.trainers import recognise
from safebench.recording import machine, manifest
from safebench.recording.files import now
from safebench.settings import Settings

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Imported:
    """What became of a history.

    ``kept`` columns have the trainer's own numbers, ``converted`` ones are made from them. ``left``: each key that
    no column took, with the reason; foreign.csv has it. ``gaps``: what the rows lack. ``blind``: kinds of crash that
    could not be watched, or only in part. ``assumed``: settings that the history does not say.
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

    ``trainer``: one of ``trainers.NAMES``, else told from the keys. ``name``: the experiment, by default the trainer's
    algorithm (with ``-imported`` where the bench has an experiment of that name). ``sigma0`` (reward's spread under the
    initial policy), ``reply_limit`` (tokens), ``vocabulary`` (tokens) and ``steps`` (planned): where neither given nor
    in the history's own settings they stay unknown (``steps``: the last one), and what needs them is not watched.
    ``known``: settings of the trainer that its history does not hold, by dotted name, such as ``{"vf_coef": 0.1}``.
    Everything is checked before a file is written.

    Raises ``MissingResource``, ``BadResource`` or ``UsageError`` where ``path`` cannot be read, is no such history or
    several, is of no known trainer, or where the folder holds a run.
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
        "hashes": {"history": manifest.hash_folder(history.path)},
        "foreign": _provenance(found, history.path, converted),
    }
    watched = run_folder.watch(converted.rows, settings, described)
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
    run_folder.write(
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
    """Return settings in which only what is known is set."""
    known: dict[str, Any] = {
        "experiment": experiment,
        "arm": arm,
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
    """Return the planned steps: given, or the history's own, or the last step.

    A plan that ends before the next log was due counts as done.
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
    return arm if layers.locate(arm) is None else f"{arm}-imported"


def _refuse_own_name(name: str) -> None:
    if layers.locate(name.partition("@")[0]) is not None:
        raise UsageError(f"{name!r} is an experiment of this bench", "An imported run needs a name of its own: --as.")


def _provenance(trainer: Trainer, file: Path, converted: Converted) -> dict[str, Any]:
    """Return what the manifest says of an import; that it is there marks the run as foreign."""
    columns = {one.ours: one.formula for one in (*converted.kept, *converted.converted)}
    return {
        "trainer": trainer.name,
        "file": file.name,
        "imported_by": machine.versions(("safebench",))["safebench"],
        "columns": columns,
        "left": dict(converted.left),
        "assumed": list(converted.assumed),
    }


def _told(imported: Imported) -> list[str]:
    """Return what a reader of the run must know: it stands in status.json."""
    missing = [f"{one.kind} ({', '.join(one.reasons)})" for one in imported.blind if one.wholly]
    parts = [f"not watched: {', '.join(missing)}"] if missing else []
    parts += [f"assumed: {text}" for text in imported.assumed]
    return [*parts, *imported.gaps, *imported.notices]
