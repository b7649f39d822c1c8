"""Compare arms: means with intervals, paired differences to the first arm, exact tests, and unequal settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from safebench.analysis import fairness, frontier, statistics
from safebench.analysis.fairness import Unequal, filled
from safebench.analysis.rows import Cell, Rounding, Row, across_rows, crash_rows, known, pairs, scalar_rows
from safebench.analysis.runs import Run
from safebench.analysis.scalars import SCALARS, Scalar, Summary, summarise
from safebench.analysis.statistics import Estimate
from safebench.analysis.stopping import Stopping
from safebench.config import yaml_text
from safebench.crashes.detect import CRASH_KINDS, SCALES, SPEC, CrashSpec
from safebench.crashes.inert import inert_in
from safebench.errors import ComparisonRefused, UsageError, nearest

Summaries = Mapping[str, Sequence[Summary]]

MACHINE = ("time_update", "tokens_per_second", "memory_peak")
"""Rows without a rounding figure, because the order of sums does not explain their differences."""


def with_rounding(
    rows: Sequence[Row], originals: Summaries, replicates: Summaries, arms: Sequence[str], spec: CrashSpec
) -> tuple[Row, ...]:
    """Return the rows with each arm's ``Rounding``; replicates enter no other figure."""
    there = [arm for arm in arms if replicates.get(arm)]
    again = {arm: f"{arm}, replicate" for arm in there}  # in one table with the originals, so that no row is missing
    both = {**{arm: originals[arm] for arm in there}, **{again[arm]: replicates[arm] for arm in there}}
    found = [
        row
        for make in (scalar_rows(both, [*both]), across_rows(both, [*both], spec), crash_rows(both, [*both], spec))
        for row in make
    ] if there else []  # fmt: skip
    cells = {row.scalar.key: row.cells for row in found if row.scalar.key not in MACHINE}
    same = {arm for arm in there if _seeds(originals[arm]) == _seeds(replicates[arm])}
    return tuple(
        replace(
            row,
            rounding={
                arm: _rounding(row.kind, cells[row.scalar.key][again[arm]], cells[row.scalar.key][arm], arm in same)
                for arm in there
                if row.scalar.key in cells
            },
        )
        for row in rows
    )


def _rounding(kind: str, replicate: Cell, original: Cell, same_seeds: bool) -> Rounding:
    if kind == "across":
        moved = abs(replicate.estimate.value - original.estimate.value) if same_seeds else math.nan
        return Rounding(math.nan, moved, original.estimate.n)
    differences = np.array([second - first for second, first in pairs(replicate.values, original.values)])
    if not differences.size:
        return Rounding(math.nan, math.nan, 0)
    return Rounding(float(np.abs(differences).mean()), abs(float(differences.mean())), int(differences.size))


def replicate_footers(replicates: Summaries) -> tuple[str, ...]:
    """Return the footer that explains the rounding column and names its seeds."""
    seeds = "; ".join(f"{arm} seeds {', '.join(map(str, _seeds(found)))}" for arm, found in replicates.items() if found)
    return (
        "rounding a / b: the same runs with sums in another order (compute.replicate); a is the mean over seeds of "
        f"|replicate − original|, b the size of their mean difference, of the arm where it is larger ({seeds}). "
        "A difference between arms of the size of b is no more than rounding does",
    )


def replicate_warnings(originals: Summaries, replicates: Summaries) -> tuple[str, ...]:
    """Return warnings of causes other than rounding that may change the replicates."""
    found = []
    for arm, again in replicates.items():
        for what, name in (("commit", commit), ("machine", machine)):
            made = {name(summary.run) for summary in (*originals[arm], *again)} - {""}
            if again and len(made) > 1:
                found.append(
                    f"the replicates of {arm} and their originals are not all from one {what}: not rounding alone "
                    "moves them"
                )
    return tuple(found)


def _seeds(found: Sequence[Summary]) -> list[int]:
    return sorted(summary.run.seed for summary in found)


def loud_warnings(summaries: Summaries, unequal: Sequence[Unequal], unmatched: Sequence[str]) -> tuple[str, ...]:
    """Return warnings of what may decide the comparison by itself, or makes part of it invalid."""
    warnings = [f"UNMATCHED: {reason}" for reason in unmatched]
    for name in dict.fromkeys(item.loud for item in unequal if item.loud):
        keys = "; ".join(
            f"{item.key}: " + ", ".join(f"{arm} {value}" for arm, value in item.values.items())
            for item in unequal
            if item.loud == name
        )
        warnings.append(f"the arms differ in {name} ({keys})")
    for arm, found in summaries.items():
        unstable = [f"{s.run.seed} at step {s.run.last_step}" for s in found if s.run.status == "unstable"]
        if unstable:
            warnings.append(
                f"{arm} ended unstable, and stays in, with what it recorded until then: seed {', seed '.join(unstable)}"
            )
        if not all(summary.run.paired for summary in found):
            warnings.append(
                f"{arm} is not paired by seed: differences to it are unpaired (intervals by Welch and Newcombe, p by "
                "permutation of the arms' labels)"
            )
        warnings += [*_inert(arm, found), *_blind(arm, found)]
    return (*warnings, *_unequally_watched(summaries), *_mixed(summaries))


def _inert(arm: str, found: Sequence[Summary]) -> list[str]:
    """Return warnings that name the inert loss terms of an arm, with seeds and steps."""
    seen: dict[str, list[str]] = {}
    for summary in found:
        for term in inert_in(summary.run):
            told = f"seed {summary.run.seed}: steps {term.first} to {term.last}, {term.logged} of them logged"
            seen.setdefault(term.term, []).append(told)
    return [
        f"{arm}: the loss term {term} is inert, not zero while its gradient is exactly zero: it steers nothing "
        f"({'; '.join(told)})"
        for term, told in seen.items()
    ]


def _blind(arm: str, found: Sequence[Summary]) -> list[str]:
    """Return warnings that name the kinds of crash that an arm's files could not show, with reasons and seeds."""
    seeds: dict[tuple[bool, str], list[int]] = {}
    for summary in found:
        for kind, reasons, wholly in summary.blind:
            seeds.setdefault((wholly, f"{kind} ({', '.join(reasons)})"), []).append(summary.run.seed)
    warnings = []
    for whole, words in ((True, "not watched, which is not the same as no crash"), (False, "watched in part only")):
        told = [
            text + (f" in seed {', '.join(map(str, held))}" if len(held) < len(found) else "")
            for (wholly, text), held in seeds.items()
            if wholly == whole
        ]
        if told:
            warnings.append(f"{arm}: {words}: {', '.join(told)}")
    return warnings


def _unequally_watched(summaries: Summaries) -> list[str]:
    blind = [{kind for summary in found for kind in summary.unmeasured} for found in summaries.values()]
    unequal = [kind for kind in CRASH_KINDS if len({kind in kinds for kinds in blind}) > 1]
    if not unequal:
        return []
    harms = {kind for found in summaries.values() for summary in found for kind in summary.unmeasured_harms}
    what = "crash rates" if harms & {*unequal} else "counts"
    return [f"not every arm was watched for {', '.join(unequal)}: their {what} do not compare"]


def footers(summaries: Summaries, seeds: Sequence[int], spec: CrashSpec) -> tuple[str, ...]:
    """Return the lines that state what was compared and how the runs were made."""
    runs = [summary.run for found in summaries.values() for summary in found]
    steps = sorted({run.planned_steps for run in runs})
    lines = [
        f"seeds {', '.join(map(str, seeds))}; steps {', '.join(map(str, steps))}",
        f"commit {', '.join(_commits(summaries)) or 'unknown'}",
        f"hardware {'; '.join(_machines(summaries)) or 'unknown'}",
        f"crash specification {spec.version}{_alarms(spec)}; a / b / c in r: episodes at thresholds "
        f"{' / '.join(f'{scale:g}×' for scale in SCALES)}, at 1× in r runs; their difference is per run at 1×",
    ]
    return (lines[0], *_commands(summaries), *tunings(runs), *lines[1:])


def _alarms(spec: CrashSpec) -> str:
    return ": a run crashed if harmed, alarms are counted beside" if spec.alarms else ""


def _commands(summaries: Summaries) -> list[str]:
    """Return the command that makes an arm's runs, one line for each arm whose first run recorded its command."""
    lines = []
    for found in summaries.values():
        command = found[0].run.manifest.get("command") if found else None
        if command:
            seeds = ",".join(str(summary.run.seed) for summary in found)
            told = re.sub(r"--seeds \S+", f"--seeds {seeds}", str(command))
            run = found[0].run
            if run.settings.get("tuned"):  # written by `safebench tune`; old runs name the experiment only
                told = told.replace(f"run {run.experiment} ", f"run results/tuning/{run.experiment}.yaml ")
            lines.append(f"command {told}")
    return lines


def tunings(runs: Iterable[Run]) -> list[str]:
    """Return one line for each tuned experiment among the runs with the cost of its tuning."""
    return list(dict.fromkeys(_tuning(run) for run in runs if run.settings.get("tuned")))


def cost_told(record: Mapping[str, Any]) -> str:
    """Return the cost of a tuning in words, from its record."""
    runs, steps, tokens, seconds = (record[key] for key in ("runs", "steps", "tokens", "seconds"))
    return f"{runs} pilot runs, {steps:,} steps, {tokens:,} tokens, {seconds:,.0f} s"


def _tuning(run: Run) -> str:
    record = run.settings["tuned"]
    try:
        seeds = ", ".join(map(str, record["seeds"]))
        sampler = record.get("sampler", "halton")  # early records do not name it
        by = "" if sampler == "halton" else f" (sampler {sampler})"
        return (
            f"tuning of {run.experiment} from {record['experiment']} by {record['criterion']}, "
            f"{record['points']} points{by} on seeds {seeds}: {cost_told(record)}"
        )
    except (KeyError, TypeError, ValueError):  # not in the format of this version
        return f"tuning of {run.experiment}: its config.yaml does not tell the cost"


def _mixed(summaries: Summaries) -> list[str]:
    warnings = []
    if len(_machines(summaries)) > 1:
        warnings.append("the runs come from different hardware: times, speed and memory do not compare")
    if len(_commits(summaries)) > 1:
        warnings.append("the runs come from different commits")
    return warnings


def _commits(summaries: Summaries) -> list[str]:
    names = [commit(summary.run) for runs in summaries.values() for summary in runs]
    return list(dict.fromkeys(name for name in names if name))


def _machines(summaries: Summaries) -> list[str]:
    names = [machine(summary.run) for runs in summaries.values() for summary in runs]
    return list(dict.fromkeys(name for name in names if name))


def commit(run: Run) -> str:
    """Return the commit that a run was made with, and whether the tree was changed; empty if unknown."""
    git = run.manifest.get("git")
    return f"{git['commit'][:9]}{' (changed)' * bool(git.get('dirty'))}" if git else ""


def machine(run: Run) -> str:
    """Return processor, cores and device of a run; empty if unknown."""
    hardware = run.manifest.get("hardware")
    if not hardware:
        return ""
    cpu, cores = hardware.get("cpu", "unknown processor"), hardware.get("usable_cores", "?")
    return f"{cpu}, {cores} cores, device {hardware.get('device', '?')}"


Groups = Mapping[str, Sequence[Run]]

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Test:
    """One primary metric of one arm against the baseline. ``adjusted`` is Holm's p over all tests of the table."""

    __test__ = False  # a statistical test, not one for pytest to collect

    scalar: Scalar
    arm: str
    difference: Estimate
    adjusted: float
    improvement: float
    """Probability that a run of the arm is better than one of the baseline; ties count one half."""
    bootstrap: Estimate | None = None
    """BCa interval of the paired difference, from eight pairs on."""


@dataclass(frozen=True)
class Comparison:
    """All data of a comparison table. ``unmatched`` holds the reasons for a refusal that ``force`` overrode."""

    arms: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    tests: tuple[Test, ...]
    fairness: tuple[Unequal, ...]
    warnings: tuple[str, ...]
    footers: tuple[str, ...]
    unmatched: tuple[str, ...]
    summaries: Mapping[str, tuple[Summary, ...]]
    spec: CrashSpec
    stopping: Stopping | None = None
    """The rule by which seeds were added, and its decisions; if set, the tests' p-values are not valid."""
    replicated: bool = False
    """Whether the rows show the effect of rounding alone."""

    @property
    def unpaired(self) -> tuple[str, ...]:
        """Arms with runs whose randomness is not controlled by the bench: differences to them are not by seed."""
        return tuple(a for a, found in self.summaries.items() if not all(summary.run.paired for summary in found))

    def paired(self, arm: str) -> bool:
        """Return whether the arm's differences to the baseline are by seed."""
        return not {arm, self.baseline} & {*self.unpaired}

    def row(self, key: str) -> Row:
        """Return the row of one scalar; raise ``KeyError`` if the table has none."""
        for row in self.rows:
            if row.scalar.key == key:
                return row
        raise KeyError(key)


def compare(
    groups: Groups,
    *,
    baseline: str | None = None,
    seeds: Iterable[int] | None = None,
    force: bool = False,
    spec: CrashSpec = SPEC,
    again: Groups | None = None,
) -> Comparison:
    """Compare the arms of ``groups`` (name -> runs) on ``seeds`` (default: all that any arm has).

    ``again`` holds replicates by arm. They show the effect of rounding alone and enter no other figure.

    The arms are compared to ``baseline``, by default the first arm. Raises ``ComparisonRefused`` with every reason if
    the arms are unmatched. With ``force``, the result is marked instead.
    """
    arms = _ordered(groups, baseline)
    wanted = sorted({run.seed for runs in groups.values() for run in runs} if seeds is None else set(seeds))
    chosen = {arm: [run for run in groups[arm] if run.seed in wanted] for arm in arms}
    unmatched = fairness.mismatches(chosen, wanted)
    doubled = any(len({run.seed for run in runs}) < len(runs) for runs in chosen.values())
    if unmatched and (not force or doubled or not all(chosen.values())):
        raise ComparisonRefused(
            "these runs cannot be compared:\n" + "\n".join(f"- {reason}" for reason in unmatched),
            "Make the runs that are missing (--run), or choose --seeds that every arm has; --force compares what is "
            "there and marks it. Several runs of one seed, or none at all, cannot be forced.",
        )
    summaries = {arm: tuple(summarise(run, spec) for run in runs) for arm, runs in chosen.items()}
    summaries, level = at_matched_kl(summaries)
    rows: tuple[Row, ...] = (
        *scalar_rows(summaries, arms),
        *across_rows(summaries, arms, spec),
        *crash_rows(summaries, arms, spec),
    )
    tests = _tests(rows, arms, summaries)
    unequal = fairness.differences(chosen)
    warned, told = loud_warnings(summaries, unequal, unmatched), footers(summaries, wanted, spec)
    if again is not None:
        rounded = {arm: tuple(summarise(run, spec) for run in again.get(arm, ()) if run.seed in wanted) for arm in arms}
        rounded = _at_level(rounded, level)
        rows = with_rounding(rows, summaries, rounded, arms, spec)
        warned, told = (*warned, *replicate_warnings(summaries, rounded)), (*told, *replicate_footers(rounded))
    return Comparison(
        arms=arms,
        baseline=arms[0],
        seeds=tuple(wanted),
        rows=rows,
        tests=tests,
        fairness=unequal,
        warnings=warned,
        footers=(*told, *_level_told(level, summaries)),
        unmatched=tuple(unmatched),
        summaries=summaries,
        spec=spec,
        replicated=again is not None,
    )


def _ordered(groups: Groups, baseline: str | None) -> tuple[str, ...]:
    if not groups:
        raise UsageError("nothing to compare", "Name at least one experiment that has runs.")
    first = baseline if baseline is not None else next(iter(groups))
    if first not in groups:
        raise UsageError(f"the baseline {first!r} is not among {', '.join(groups)}", "Name one of these.")
    return (first, *(arm for arm in groups if arm != first))


def at_matched_kl(summaries: Mapping[str, Sequence[Summary]]) -> tuple[dict[str, tuple[Summary, ...]], float]:
    """Add judge reward at matched KL; also return the level in nats per reply: the frontier's last (NaN: none)."""
    level = frontier.matched_level({arm: [summary.run for summary in found] for arm, found in summaries.items()})
    return _at_level(summaries, level), level


def _at_level(summaries: Mapping[str, Sequence[Summary]], level: float) -> dict[str, tuple[Summary, ...]]:
    def filled(summary: Summary) -> Summary:
        return replace(summary, values={**summary.values, "judge_matched": frontier.judge_at(summary.run, level)})

    return {arm: tuple(filled(summary) for summary in found) for arm, found in summaries.items()}


def _level_told(level: float, summaries: Mapping[str, Sequence[Summary]]) -> tuple[str, ...]:
    if math.isnan(level):
        return ()
    missing = [
        f"{arm} seed {', '.join(map(str, seeds))}"
        for arm, found in summaries.items()
        if (seeds := [s.run.seed for s in found if math.isnan(s.values["judge_matched"])])
    ]
    told = f"; not reached by {'; '.join(missing)}" if missing else ""
    return (f"matched KL: {level:g} nats per reply, which at least half of every arm's seeds reach{told}",)


def _tests(rows: Sequence[Row], arms: Sequence[str], summaries: Mapping[str, Sequence[Summary]]) -> tuple[Test, ...]:
    primary = [row for row in rows if row.scalar.primary]
    made = {f"{row.scalar.key} {arm}": row.differences[arm].p for row in primary for arm in arms[1:]}
    declared = 1 + sum(scalar.primary for scalar in SCALARS)
    adjusted = statistics.holm(made, family=declared * (len(arms) - 1) or None)
    return tuple(
        Test(
            row.scalar,
            arm,
            row.differences[arm],
            adjusted[f"{row.scalar.key} {arm}"],
            _improvement(row, arm, arms[0]),
            _bootstrap(row, arm, arms[0]),
        )
        for arm in arms[1:]
        for row in primary
    )


def _bootstrap(row: Row, arm: str, first: str) -> Estimate | None:
    both = pairs(row.cells[arm].values, row.cells[first].values)
    if row.kind != "mean" or row.differences[arm].method != statistics.PAIRED or len(both) < 8:
        return None
    return statistics.bca([second - base for second, base in both], np.random.default_rng(BOOTSTRAP_SEED))


def _improvement(row: Row, arm: str, first: str) -> float:
    sign = -1.0 if row.scalar.direction == "down" else 1.0
    second, base = ([sign * value for value in known(row.cells[name].values)] for name in (arm, first))
    return statistics.probability_of_improvement(second, base)


def matching(runs: Iterable[Run], where: Sequence[str]) -> list[Run]:
    """Return the runs that have every setting of ``where``, each ``key.path=value`` with the value read as YAML.

    Raises ``UsageError`` for text without ``=``, and for a key that no run has.
    """
    found = list(runs)
    flat = [filled(run) for run in found]
    for condition in where:
        key, equals, text = condition.partition("=")
        if not equals:
            raise UsageError(f"--where {condition!r} has no =", "Write key=value, such as update.learning_rate=1e-4.")
        if flat:
            _known_key(key, {name for settings in flat for name in settings})
        value = yaml_text.read(text)
        kept = [i for i, settings in enumerate(flat) if key in settings and _equal(settings[key], value)]
        found, flat = [found[i] for i in kept], [flat[i] for i in kept]
    return found


def choose(comparison: Comparison, metrics: Sequence[str]) -> Comparison:
    """Return the comparison with only the rows (and tests) of ``metrics``, in that order; all if none are named.

    A metric is the key of a row, such as ``judge_final``, or a prefix of several keys, such as ``kl`` or ``crash``.
    Holm's correction still covers all declared tests: showing fewer rows makes no test easier.
    """
    if not metrics:
        return comparison
    keys = [row.scalar.key for row in comparison.rows]
    wanted = list(dict.fromkeys(key for metric in metrics for key in _expanded(metric, keys)))
    tests = tuple(test for test in comparison.tests if test.scalar.key in wanted)
    return replace(comparison, rows=tuple(comparison.row(key) for key in wanted), tests=tests)


def _expanded(metric: str, keys: Sequence[str]) -> list[str]:
    found = [key for key in keys if key == metric] or [key for key in keys if key.startswith(metric)]
    if not found:
        near = nearest(metric, keys)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(keys)}"
        raise UsageError(f"no metric {metric!r} in this comparison; {advice}", "A metric is named by its row's key.")
    return found


def _known_key(key: str, keys: set[str]) -> None:
    if key not in keys:
        near = nearest(key, sorted(keys))
        raise UsageError(
            f"--where {key}: no run has such a setting" + (f"; did you mean {near}?" if near else ""),
            "`safebench run EXPERIMENT --dry-run` prints all settings.",
        )


def _equal(held: object, wanted: object) -> bool:
    """Return whether two settings are equal. Numbers are compared by value: 1 equals 1.0, but True does not equal 1."""
    numbers = isinstance(held, int | float) and isinstance(wanted, int | float)
    if numbers and not isinstance(held, bool) and not isinstance(wanted, bool):
        return held == wanted
    return type(held) is type(wanted) and held == wanted
