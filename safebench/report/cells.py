"""Labels, numbers and sentences of a comparison, shared by all human-readable formats."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safebench.analysis.compare import Comparison, Test
from safebench.analysis.rows import Cell, Row
from safebench.analysis.statistics import NEWCOMBE, PAIRED, WELCH, Estimate, smallest_p
from safebench.crashes.detect import Event

PLAIN_WIDTH = 100
"""Width in columns if standard output is not a terminal."""


def fitted(width: int | None, color: bool | None) -> tuple[int, bool]:
    """Return the width and whether to use colour; None stands for the default.

    The default width is the terminal's, or PLAIN_WIDTH without a terminal. By default there is colour only in a
    terminal and without NO_COLOR.
    """
    terminal = sys.stdout.isatty()
    if color is None:
        color = terminal and not os.environ.get("NO_COLOR")
    if width is None:
        width = shutil.get_terminal_size().columns if terminal else PLAIN_WIDTH
    return width, color


ENOUGH = 6
"""Fewest pairs for which the sign-flip test can give p < 0.05; with fewer, no output reports significance."""
P_VALUES_VOID = (
    "The p-values, Holm's included, and the intervals of this table are not valid: they take the number of seeds as "
    "fixed, and it was chosen by looking. The decisions above account for every look."
)
ARROWS = {"up": " ↑", "down": " ↓", "none": ""}
DASH = "–"


@dataclass(frozen=True)
class Line:
    """One row of a table as text: label with unit and arrow, a cell per arm, a difference per arm except the first."""

    label: str
    primary: bool
    cells: tuple[str, ...]
    differences: tuple[str, ...]
    rounding: tuple[str, ...] = ()
    """One text if replicates were requested, else empty."""


def headings(comparison: Comparison, arms: Sequence[str]) -> list[str]:
    """Return the names of all columns except the first, for the given arms."""
    return [
        *(heading(comparison, arm) for arm in arms),
        *(difference_heading(comparison, arm) for arm in arms[1:]),
        *(["rounding a / b"] if comparison.replicated else []),
    ]


def heading(comparison: Comparison, arm: str) -> str:
    """Return the name of an arm's column, with its number of runs and a mark if they are unpaired."""
    mark = ", unpaired" if arm in comparison.unpaired else ""
    return f"{arm} (n={len(comparison.summaries[arm])}{mark})"


def difference_heading(comparison: Comparison, arm: str) -> str:
    """Return the name of the column of an arm's differences to the baseline."""
    return f"{arm} − {comparison.baseline}{'' if comparison.paired(arm) else ' (unpaired)'}"


def line(comparison: Comparison, row: Row, arms: Sequence[str]) -> Line:
    """Return one row as text, for the given arms."""
    scalar = row.scalar
    label = f"{scalar.label} [{scalar.unit}]{ARROWS[scalar.direction]}"
    differences = tuple(_difference(row.differences.get(arm)) for arm in arms[1:])
    rounding = (_rounding(row),) if comparison.replicated else ()
    return Line(label, scalar.primary, tuple(_cell(row, row.cells[arm]) for arm in arms), differences, rounding)


def number(value: float, margin: float = math.nan, sign: bool = False) -> str:
    """Return a number rounded to two significant digits of its margin, and to at most four of its own."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{'+' if sign else ''}{_format(value, margin)}}".replace("-", "−")


def interval(estimate: Estimate, sign: bool = False) -> str:
    """Return ``value ± margin``, ``value [low, high]`` if the two sides differ, or only the value without a margin."""
    margin = estimate.margin
    text = number(estimate.value, margin, sign)
    if estimate.method == NEWCOMBE and math.isfinite(margin):
        return f"{text} [{estimate.low:.2f}, {estimate.high:.2f}]".replace("-", "−")
    if not math.isfinite(margin):
        return text
    shown = "0" if _nothing(margin, estimate.value) else format(margin, _format(estimate.value, margin))
    return f"{text} ± {shown}".replace("-", "−")


def tests(comparison: Comparison) -> list[str]:
    """Return a sentence per primary metric and arm, then what this number of seeds can and cannot show."""
    if not comparison.tests:
        return []
    return [_test(comparison, test) for test in comparison.tests] + [_verdict(comparison)]


def stopping(comparison: Comparison) -> list[str]:
    """Return the rule by which seeds were added, a line per decision, and the consequence for the p-values."""
    found = comparison.stopping
    if found is None:
        return []
    return [found.rule_told(), *(decision.told() for decision in found.decisions), P_VALUES_VOID]


def crashes_by_seed(comparison: Comparison) -> list[str]:
    """Return the events at scale 1 per arm and seed, harms before alarms.

    Each kind is given with its number of episodes and the first step of the earliest one.
    """
    lines = []
    for arm, summaries in comparison.summaries.items():
        for summary in summaries:
            alarms = tuple(event for event in summary.events[1.0] if event.kind in comparison.spec.alarms)
            told = [_told_events(summary.harms(1.0)), _told_events(alarms)]
            told[1] = told[1] and f"alarms: {told[1]}"
            if any(told):
                state = "" if summary.run.status == "finished" else f" ({summary.run.status})"
                lines.append(f"{arm} seed {summary.run.seed}{state}: {'; '.join(filter(None, told))}")
        if not any(summary.crashed for summary in summaries):
            of = " of the kinds watched" if any(summary.unmeasured_harms for summary in summaries) else ""
            lines.append(f"{arm}: no crash{of} in {len(summaries)} runs")
    return lines


def _told_events(events: Sequence[Event]) -> str:
    starts: dict[str, list[int]] = {}
    for event in events:
        starts.setdefault(event.kind, []).append(event.start)
    return ", ".join(f"{kind} ×{len(at)} from {min(at)}" for kind, at in starts.items())


def fairness(comparison: Comparison) -> list[str]:
    """Return a line per differing setting; a group of settings that only some arms have takes one line."""
    lines: dict[str, None] = {}
    for unequal in comparison.fairness:
        group = unequal.key.rsplit(".", 1)[0]
        absent = [arm for arm, value in unequal.values.items() if value is None]
        has_group = {arm: _has_group(comparison, arm, group) for arm in unequal.values}
        if absent and not all(has_group[arm] for arm in absent):
            top = unequal.key.split(".", 1)[0]
            lines[f"{top}.*: " + ", ".join(f"{arm} {'set' if has_group[arm] else 'none'}" for arm in has_group)] = None
        else:
            loud = f"  (! {unequal.loud})" if unequal.loud else ""
            values = ", ".join(f"{arm} {_plain(value)}" for arm, value in unequal.values.items())
            lines[f"{unequal.key}: {values}{loud}"] = None
    return list(lines)


def _cell(row: Row, cell: Cell) -> str:
    if row.kind == "share":
        estimate = cell.estimate
        return f"{cell.hit}/{estimate.n} [{estimate.low:.2f}, {estimate.high:.2f}]"
    if row.kind == "count":
        watched = sum(math.isfinite(value) for value in cell.values.values())
        of = f" of {watched}" if watched < len(cell.values) else ""
        return f"{' / '.join(map(str, cell.counts))} in {cell.hit}{of}" if watched else "not watched"
    if row.kind == "time":
        return "none" if math.isinf(cell.estimate.value) else f"{cell.estimate.value:g}"
    known = sum(math.isfinite(value) for value in cell.values.values())
    return interval(cell.estimate) + (f" ({known})" if 0 < known < len(cell.values) else "")


def _difference(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval(estimate, sign=True)


def _rounding(row: Row) -> str:
    """Return by how much rounding moves one seed and the mean, each for the arm where this is largest."""
    each, mean = (
        max((value for value in values if not math.isnan(value)), default=math.nan)
        for values in ([found.each for found in row.rounding.values()], [found.mean for found in row.rounding.values()])
    )
    return f"{number(each)} / {number(mean)}" if not math.isnan(mean) else ""


def _format(value: float, margin: float) -> str:
    if not math.isfinite(margin) or _nothing(margin, value):
        margin = 0.0
    size = max(abs(value), margin)
    if size == 0.0:
        return ".2f"
    if size < 5e-4:
        return ".1e"
    own = 3 - math.floor(math.log10(size))
    deserved = 1 - math.floor(math.log10(margin)) if margin else own
    return f".{min(4, max(0, min(own, deserved)))}f"


def _nothing(margin: float, value: float) -> bool:
    """Return whether a margin is zero up to rounding error."""
    return margin <= 1e-12 * abs(value)


def _test(comparison: Comparison, test: Test) -> str:
    found = test.difference
    unit = test.scalar.unit
    parts = [
        f"{test.scalar.label}: {difference_heading(comparison, test.arm)} = {interval(found, sign=True)} {unit}",
        f"n {_sizes(comparison, test)}, {_method(found)} p {_p(found.p)}, Holm {_p(test.adjusted)}",
        f"P(better) {test.improvement:.2f}",
    ]
    if test.bootstrap is not None:
        parts.insert(1, f"BCa [{number(test.bootstrap.low)}, {number(test.bootstrap.high)}]")
    if math.isfinite(found.detectable):
        parts.append(f"detectable {number(found.detectable, found.detectable)}")
    return "; ".join(parts)


def _method(estimate: Estimate) -> str:
    return {PAIRED: "sign-flip", WELCH: "permutation", NEWCOMBE: "Fisher's"}.get(estimate.method, estimate.method)


def _sizes(comparison: Comparison, test: Test) -> str:
    """Return the number of pairs, or for unpaired arms the number of runs of each."""
    if comparison.paired(test.arm):
        return str(test.difference.n)
    cells = comparison.row(test.scalar.key).cells
    return " and ".join(str(cells[arm].estimate.n) for arm in (test.arm, comparison.baseline))


def _verdict(comparison: Comparison) -> str:
    runs = max(test.difference.n for test in comparison.tests)
    reach = "Detectable: the difference found with power 0.8 at alpha 0.05, two-sided, given the spread seen here."
    if comparison.stopping is not None:
        return f"No verdict is drawn from these p-values: seeds were added until the differences were decided. {reach}"
    if runs < ENOUGH:
        none = f"From {runs} run{'s' * (runs != 1)} an arm no verdict is drawn"
        if all(not comparison.paired(test.arm) for test in comparison.tests):
            return f"{none}, paired or not. {reach}"
        return f"{none}: the sign-flip test cannot give a p below {_p(smallest_p(runs))} for so many pairs. {reach}"
    judged = [test for test in comparison.tests if test.difference.n >= ENOUGH]
    passed = [f"{test.scalar.label} ({test.arm})" for test in judged if test.adjusted < 0.05]
    few = [f"{t.scalar.label} ({t.arm}, n {t.difference.n})" for t in comparison.tests if t not in judged]
    told = f" Too few for a verdict: {', '.join(few)}." if few else ""
    return f"Significant at 5 % after Holm: {', '.join(passed) or 'none'}.{told} {reach}"


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return f"{value:.4f}".rstrip("0").rstrip(".") if value >= 5e-5 else "< 0.0001"


def _has_group(comparison: Comparison, arm: str, group: str) -> bool:
    found: Any = comparison.summaries[arm][0].run.settings
    for name in group.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found is not None


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
