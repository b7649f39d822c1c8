"""Sentences of the HTML page, computed from the comparison's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safebench.analysis.compare import Comparison
from safebench.analysis.fairness import Unequal
from safebench.analysis.rows import Row
from safebench.analysis.runs import Run
from safebench.report import cells


@dataclass(frozen=True)
class Card:
    """One primary metric: name and figure of each arm, and a sentence per difference to the baseline."""

    title: str
    unit: str
    figures: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class RunLine:
    """One run in the list of runs that the page was made from."""

    arm: str
    seed: int
    status: str
    steps: str
    made: str
    folder: str


def title(comparison: Comparison) -> str:
    """Return the page's title: the arms, the baseline last."""
    others = comparison.arms[1:]
    return f"{_listed(others)} against {comparison.baseline}" if others else comparison.baseline


def headline(comparison: Comparison) -> str:
    """Return one sentence with what was compared and the result, every figure with its interval."""
    runs = _runs(comparison)
    steps = " or ".join(f"{count:,}" for count in sorted({run.planned_steps for run in runs}))
    models = " and ".join(sorted({run.model for run in runs}))
    count = len(comparison.seeds)
    told = [_told(comparison, key, what) for key, what in _PRIMARY]
    crashed = ", ".join(
        f"{arm} {sum(summary.crashed for summary in comparison.summaries[arm])} of {len(comparison.summaries[arm])}"
        for arm in comparison.arms
    )
    verb = "were compared" if len(comparison.arms) > 1 else "was measured"
    return (
        f"{_listed(comparison.arms)} {verb} on {models}, {count} seed{'s' * (count != 1)}{_each(comparison)} of "
        f"{steps} steps: {'; '.join(told)}; crashed runs {crashed}."
    )


def verdict(comparison: Comparison) -> str:
    """Return what this number of seeds can show; for a single arm, that nothing was compared."""
    if len(comparison.arms) < 2:
        return "One arm: nothing was compared, and no test was made."
    found = cells.tests(comparison)
    return found[-1] if found else "No primary metric is among the rows shown, and no test was made."


def cards(comparison: Comparison) -> list[Card]:
    """Return the primary metrics, each arm's figure and each difference with its test."""
    found = []
    for row in comparison.rows:
        if row.scalar.primary:
            line = cells.line(comparison, row, comparison.arms)
            figures = tuple(zip(comparison.arms, line.cells, strict=True))
            found.append(Card(row.scalar.label, row.scalar.unit, figures, _differences(comparison, row)))
    return found


def run_lines(comparison: Comparison) -> list[RunLine]:
    """Return a line for every run that the page was made from."""
    return [
        RunLine(
            arm,
            run.seed,
            run.status,
            f"{run.last_step} of {run.planned_steps}",
            str(run.manifest.get("started", "")) or "unknown",
            "/".join(run.folder.parts[-3:]),
        )
        for arm in comparison.arms
        for run in (summary.run for summary in comparison.summaries[arm])
    ]


@dataclass(frozen=True)
class Settings:
    """Settings in which arms differ; ``groups`` holds, by section, those of sections that some arm lacks."""

    each: tuple[Unequal, ...]
    groups: Mapping[str, tuple[Unequal, ...]]


def settings(comparison: Comparison) -> Settings:
    """Return the differing settings; those of a section that an arm lacks form one group per section."""
    each: list[Unequal] = []
    groups: dict[str, list[Unequal]] = {}
    first = [found[0].run.settings for found in comparison.summaries.values() if found]
    for unequal in comparison.fairness:
        section = unequal.key.split(".", 1)[0]
        folded = "." in unequal.key and not unequal.loud and any(found.get(section) is None for found in first)
        (groups.setdefault(section, []) if folded else each).append(unequal)
    return Settings(tuple(each), {section: tuple(found) for section, found in groups.items()})


def versions(comparison: Comparison) -> list[str]:
    """Return the library versions that the runs were made with, one line per distinct set."""
    lines: dict[str, None] = {}
    for run in _runs(comparison):
        found = {"python": run.manifest.get("python"), **(run.manifest.get("versions") or {})}
        line = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        if line:
            lines[line] = None
    return list(lines)


_PRIMARY = (
    ("judge_final", "held-out judge reward at the end"),
    ("judge_matched", "held-out judge reward at matched KL"),
)


def _told(comparison: Comparison, key: str, what: str) -> str:
    row = next((row for row in comparison.rows if row.scalar.key == key), None)
    if row is None:
        return f"{what} not measured"
    figures = (f"{arm} {_figure(row, arm)}" for arm in comparison.arms)
    return f"{what} {', '.join(figures)}{'' if row.scalar.unit == 'judge' else f' {row.scalar.unit}'}"


def _figure(row: Row, arm: str) -> str:
    estimate = row.cells[arm].estimate
    return cells.interval(estimate) if math.isfinite(estimate.value) else "not measured"


def _differences(comparison: Comparison, row: Row) -> tuple[str, ...]:
    made = zip(comparison.tests, cells.tests(comparison), strict=False)
    return tuple(told.removeprefix(f"{row.scalar.label}: ") for test, told in made if test.scalar.key == row.scalar.key)


def _each(comparison: Comparison) -> str:
    counts = {len(found) for found in comparison.summaries.values()}
    return " each" if len(comparison.arms) > 1 and counts == {len(comparison.seeds)} else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _runs(comparison: Comparison) -> list[Run]:
    return [summary.run for found in comparison.summaries.values() for summary in found]
