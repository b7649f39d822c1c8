"""What stands under a comparison: where its runs came from, and what a reader must be warned of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from safebench.evidence.crashes import SCALES, CrashSpec
from safebench.evidence.fairness import Unequal
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
            warnings.append(f"{arm} is not paired by seed: its differences are unpaired (Welch), its p-values too")
        blind = dict.fromkeys(kind for summary in found for kind in summary.unmeasured)
        if blind:
            warnings.append(f"{arm}: not watched for want of a constant in its files: {', '.join(blind)}")
    return (*warnings, *_mixed(summaries))


def footers(summaries: Summaries, seeds: Sequence[int], spec: CrashSpec) -> tuple[str, ...]:
    """Return the lines that say what was compared and how it was made."""
    runs = [summary.run for found in summaries.values() for summary in found]
    steps = sorted({run.planned_steps for run in runs})
    lines = [
        f"seeds {', '.join(map(str, seeds))}; steps {', '.join(map(str, steps))}",
        f"commit {', '.join(_commits(summaries)) or 'unknown'}",
        f"hardware {'; '.join(_machines(summaries)) or 'unknown'}",
        f"crash specification {spec.version}; a / b / c in r: episodes at thresholds "
        f"{' / '.join(f'{scale:g}×' for scale in SCALES)}, at 1× in r runs; their difference is per run at 1×",
    ]
    return (lines[0], *_commands(summaries), *lines[1:])


def _commands(summaries: Summaries) -> list[str]:
    """Return the command that makes an arm's runs, one line for each arm whose first run has kept its own."""
    lines = []
    for found in summaries.values():
        command = found[0].run.manifest.get("command") if found else None
        if command:
            seeds = ",".join(str(summary.run.seed) for summary in found)
            lines.append("command " + re.sub(r"--seeds \S+", f"--seeds {seeds}", str(command)))
    return lines


def _mixed(summaries: Summaries) -> list[str]:
    warnings = []
    if len(_machines(summaries)) > 1:
        warnings.append("the runs come from different hardware: times, speed and memory do not compare")
    if len(_commits(summaries)) > 1:
        warnings.append("the runs come from different commits")
    return warnings


def _commits(summaries: Summaries) -> list[str]:
    found = [summary.run.manifest.get("git") for runs in summaries.values() for summary in runs]
    names = [f"{git['commit'][:9]}{' (changed)' * bool(git.get('dirty'))}" for git in found if git]
    return list(dict.fromkeys(names))


def _machines(summaries: Summaries) -> list[str]:
    found = [summary.run.manifest.get("hardware") for runs in summaries.values() for summary in runs]
    names = [
        f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('usable_cores', '?')} cores, "
        f"device {hardware.get('device', '?')}"
        for hardware in found
        if hardware
    ]
    return list(dict.fromkeys(names))
