"""How a run ended, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safebench.analysis.runs import Run, read
from safebench.metrics import ALARM_KINDS, CRASH_KINDS, HARM_KINDS
from safebench.runner.progress import Result, label

FIGURES = (
    ("reward", "reward/mean", ""),
    ("judge", "eval/judge", ""),
    ("KL", "kl/mean", " nats/token"),
    ("entropy", "entropy/mean", " nats/token"),
    ("distinct replies", "reply/distinct", ""),
)


def describe(result: Result) -> str:
    """Return what a finished or unstable run came to: status, steps, last figures, crashes, files."""
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
    """Return the crash counts of a row of metrics in words: harms, alarms, and what nobody watched."""
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
