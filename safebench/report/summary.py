"""Renders the first screen of a comparison: a dozen figures, findings, open questions, commands for the rest."""

from __future__ import annotations

import math
from dataclasses import replace

from safebench.analysis.compare import Comparison, Test, choose
from safebench.analysis.rows import CRASH_RATE
from safebench.analysis.statistics import ALPHA
from safebench.report.cells import ENOUGH, fitted, number, stopping
from safebench.report.table import printed, rich_tables

SHOWN = (
    *("crash_rate", "judge_final", "judge_matched", "proxy_final", "kl_mean", "kl_max", "entropy_final"),
    *("distinct_final", "known_words_final", "length_final", "time_update", "memory_peak"),
)
"""Rows of the first screen, if the comparison has them."""


def render(
    comparison: Comparison, table: str = "", page: str = "", *, width: int | None = None, color: bool | None = None
) -> str:
    """Return the screen as text, ending with a line break; ``width`` and ``color`` as in ``table.render``.

    ``table`` and ``page`` are the commands that show these runs in full, if there are such commands.
    """
    width, color = fitted(width, color)
    keys = {row.scalar.key for row in comparison.rows}
    few = replace(choose(comparison, [key for key in SHOWN if key in keys]), tests=comparison.tests)
    blocks = [
        ("Findings", findings(comparison)),
        ("Decided in rounds", stopping(comparison)),
        ("Not decided", undecided(comparison)),
        ("Made from", made_from(comparison)),
        ("The whole", the_whole(comparison, table, page)),
    ]
    shown = [(title, lines) for title, lines in blocks if lines]
    return printed(rich_tables(few, width), comparison.warnings, shown, width, color)


def findings(comparison: Comparison) -> list[str]:
    """Return a sentence for each primary metric of each arm against the baseline."""
    return [_finding(comparison, test) for test in comparison.tests]


def _finding(comparison: Comparison, test: Test) -> str:
    found, base = test.difference, comparison.baseline
    name = test.scalar.label[0].upper() + test.scalar.label[1:]
    if math.isnan(found.value):
        return f"{name}: not measured for {test.arm} and {base}."
    if test.scalar.key == CRASH_RATE.key:
        row = comparison.row(CRASH_RATE.key)
        counts = {arm: (row.cells[arm].hit, len(row.cells[arm].values)) for arm in (test.arm, base)}
        told = ", ".join(f"{hit} of {runs} runs of {arm} crashed" for arm, (hit, runs) in counts.items())
        return f"{name}: {told}; {_known(comparison, test)}."
    size = number(abs(found.value), found.margin)
    margin = f" ± {number(found.margin, found.margin)}" if math.isfinite(found.margin) else ""
    side = "level with" if found.value == 0 else ("above" if found.value > 0 else "below")
    where = f"{test.arm} {side} {base}" if found.value == 0 else f"{test.arm} is {size}{margin} {side} {base}"
    return f"{name}: {where}; {_known(comparison, test)}."


def _known(comparison: Comparison, test: Test) -> str:
    """Return whether the data show a difference, do not show it, or have too few seeds to decide."""
    if comparison.stopping is not None:
        for decision in comparison.stopping.decisions:
            if (decision.metric, decision.arm) == (test.scalar.key, test.arm):
                return f"{decision.better} is better" if decision.better else decision.state
        return "not among the decided figures"
    n, paired = test.difference.n, comparison.paired(test.arm)
    if n < ENOUGH:
        pairs = ("pair" if n == 1 else "pairs") if paired else ("run an arm" if n == 1 else "runs an arm")
        return f"{n} {pairs} cannot decide it"
    if test.adjusted < ALPHA:
        return f"shown (p {test.adjusted:.2g} over all that is tested)"
    return f"not shown (p {test.adjusted:.2g} over all that is tested)"


def undecided(comparison: Comparison) -> list[str]:
    """Return what these runs cannot decide, and what would decide it."""
    if not comparison.tests or comparison.stopping is not None:
        return []
    few = [test for test in comparison.tests if test.difference.n < ENOUGH]
    lines = []
    if few:
        least, most = (pick(test.difference.n for test in few) for pick in (min, max))
        there = str(most) if least == most else f"{least} to {most}"
        lines.append(
            f"{there} {'pair' if most == 1 else 'pairs'} cannot decide a figure: the test needs {ENOUGH}. Add seeds "
            f"(`--seeds 0-{2 * ENOUGH - 1} --run`), or let them be added until all is decided (`--until-decided`)."
        )
    open_ = [test for test in comparison.tests if test.difference.n >= ENOUGH and test.adjusted >= ALPHA]
    for test in open_:
        if math.isfinite(test.difference.detectable):
            least_found = number(test.difference.detectable, test.difference.detectable)
            lines.append(
                f"{test.scalar.label} ({test.arm}): a difference below {least_found} {test.scalar.unit} is missed by "
                "one such comparison in five or more."
            )
    return lines


def made_from(comparison: Comparison) -> list[str]:
    """Return the seeds and steps, and the judge if it was not the runs' own."""
    return [line for line in comparison.footers if line.startswith(("seeds ", "judge: "))]


def the_whole(comparison: Comparison, table: str, page: str) -> list[str]:
    """Return what the given commands show beyond this screen."""
    rows = len(comparison.rows)
    lines = [f"{rows} rows, tests, crashes by seed, settings in which the arms differ: `{table}`"] if table else []
    return [*lines, f"with curves, replies and claims, as one page: `{page}`"] if page else lines
