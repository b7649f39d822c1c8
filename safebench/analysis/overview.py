"""Compare many arms briefly: one line per run, and one row per arm for each preset."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safebench import config
from safebench.analysis import fairness, statistics
from safebench.analysis.claims.ask import seeds_text
from safebench.analysis.compare import commit, machine
from safebench.analysis.rows import BySeed, difference, known
from safebench.analysis.runs import COMPLETE, Run
from safebench.analysis.scalars import Summary, summarise
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import CRASH_KINDS, SPEC, CrashSpec
from safebench.crashes.signals import SPECS
from safebench.errors import BadResource, ComparisonRefused, UsageError

FIGURES = ("judge_final", "kl_mean", "kl_max", "entropy_final", "time_update")
"""Scalars of a run that are kept (``analysis/scalars.py``)."""
NAMES = ("model", "experiment", "preset", "overrides", "seed", "settings", "ground", "status", "steps", "paired",
         "code", "machine", "specification")  # fmt: skip
COLUMNS = (*NAMES, *FIGURES, *(f"crash/{kind}" for kind in CRASH_KINDS))
PLAIN = "default"
"""Name of the preset of a run without one."""


@dataclass(frozen=True)
class Packed:
    """One run. ``overrides`` holds the settings, ``a.b=v; …``, in which it differs from its named experiment.

    ``settings`` is the hash of all settings that affect the computation (``digest``). ``ground`` is the hash of what
    must be equal between compared arms: model, data, reward, number of steps, and their files. ``values`` holds FIGURES
    (NaN: not measured). ``crashes`` holds the number of episodes of each kind at scale 1 (None: not watched), by the
    thresholds of ``specification``.
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
        """Name of the arm that the run belongs to, without its preset."""
        return f"{self.experiment}[{self.overrides}]" if self.overrides else self.experiment

    @property
    def complete(self) -> bool:
        """Whether the run is a result, as ``Run.complete``."""
        return self.status in COMPLETE

    def crashed(self, spec: CrashSpec = SPEC) -> bool:
        """Return whether the run had a harm at scale 1."""
        return spec.crashed([kind for kind, count in self.crashes.items() if count])


def pack(run: Run, spec: CrashSpec = SPEC) -> Packed:
    """Return the line of one run, from its files. Raises ``BadResource`` if its settings are damaged."""
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
        settings=config.digest(settings),
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


def read_packed(path: Path) -> list[Packed]:
    """Return the runs of a file that ``to_csv`` wrote. Raises ``BadResource`` for any other file."""
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
    """Return the run's settings that are not at their defaults, and in words how they differ from the experiment's.

    An imported run has only its known settings, and no experiment of the bench.
    """
    if "foreign" in run.manifest:
        return run.settings, ""
    try:
        settings = config.load(run.folder / "config.yaml")
    except BadResource:  # made by another version, whose experiment this one lacks
        return _raw_departures(run), "made by another version of safebench"
    original = config.shipped(settings)
    changed = [] if original is None or not config.differs(settings) else config.changes(settings, original)
    overrides = "; ".join(f"{key}={value}" for key, _, value in changed if not fairness.ignored(key))
    return config.departures(settings), overrides


def _raw_departures(run: Run) -> dict[str, Any]:
    """Return the settings in a run's file that are not at this version's defaults."""
    known, found = fairness.defaults(), dict[str, Any]()
    for key, value in fairness.flatten(run.settings).items():
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
    flat = fairness.flatten(settings)
    content = {key: value for key, value in flat.items() if fairness.belongs(key, members)}
    # Random weights are a different model for every seed, in every arm alike.
    left_out = {"model"} if flat.get("model.random_weights") else set()
    content |= {f"hash of {key}": hashes.get(key) for key in fairness.HASHED if key not in left_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _count(summary: Summary, kind: str) -> int | None:
    return summary.count(kind) if summary.watched(kind) else None


COMPARED = ("judge_final", "kl_mean")
"""Figures whose difference to the baseline is shown."""

Arms = Mapping[str, Sequence[Packed]]


@dataclass(frozen=True)
class Tally:
    """Crashes of one kind over an arm's runs: ``episodes`` at scale 1, in ``hit`` of the ``watched`` runs."""

    episodes: int
    hit: int
    watched: int


@dataclass(frozen=True)
class ArmRow:
    """One arm.

    ``figures`` are means over its runs, by key of FIGURES. ``differences``, by key of COMPARED, are to the baseline.
    There are none in the baseline's own row, nor if the baseline has no runs. They are over ``common`` seeds if both
    arms are ``paired``, else over all runs of either arm (``common`` is then None).
    """

    arm: str
    runs: tuple[Packed, ...]
    figures: Mapping[str, Estimate]
    crashes: Mapping[str, Tally]
    differences: Mapping[str, Estimate]
    common: tuple[int, ...] | None
    paired: bool
    spec: CrashSpec = SPEC

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its runs."""
        return tuple(run.seed for run in self.runs)

    @property
    def crashed(self) -> int:
        """Number of runs with a harm at scale 1."""
        return sum(run.crashed(self.spec) for run in self.runs)


@dataclass(frozen=True)
class Block:
    """The arms under one preset. ``notes`` inform the reader; ``warnings`` name what may invalidate the comparison."""

    preset: str
    baseline: str
    rows: tuple[ArmRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def brief(
    preset: str, arms: Arms, *, baseline: str | None = None, force: bool = False, spec: CrashSpec = SPEC
) -> Block:
    """Return a row for every arm of ``arms`` (name -> runs of this preset) that has complete runs, the baseline first.

    The baseline is ``baseline``, by default the first arm. Arms may have different seeds: each difference states its
    number of pairs, and notes name the seeds, the arms without runs, and the incomplete runs. Raises
    ``ComparisonRefused`` if the arms' ground or settings are unequal; with ``force`` this is a warning. Always raises
    ``ComparisonRefused`` if an arm has two runs of one seed.
    """
    first = baseline if baseline is not None else next(iter(arms), "")
    if first not in arms:
        raise UsageError(f"the baseline {first!r} is not among {', '.join(arms)}", "Name one of these.")
    complete = {
        arm: sorted((r for r in arms[arm] if r.complete), key=lambda r: r.seed) for arm in _ordered(arms, first)
    }
    unmatched = _unmatched(complete)
    doubled = [arm for arm, runs in complete.items() if len({run.seed for run in runs}) < len(runs)]
    if doubled or (unmatched and not force):
        reasons = [*(f"{arm} has several runs of one seed" for arm in doubled), *unmatched]
        raise ComparisonRefused(
            "these runs cannot be compared:\n" + "\n".join(f"- {reason}" for reason in reasons),
            "--force compares what does not match and marks it; several runs of one seed cannot be forced. "
            "`safebench compare A B` without --brief names what differs.",
        )
    rows = tuple(
        _row(arm, runs, complete[first] if arm != first else [], spec) for arm, runs in complete.items() if runs
    )
    warnings = (*(f"UNMATCHED: {reason}" for reason in unmatched), *_warnings(rows))
    return Block(preset, first, rows, warnings, tuple(_notes(rows, arms, first, spec)))


def _ordered(arms: Iterable[str], first: str) -> list[str]:
    return [first, *(arm for arm in arms if arm != first)]


def _row(arm: str, runs: Sequence[Packed], base: Sequence[Packed], spec: CrashSpec) -> ArmRow:
    paired = all(run.paired for run in (*runs, *base))
    common = sorted({run.seed for run in runs} & {run.seed for run in base})
    differences = {key: difference(_values(runs, key), _values(base, key), paired) for key in COMPARED} if base else {}
    return ArmRow(
        arm,
        tuple(runs),
        {key: statistics.mean(known(_values(runs, key))) for key in FIGURES},
        {kind: tally for kind in CRASH_KINDS if (tally := _tally(runs, kind)).episodes},
        differences,
        tuple(common) if paired else None,
        all(run.paired for run in runs),
        spec,
    )


def _values(runs: Sequence[Packed], key: str) -> BySeed:
    return {run.seed: run.values[key] for run in runs}


def _tally(runs: Sequence[Packed], kind: str) -> Tally:
    counts = [count for run in runs if (count := run.crashes[kind]) is not None]
    return Tally(sum(counts), sum(count > 0 for count in counts), len(counts))


def _unmatched(arms: Arms) -> list[str]:
    """Return what must be equal but is not: settings within an arm, ground between arms; and unknown thresholds."""
    reasons = [f"the runs of {arm} have unequal settings" for arm, runs in arms.items() if _several(runs, "settings")]
    every = [run for runs in arms.values() for run in runs]
    if _several(every, "ground"):
        by_ground: dict[str, list[str]] = {}
        for arm, runs in arms.items():
            for ground in dict.fromkeys(run.ground for run in runs):
                by_ground.setdefault(ground, []).append(arm)
        told = " against ".join(", ".join(names) for names in by_ground.values())
        reasons.append(f"another model, data, reward or number of steps: {told}")
    if unknown := sorted({run.specification for run in every} - SPECS.keys()):
        versions = ", ".join(map(str, unknown))
        reasons.append(f"crashes were counted by specification {versions}, whose thresholds are not known here")
    return reasons


def _several(runs: Iterable[Packed], name: str) -> bool:
    return len({getattr(run, name) for run in runs}) > 1


def _warnings(rows: Sequence[ArmRow]) -> list[str]:
    every = [run for row in rows for run in row.runs]
    warnings = []
    for row in rows:
        unstable = [run for run in row.runs if run.status == "unstable"]
        if unstable:
            told = ", ".join(f"seed {run.seed} at step {run.steps}" for run in unstable)
            warnings.append(f"{row.arm} ended unstable, and stays in, with what it recorded until then: {told}")
    unwatched: dict[str, list[str]] = {}
    for row in rows:
        kinds = [kind for kind in CRASH_KINDS if any(run.crashes[kind] is None for run in row.runs)]
        if kinds:
            unwatched.setdefault(", ".join(kinds), []).append(row.arm)
    warnings += [
        f"{', '.join(arms)}: not watched in every run, which is not the same as no crash: {kinds}"
        for kinds, arms in unwatched.items()
    ]
    if _several(every, "machine"):
        warnings.append("the runs come from different hardware: times do not compare")
    return warnings


def _notes(rows: Sequence[ArmRow], arms: Arms, first: str, spec: CrashSpec) -> list[str]:
    seeds: dict[str, list[str]] = {}
    for row in rows:
        seeds.setdefault(seeds_text(row.seeds), []).append(row.arm)
    notes = ["seeds " + "; ".join(f"{text}: {', '.join(names)}" for text, names in seeds.items())] if seeds else []
    shown = {row.arm for row in rows}
    if absent := [arm for arm in arms if arm not in shown]:
        notes.append(f"no runs: {', '.join(absent)}")
    owed = [f"{arm} seed {run.seed} ({run.status})" for arm, runs in arms.items() for run in runs if not run.complete]
    if owed:
        notes.append(f"not complete, left out: {', '.join(owed)}")
    others = [row for row in rows if row.arm != first]
    if others and first in shown:
        notes.append(_pairing(others, first))
    if unpaired := [row.arm for row in rows if not row.paired]:
        notes.append(
            f"unpaired: {', '.join(unpaired)}; differences to them are of independent samples (Welch's interval)"
        )
    every = [run for row in rows for run in row.runs]
    notes.append(f"commit {', '.join(_distinct(run.code for run in every)) or 'unknown'}")
    notes.append(f"hardware {'; '.join(_distinct(run.machine for run in every)) or 'unknown'}")
    beside = f": {', '.join(spec.alarms)} are alarms, which alone mean no crash" if spec.alarms else ""
    notes.append(f"crash specification {spec.version}{beside}")
    return notes


def _pairing(others: Sequence[ArmRow], first: str) -> str:
    """Return the note that names the seeds of the differences."""
    over: dict[str, list[str]] = {}
    for row in others:
        if row.common is not None:
            over.setdefault(seeds_text(row.common) or "no seed", []).append(row.arm)
    told = "; ".join(f"{text}: {', '.join(arms)}" for text, arms in over.items())
    return (
        f"differences to {first}, with 95 % intervals, are over the seeds that both have ({told or 'no arm is paired'})"
    )


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))
