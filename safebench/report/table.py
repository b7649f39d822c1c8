"""A comparison as text: terminal table, Markdown, CSV, JSON or LaTeX."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

from safebench.analysis.compare import Comparison
from safebench.analysis.rows import Row
from safebench.errors import UsageError
from safebench.report import cells, data
from safebench.report.cells import Line
from safebench.report.screen import fitted

CURVES = ("mean", "across")
"""Kinds of rows that are of curves; those of crashes stand below a line of their own."""
LABEL_WIDTH, COLUMN_WIDTH, ROUNDING_WIDTH = 39, 20, 18

FORMATS = ("table", "md", "csv", "json", "latex")


def render(comparison: Comparison, fmt: str = "table", *, width: int | None = None, color: bool | None = None) -> str:
    """Return the comparison as ``fmt``: table, md, csv, json or latex, ending with a line break.

    ``width`` and ``color`` are for the terminal's table; by default the terminal's own, and 100 columns
    without colour where standard output is none or NO_COLOR is set.
    """
    width, color = fitted(width, color)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: _terminal(comparison, width, color),
        "md": lambda: _markdown(comparison),
        "csv": lambda: data.to_csv(comparison),
        "json": lambda: data.to_json(comparison),
        "latex": lambda: _latex(comparison),
    }
    if fmt not in renderers:
        raise UsageError(f"unknown format {fmt!r}", f"Choose one of {', '.join(FORMATS)}.")
    return renderers[fmt]()


def _terminal(comparison: Comparison, width: int, color: bool) -> str:
    tables = [_rich_table(comparison, others) for others in _chunks(comparison, width)]
    return printed(tables, comparison.warnings, _blocks(comparison), width, color)


def printed(
    parts: Iterable[object],
    warnings: Iterable[str],
    blocks: Iterable[tuple[str, Sequence[str]]],
    width: int,
    color: bool,
) -> str:
    """Return tables, warnings, and blocks of lines below a title each, as a terminal of this width shows them."""
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
    """Yield the arms to put beside the baseline in one table, so many as the width can hold."""
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
    """Return the comparison's rows alone, as a Markdown table."""
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
    """Return text without markup by accident."""
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
