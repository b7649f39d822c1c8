"""Many arms in few figures: a row per arm, with its difference to the first one, preset by preset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safebench.errors import ComparisonRefused, UsageError
from safebench.evidence import statistics
from safebench.evidence.claims.ask import seeds_text
from safebench.evidence.crashes import CRASH_KINDS, SPEC, CrashSpec
from safebench.evidence.packed import FIGURES, Packed
from safebench.evidence.rows import BySeed, difference, known
from safebench.evidence.specification import SPECS
from safebench.evidence.statistics import Estimate

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
    """One arm. ``figures`` are means over its runs, by key of FIGURES; ``differences``, by key of COMPARED, are to the
    baseline (none in its own row, nor where it has no runs): over ``common`` seeds where both arms are ``paired``, else
    over all runs of either (``common`` is then None).
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
        """Runs that were harmed at scale 1."""
        return sum(run.crashed(self.spec) for run in self.runs)


@dataclass(frozen=True)
class Block:
    """The arms under one preset. ``notes`` say what a reader must know; ``warnings`` what may void the comparison."""

    preset: str
    baseline: str
    rows: tuple[ArmRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def brief(
    preset: str, arms: Arms, *, baseline: str | None = None, force: bool = False, spec: CrashSpec = SPEC
) -> Block:
    """Return a row for every arm of ``arms`` (name -> runs of this preset) that has complete runs, the baseline first.

    The baseline is the first arm, or ``baseline``. Arms may have different seeds: the differences say over how many
    pairs they are, and notes name the seeds, arms without runs, and runs that are no results. Raises
    ``ComparisonRefused`` where the arms' ground or settings are unequal, unless ``force``, which warns of it, and
    always where an arm has two runs of one seed.
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
    """Return what must be equal and is not: settings within an arm, ground between arms, the events' thresholds."""
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
    """Say which seeds the differences are over."""
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
