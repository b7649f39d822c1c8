"""What stands under a comparison: where its runs came from, and what a reader must be warned of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safebench.evidence.crashes import CRASH_KINDS, SCALES, CrashSpec
from safebench.evidence.fairness import Unequal
from safebench.evidence.inert import inert_in
from safebench.evidence.runs import Run
from safebench.evidence.summary import Summary

Summaries = Mapping[str, Sequence[Summary]]


def loud_warnings(summaries: Summaries, unequal: Sequence[Unequal], unmatched: Sequence[str]) -> tuple[str, ...]:
    """Return what may decide the comparison by itself, or makes part of it void."""
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
    """Name the loss terms of an arm that moved nothing, and where."""
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
    """Name the kinds of crash that an arm's files could not show, with the reasons and the seeds."""
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
    """Return the lines that say what was compared and how it was made."""
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
    """Return the command that makes an arm's runs, one line for each arm whose first run has kept its own."""
    lines = []
    for found in summaries.values():
        command = found[0].run.manifest.get("command") if found else None
        if command:
            seeds = ",".join(str(summary.run.seed) for summary in found)
            told = re.sub(r"--seeds \S+", f"--seeds {seeds}", str(command))
            run = found[0].run
            if run.settings.get("tuned"):  # a file that `safebench tune` wrote: runs of old name it as if it were known
                told = told.replace(f"run {run.experiment} ", f"run results/tuning/{run.experiment}.yaml ")
            lines.append(f"command {told}")
    return lines


def tunings(runs: Iterable[Run]) -> list[str]:
    """Return what the tuning of each tuned experiment among the runs cost, a line each."""
    return list(dict.fromkeys(_tuning(run) for run in runs if run.settings.get("tuned")))


def cost_told(record: Mapping[str, Any]) -> str:
    """Return the cost of a tuning in words, from its record."""
    runs, steps, tokens, seconds = (record[key] for key in ("runs", "steps", "tokens", "seconds"))
    return f"{runs} pilot runs, {steps:,} steps, {tokens:,} tokens, {seconds:,.0f} s"


def _tuning(run: Run) -> str:
    record = run.settings["tuned"]
    try:
        seeds = ", ".join(map(str, record["seeds"]))
        sampler = record.get("sampler", "halton")  # which the first records do not name
        by = "" if sampler == "halton" else f" (sampler {sampler})"
        return (
            f"tuning of {run.experiment} from {record['experiment']} by {record['criterion']}, "
            f"{record['points']} points{by} on seeds {seeds}: {cost_told(record)}"
        )
    except (KeyError, TypeError, ValueError):  # not as this version writes it
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
    """Return the commit that a run was made with, and whether the tree was changed; empty where unknown."""
    git = run.manifest.get("git")
    return f"{git['commit'][:9]}{' (changed)' * bool(git.get('dirty'))}" if git else ""


def machine(run: Run) -> str:
    """Return processor, cores and device that a run was made on; empty where unknown."""
    hardware = run.manifest.get("hardware")
    if not hardware:
        return ""
    cpu, cores = hardware.get("cpu", "unknown processor"), hardware.get("usable_cores", "?")
    return f"{cpu}, {cores} cores, device {hardware.get('device', '?')}"
