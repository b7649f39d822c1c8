"""One run as one line: what a table of many arms needs of it, so that hundreds of runs can be kept in one file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safebench import config
from safebench.errors import BadResource
from safebench.evidence import fairness, filled
from safebench.evidence.crashes import CRASH_KINDS, SPEC, CrashSpec
from safebench.evidence.notes import commit, machine
from safebench.evidence.runs import COMPLETE, Run
from safebench.evidence.summary import Summary, summarise
from safebench.settings import Settings

FIGURES = ("judge_final", "kl_mean", "kl_max", "entropy_final", "time_update")
"""Scalars of a run that are kept (``evidence/scalars.py``)."""
NAMES = ("model", "experiment", "preset", "overrides", "seed", "settings", "ground", "status", "steps", "paired",
         "code", "machine", "specification")  # fmt: skip
COLUMNS = (*NAMES, *FIGURES, *(f"crash/{kind}" for kind in CRASH_KINDS))
PLAIN = "default"
"""What the preset of a run without one is called."""


@dataclass(frozen=True)
class Packed:
    """One run. ``overrides`` are the settings, ``a.b=v; …``, in which it departs from its named experiment.

    ``settings`` is the hash of all that the run computes (``digest``), ``ground`` that of what must be equal between
    arms that are compared: model, data, reward, number of steps, and the files behind them. ``values`` are FIGURES
    (NaN: not measured), ``crashes`` the episodes of each kind at scale 1 (None: not watched), by the thresholds of
    ``specification``.
    """

    model: str
    experiment: str
    preset: str
    overrides: str
    seed: int
    settings: str
    ground: str
    status: str
    steps: int
    paired: bool
    code: str
    machine: str
    specification: int
    values: Mapping[str, float]
    crashes: Mapping[str, int | None]

    @property
    def arm(self) -> str:
        """Name of the runs that this one belongs to, its preset left out."""
        return f"{self.experiment}[{self.overrides}]" if self.overrides else self.experiment

    @property
    def complete(self) -> bool:
        """Whether the run is a result, as ``Run.complete``."""
        return self.status in COMPLETE

    def crashed(self, spec: CrashSpec = SPEC) -> bool:
        """Whether the run was harmed at scale 1."""
        return spec.crashed([kind for kind, count in self.crashes.items() if count])


def pack(run: Run, spec: CrashSpec = SPEC) -> Packed:
    """Return the line of one run, from its files. Raises ``BadResource`` where its settings are damaged."""
    if run.status == "damaged":
        raise BadResource(f"{run.folder}: {run.message}", "Make this run again, or leave it out.")
    summary = summarise(run, spec)
    settings, overrides = _settings(run)
    name, _, preset = run.experiment.partition("@")
    return Packed(
        model=run.model,
        experiment=name,
        preset=preset or PLAIN,
        overrides=overrides,
        seed=run.seed,
        settings=digest(settings),
        ground=_ground(settings, run.manifest.get("hashes", {})),
        status=run.status,
        steps=run.last_step,
        paired=run.paired,
        code=commit(run),
        machine=machine(run),
        specification=spec.version,
        values={key: summary.values[key] for key in FIGURES},
        crashes={kind: _count(summary, kind) for kind in CRASH_KINDS},
    )


def digest(settings: Mapping[str, Any]) -> str:
    """Return eight hex digits of what a run computes, of settings without those at their defaults (``departures``).

    Other than in ``config.settings_hash``, a setting that is new and off changes nothing: kept lines stay comparable.
    """
    kept = {key: value for key, value in settings.items() if key not in config.NOT_OF_THE_RUN}
    if replicate := settings.get("compute", {}).get("replicate"):
        kept["compute"] = {"replicate": replicate}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def departures(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not at the schema's defaults."""
    return settings.model_dump(mode="json", exclude_defaults=True)


def to_csv(runs: Iterable[Packed]) -> str:
    """Return a line per run, by model, preset, experiment and seed: numbers with all digits, unknown ones empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in sorted(runs, key=lambda run: (run.model, run.preset, run.experiment, run.overrides, run.seed)):
        names = {name: getattr(run, name) for name in NAMES} | {"paired": str(run.paired).lower()}
        figures = ("" if math.isnan(run.values[key]) else run.values[key] for key in FIGURES)
        counts = ("" if run.crashes[kind] is None else run.crashes[kind] for kind in CRASH_KINDS)
        writer.writerow([*names.values(), *figures, *counts])
    return out.getvalue()


def read(path: Path) -> list[Packed]:
    """Return the runs of a file that ``to_csv`` made. Raises ``BadResource`` for another one."""
    header, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    if tuple(header) != COLUMNS:
        raise BadResource(f"{path} is no file of runs: its columns are others", "`safebench keep RUN… --out FILE.csv`.")
    try:
        return [_run(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    except (ValueError, KeyError) as error:
        raise BadResource(f"{path}: {error}", "Write it again: `safebench keep RUN… --out FILE.csv`.") from error


def _run(cells: Mapping[str, str]) -> Packed:
    numbers = {name: int(cells[name]) for name in ("seed", "steps", "specification")}
    return Packed(
        **{name: cells[name] for name in NAMES if name not in numbers and name != "paired"},  # type: ignore[arg-type]
        **numbers,  # type: ignore[arg-type]
        paired={"true": True, "false": False}[cells["paired"]],
        values={key: float(cells[key] or "nan") for key in FIGURES},
        crashes={kind: int(cells[f"crash/{kind}"]) if cells[f"crash/{kind}"] else None for kind in CRASH_KINDS},
    )


def _settings(run: Run) -> tuple[Mapping[str, Any], str]:
    """Return the run's settings that are not at their defaults, and how they depart from the experiment's, in words.

    An imported run has only those settings that are known, and no experiment of ours.
    """
    if "foreign" in run.manifest:
        return run.settings, ""
    try:
        settings = config.load(run.folder / "config.yaml")
    except BadResource:  # of another version, whose experiment this one does not have
        return _raw_departures(run), "made by another version of safebench"
    original = config.shipped(settings)
    changed = [] if original is None or not config.differs(settings) else config.changes(settings, original)
    overrides = "; ".join(f"{key}={value}" for key, _, value in changed if not fairness.ignored(key))
    return departures(settings), overrides


def _raw_departures(run: Run) -> dict[str, Any]:
    """Return what a run's file has that is not at this version's defaults."""
    known, found = filled.defaults(), dict[str, Any]()
    for key, value in filled.flatten(run.settings).items():
        if key in known and known[key] == value:
            continue
        section = found
        *above, last = key.split(".")
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return found


def _ground(settings: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    members = [member for group in fairness.MATCHED.values() for member in group]
    flat = filled.flatten(settings)
    content = {key: value for key, value in flat.items() if fairness.belongs(key, members)}
    # Random weights are another model for every seed, in every arm alike.
    left_out = {"model"} if flat.get("model.random_weights") else set()
    content |= {f"hash of {key}": hashes.get(key) for key in fairness.HASHED if key not in left_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _count(summary: Summary, kind: str) -> int | None:
    return summary.count(kind) if summary.watched(kind) else None
