"""Renders a comparison as terminal table, Markdown, CSV, JSON or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from safebench.analysis.compare import Comparison
from safebench.analysis.rows import Cell, Row
from safebench.analysis.statistics import Estimate
from safebench.analysis.stopping import Stopping
from safebench.crashes.detect import SCALES
from safebench.errors import UsageError
from safebench.report import cells
from safebench.report.cells import Line, fitted

COLUMNS = (
    "metric", "label", "unit", "direction", "primary", "arm", "baseline", "pairing", "n", "value", "low", "high",
    "method", "p", "holm_p", "detectable", "runs_hit", *(f"episodes_at_{scale:g}" for scale in SCALES),
)  # fmt: skip
ROUNDING = ("rounding_each", "rounding_mean", "rounding_n")
"""Columns of an arm's cell if replicates were requested."""


def to_csv(comparison: Comparison) -> str:
    """Return one line per metric and arm, then per metric and difference (``baseline`` is set there).

    Numbers have all their digits; undefined ones are empty. Warnings and footers are in the JSON.
    """
    out = io.StringIO()
    columns = (*COLUMNS, *ROUNDING) if comparison.replicated else COLUMNS
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    adjusted = {(test.scalar.key, test.arm): test.adjusted for test in comparison.tests}
    for row in comparison.rows:
        for arm, cell in row.cells.items():
            writer.writerow(_record(row, arm, cell.estimate) | _extra(row, cell) | _rounded(row, arm))
        for arm, estimate in row.differences.items():
            holm = blank(adjusted.get((row.scalar.key, arm), math.nan))
            pairing = "paired" if comparison.paired(arm) else "unpaired"
            more = {"baseline": comparison.baseline, "pairing": pairing, "holm_p": holm}
            writer.writerow(_record(row, arm, estimate) | more)
    return out.getvalue()


def to_json(comparison: Comparison) -> str:
    """Return the whole comparison; undefined numbers are null, infinite ones "inf"."""
    content = {
        "crash_specification": asdict(comparison.spec),
        "severity_scales": SCALES,
        "arms": comparison.arms,
        "baseline": comparison.baseline,
        "unpaired": comparison.unpaired,
        "seeds": comparison.seeds,
        "metrics": [_row(row) for row in comparison.rows],
        "tests": [
            {
                "metric": test.scalar.key,
                "arm": test.arm,
                **asdict(test.difference),
                "holm_p": test.adjusted,
                "probability_of_improvement": test.improvement,
                "bca": None if test.bootstrap is None else [test.bootstrap.low, test.bootstrap.high],
            }
            for test in comparison.tests
        ],
        "runs": {arm: [_run(summary) for summary in found] for arm, found in comparison.summaries.items()},
        "fairness": [asdict(unequal) for unequal in comparison.fairness],
        "unmatched": comparison.unmatched,
        "warnings": comparison.warnings,
        "footers": comparison.footers,
    }
    if comparison.stopping is not None:
        content["stopping"] = _stopping(comparison.stopping)
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _stopping(found: Stopping) -> dict[str, Any]:
    decisions = [
        {**asdict(decision), "state": decision.state, "better": decision.better} for decision in found.decisions
    ]
    return {**asdict(found), "decisions": decisions, "p_values_valid": False}


def _record(row: Row, arm: str, estimate: Estimate) -> dict[str, Any]:
    scalar = row.scalar
    return {
        "metric": scalar.key,
        "label": scalar.label,
        "unit": scalar.unit,
        "direction": scalar.direction,
        "primary": str(scalar.primary).lower(),
        "arm": arm,
        "n": estimate.n,
        "method": estimate.method,
        **{name: blank(getattr(estimate, name)) for name in ("value", "low", "high", "p", "detectable")},
    }


def _extra(row: Row, cell: Cell) -> dict[str, Any]:
    if row.kind not in ("share", "count"):
        return {}
    totals = {f"episodes_at_{scale:g}": count for scale, count in zip(SCALES, cell.counts, strict=False)}
    return {"runs_hit": "" if _unwatched(row, cell) else cell.hit, **totals}


def _rounded(row: Row, arm: str) -> dict[str, Any]:
    found = row.rounding.get(arm)
    return {} if found is None else dict(zip(ROUNDING, (blank(found.each), blank(found.mean), found.n), strict=True))


def _row(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.scalar),
        "kind": row.kind,
        "cells": {
            arm: {
                **asdict(cell.estimate),
                "by_seed": cell.values,
                "episodes": cell.counts or None,
                "runs_hit": None if _unwatched(row, cell) else cell.hit,
                **({"rounding": asdict(row.rounding[arm])} if arm in row.rounding else {}),
            }
            for arm, cell in row.cells.items()
        },
        "differences": {arm: asdict(estimate) for arm, estimate in row.differences.items()},
    }


def _unwatched(row: Row, cell: Cell) -> bool:
    """Return whether no run of the arm was watched for this kind of crash; zero runs hit then means nothing."""
    return row.kind == "count" and not cell.counts


def _run(summary: Any) -> dict[str, Any]:
    run = summary.run
    return {
        "seed": run.seed,
        "status": run.status,
        "steps": run.last_step,
        "folder": "/".join(run.folder.parts[-3:]),
        "events": {f"{scale:g}": [asdict(event) for event in events] for scale, events in summary.events.items()},
        "unmeasured": summary.unmeasured,
    }


def blank(value: float) -> Any:
    """Return a number as a CSV cell; empty if it is NaN."""
    return "" if math.isnan(value) else value


def plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: NaN becomes null, an infinite number its name."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


CURVES = ("mean", "across")
"""Kinds of rows that are computed from curves; rows of crashes follow below a separating line."""
LABEL_WIDTH, COLUMN_WIDTH, ROUNDING_WIDTH = 39, 20, 18

FORMATS = ("table", "md", "csv", "json", "latex")


def render(comparison: Comparison, fmt: str = "table", *, width: int | None = None, color: bool | None = None) -> str:
    """Return the comparison as ``fmt``: table, md, csv, json or latex, ending with a line break.

    ``width`` and ``color`` apply to the terminal's table and are the terminal's own by default. If standard output
    is not a terminal, the width is 100 columns and there is no colour; NO_COLOR also turns colour off.
    """
    width, color = fitted(width, color)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: _terminal(comparison, width, color),
        "md": lambda: _markdown(comparison),
        "csv": lambda: to_csv(comparison),
        "json": lambda: to_json(comparison),
        "latex": lambda: _latex(comparison),
    }
    if fmt not in renderers:
        raise UsageError(f"unknown format {fmt!r}", f"Choose one of {', '.join(FORMATS)}.")
    return renderers[fmt]()


def _terminal(comparison: Comparison, width: int, color: bool) -> str:
    return printed(rich_tables(comparison, width), comparison.warnings, _blocks(comparison), width, color)


def rich_tables(comparison: Comparison, width: int) -> list[object]:
    """Return the rows as rich tables, each with as many arms beside the baseline as fit into the width."""
    return [_rich_table(comparison, others) for others in _chunks(comparison, width)]


def printed(
    parts: Iterable[object],
    warnings: Iterable[str],
    blocks: Iterable[tuple[str, Sequence[str]]],
    width: int,
    color: bool,
) -> str:
    """Return the text of tables, warnings, and titled blocks of lines for a terminal of this width."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=color, no_color=not color, highlight=False, soft_wrap=False
    )
    for part in parts:
        console.print(part)
    for warning in warnings:
        for line in textwrap.wrap(f"! {warning}", width, subsequent_indent="  "):
            console.print(line, style="bold red", markup=False)
    for title, lines in blocks:
        console.print()
        console.print(title, style="bold", markup=False)
        for line in lines:
            for piece in textwrap.wrap(line, width - 2, subsequent_indent="  "):
                console.print(f"  {piece}", markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _chunks(comparison: Comparison, width: int) -> Iterator[Sequence[str]]:
    """Yield the arms to put beside the baseline in one table, as many as fit into the width."""
    others = comparison.arms[1:]
    width -= ROUNDING_WIDTH if comparison.replicated else 0
    size = max(1, (width - LABEL_WIDTH - COLUMN_WIDTH) // (2 * COLUMN_WIDTH))
    yield from ((others[start : start + size] for start in range(0, len(others), size)) if others else [()])


def _rich_table(comparison: Comparison, others: Sequence[str]) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    arms = (comparison.baseline, *others)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("metric", no_wrap=True)
    for heading in cells.headings(comparison, arms):
        table.add_column(heading, justify="right")
    previous: Row | None = None
    for row in comparison.rows:
        if previous is not None and previous.kind in CURVES and row.kind not in CURVES:
            table.add_section()
        line = cells.line(comparison, row, arms)
        texts = [_mark(line) + line.label, *line.cells, *line.differences, *line.rounding]
        table.add_row(*(Text(text) for text in texts), style="bold" if line.primary else "")
        previous = row
    return table


def _blocks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    blocks = [
        ("Primary metrics (*)", cells.tests(comparison)),
        ("Decided in rounds", cells.stopping(comparison)),
        ("Crashes by seed", cells.crashes_by_seed(comparison)),
        ("Fairness: settings in which the arms differ", cells.fairness(comparison)),
        ("Made from", list(comparison.footers)),
    ]
    return [(title, lines) for title, lines in blocks if lines]


def _mark(line: Line) -> str:
    return "* " if line.primary else "  "


def _markdown(comparison: Comparison) -> str:
    out = [table_lines(comparison)]
    if comparison.warnings:
        out += ["\n> [!WARNING]\n", *(f"> - {markdown(warning)}\n" for warning in comparison.warnings)]
    for title, lines in _blocks(comparison):
        out += [f"\n**{markdown(title.replace(' (*)', ' (bold)'))}**\n\n", *(f"- {markdown(line)}\n" for line in lines)]
    return "".join(out)


def table_lines(comparison: Comparison) -> str:
    """Return only the comparison's rows, as a Markdown table."""
    header = ["metric", *cells.headings(comparison, comparison.arms)]
    out = [markdown_row(header), markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for row in comparison.rows:
        line = cells.line(comparison, row, comparison.arms)
        label = f"**{markdown(line.label)}**" if line.primary else markdown(line.label)
        out.append(markdown_row([label, *map(markdown, (*line.cells, *line.differences, *line.rounding))]))
    return "\n".join(out) + "\n"


def markdown_row(texts: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(texts)} |"


def markdown(text: str) -> str:
    """Return text with the characters of Markdown markup escaped."""
    for character in "\\|*_<":
        text = text.replace(character, f"\\{character}")
    return text


def _latex(comparison: Comparison) -> str:
    headings = cells.headings(comparison, comparison.arms)
    out = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(headings)}}}",
        "\\toprule",
        _latex_row(["metric", *headings]),
        "\\midrule",
    ]
    for row in comparison.rows:
        line = cells.line(comparison, row, comparison.arms)
        texts = _latex_row([line.label, *line.cells, *line.differences, *line.rounding])
        out.append(texts.replace(_tex(line.label), f"\\textbf{{{_tex(line.label)}}}", 1) if line.primary else texts)
    out += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"WARNING: {warning}" for warning in comparison.warnings]
    notes += [line for title, lines in _blocks(comparison) for line in (f"{title}:", *lines)]
    out += [f"% {line}" for note in notes for line in note.splitlines()]
    return "\n".join(out) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(_tex, texts)) + r" \\"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "σ₀": r"$\sigma_0$", "±": r"$\pm$", "−": r"$-$",
    "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "∞": r"$\infty$", "[": "{[}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text.replace("σ₀", "\0")).replace("\0", TEX["σ₀"])
