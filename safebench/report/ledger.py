"""Renders a ledger of claims as terminal table, Markdown, CSV (a line per figure) or JSON (everything)."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safebench.analysis.claims.ask import NO_RUN
from safebench.analysis.claims.verdicts import Claim, Entry, Ledger, Part
from safebench.errors import UsageError
from safebench.report.cells import ARROWS, DASH, fitted, interval, number
from safebench.report.table import blank, plain

COLUMNS = (
    "claim", "title", "arm", "opponent", "verdict", "figure", "unit", "direction", "bound", "decides", "kind", "n",
    "arm_mean", "opponent_mean", "value", "low", "high", "method", "p", "detectable", "side", "paper", "why", "missing",
    "command",
)  # fmt: skip


def to_csv(ledger: Ledger) -> str:
    """Return one line per figure of each entry, or one for an entry without figures; undefined values are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for entry in ledger.entries:
        writer.writerows(_record(entry) | _figures(part) for part in entry.parts)
        if not entry.parts:
            writer.writerow(_record(entry))
    return out.getvalue()


def to_json(ledger: Ledger) -> str:
    """Return the whole ledger; undefined numbers are null, infinite ones "inf"."""
    content = {
        "crash_specification": asdict(ledger.spec),
        "seeds": ledger.seeds,
        "claims": [_claim(claim, entries) for claim, entries in ledger.by_claim],
        "notes": ledger.notes,
    }
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "claim": entry.claim.number,
        "title": entry.claim.title,
        "arm": entry.arm,
        "opponent": entry.opponent or "",
        "verdict": entry.verdict,
        "paper": entry.claim.paper,
        "why": entry.why,
        "missing": "; ".join(entry.missing),
        "command": entry.command,
    }


def _figures(part: Part) -> dict[str, Any]:
    return {
        "figure": part.label,
        "unit": part.unit,
        "direction": part.direction,
        "bound": part.bound,
        "decides": str(part.decides).lower(),
        "kind": part.kind,
        "n": part.estimate.n,
        "arm_mean": blank(part.means[0]),
        "opponent_mean": blank(part.means[1]),
        "method": part.estimate.method,
        "side": part.side,
        **{name: blank(getattr(part.estimate, name)) for name in ("value", "low", "high", "p", "detectable")},
    }


def _claim(claim: Claim, entries: tuple[Entry, ...]) -> dict[str, Any]:
    return {
        "number": claim.number,
        "title": claim.title,
        "claim": claim.words,
        "meaning": claim.meaning,
        "paper": claim.paper,
        "entries": [_entry(entry) for entry in entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "arm": entry.arm,
        "opponent": entry.opponent,
        "verdict": entry.verdict,
        "why": entry.why,
        "ours": None if entry.ours is None else asdict(entry.ours),
        "figures": [_figure(part) for part in entry.parts],
        "seeds": entry.seeds,
        "missing": entry.missing,
        "command": entry.command,
    }


def _figure(part: Part) -> dict[str, Any]:
    arm, opponent = part.means
    rest = {key: value for key, value in asdict(part).items() if key != "means"}
    return {**rest, "arm": arm, "opponent": opponent}


FORMATS = ("table", "md", "csv", "json")
LEAST_WIDTH = 80
HEADINGS = ("arm", "opponent", "arm − opponent", "n", "verdict")
STYLES = {"holds": "bold green", "fails": "bold red", "not shown": ""}


@dataclass(frozen=True)
class Line:
    """One row as text: its label, the cells under HEADINGS, and its depth of indentation."""

    label: str
    cells: tuple[str, ...]
    depth: int


def render(ledger: Ledger, fmt: str = "table", *, width: int | None = None, color: bool | None = None) -> str:
    """Return the ledger as ``fmt``: table, md, csv or json, ending with a line break.

    ``width`` and ``color`` apply to the terminal's table and are the terminal's own by default. If standard output
    is not a terminal, the width is 100 columns and there is no colour; NO_COLOR also turns colour off.
    """
    width, color = fitted(width, color)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: _terminal(ledger, max(width, LEAST_WIDTH), color),
        "md": lambda: _markdown(ledger),
        "csv": lambda: to_csv(ledger),
        "json": lambda: to_json(ledger),
    }
    if fmt not in renderers:
        raise UsageError(f"unknown format {fmt!r}", f"Choose one of {', '.join(FORMATS)}.")
    return renderers[fmt]()


def told(entry: Entry) -> bool:
    """Return whether the entry gets rows of its own; entries that only lack runs are named together."""
    lacking = any(text.endswith(NO_RUN) for text in entry.missing)
    return bool(entry.parts) or entry.verdict != "not shown" or not lacking


def lines(entry: Entry) -> list[Line]:
    """Return the entry's rows: a single deciding figure beside the question, other figures below it."""
    own = _single(entry)
    cells = _figure_text(own) if own else ("",) * (len(HEADINGS) - 1)
    below = [Line(_label(part), (*_figure_text(part), ""), 2) for part in entry.parts if part is not own]
    return [Line(entry.question, (*cells, entry.verdict), 1), *below]


def _single(entry: Entry) -> Part | None:
    """Return the only deciding figure; None if none or several decide."""
    deciding = [part for part in entry.parts if part.decides]
    return deciding[0] if len(deciding) == 1 else None


def _figure_text(part: Part) -> tuple[str, str, str, str]:
    n, (first, second) = part.estimate.n, part.means
    if not n:
        return (DASH, DASH, DASH, "0")
    if part.kind == "share":
        alone = math.isnan(second)
        difference = "" if alone else number(part.estimate.value, sign=True)
        bounds = f"[{part.estimate.low:.2f}, {part.estimate.high:.2f}]" if math.isfinite(part.estimate.low) else ""
        return f"{round(first * n)}/{n}", "" if alone else f"{round(second * n)}/{n}", difference or bounds, str(n)
    margin = part.estimate.margin if part.kind == "difference" and math.isfinite(part.estimate.margin) else 0.05
    means = tuple("" if math.isnan(mean) else number(mean, margin) for mean in (first, second))
    if part.kind == "ratio":
        bounds = f" [{part.estimate.low:.3f}, {part.estimate.high:.3f}]" if math.isfinite(part.estimate.low) else ""
        return means[0], means[1], f"{part.estimate.value:.3f}{bounds}", str(n)
    return means[0], means[1], interval(part.estimate, sign=True), str(n)


def _label(part: Part) -> str:
    bound = f" {'>' if part.direction == 'up' else '<'} {f'{part.bound:g}'.replace('-', '−')}" if part.bound else ""
    return f"{part.label} [{part.unit}]{ARROWS[part.direction]}{bound}"


def _title(claim: Claim, entries: Sequence[Entry]) -> str:
    """Return the name of the claim, with the figure if all its entries show the same one."""
    figures = {_label(part) for part in map(_single, entries) if part}
    return f"{claim.number} {claim.title}" + (f": {figures.pop()}" if len(figures) == 1 else "")


def _silent(entries: Sequence[Entry]) -> str:
    """Return a line that names the entries of one claim that lack runs; empty if there are none."""
    questions = [entry.question for entry in entries if not told(entry)]
    return f"no runs yet: {', '.join(questions)}" if questions else ""


def _why(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yield, for each entry with rows of its own, its claim, question and verdict, and the reason."""
    for entry in ledger.entries:
        if told(entry):
            yield f"{entry.claim.number} {entry.question}: {entry.verdict}", entry.why


def _commands(ledger: Ledger, *, missing: bool) -> Iterator[tuple[str, str]]:
    """Yield each command once, with the entries whose runs it made, or (``missing``) that need its runs."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in ledger.entries:
        if bool(entry.missing) == missing:
            found.setdefault(entry.command, {}).setdefault(entry.question, []).append(str(entry.claim.number))
    for command, questions in found.items():
        yield command, "; ".join(f"{', '.join(numbers)} of {question}" for question, numbers in questions.items())


def _blocks(ledger: Ledger) -> list[tuple[str, list[str]]]:
    blocks = [
        ("Why", [f"{head}. {reason}" for head, reason in _why(ledger)]),
        ("Made by", [f"{command}  ({what})" for command, what in _commands(ledger, missing=False)]),
        ("What would make the rest", [f"{command}  ({what})" for command, what in _commands(ledger, missing=True)]),
        ("How to read it", list(ledger.notes)),
    ]
    return [(title, texts) for title, texts in blocks if texts]


def _terminal(ledger: Ledger, width: int, color: bool) -> str:
    from rich.console import Console
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, no_color=not color, highlight=False)
    rows = [line for entry in ledger.entries if told(entry) for line in lines(entry)]
    widths = [max(len(cell) for cell in column) for column in zip(HEADINGS, *(row.cells for row in rows), strict=True)]
    label = width - sum(widths) - 2 * len(widths)

    def row(text: str, cells: Sequence[str], style: str = "") -> None:
        last = len(cells) - 1
        shown = [c.ljust(w) if i == last else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        line = Text(f"{text:<{label}}  " + "  ".join(shown[:-1]))
        line.append(f"  {shown[-1]}", style=style)
        console.print(line, soft_wrap=True)

    row("claim", HEADINGS, "")
    console.print("─" * width, markup=False)
    for claim, entries in ledger.by_claim:
        title, paper = _title(claim, entries), f"paper: {claim.paper}"
        console.print(Text(f"{title}{paper.rjust(max(width - len(title), len(paper) + 2))}", style="bold"))
        for entry in entries:
            for line in lines(entry) if told(entry) else ():
                row("  " * line.depth + line.label, line.cells, STYLES.get(line.cells[-1], ""))
        for text in textwrap.wrap(_silent(entries), width - 2, subsequent_indent="  ", break_on_hyphens=False):
            console.print(f"  {text}", markup=False)
    for heading, texts in _blocks(ledger):
        console.print()
        console.print(heading, style="bold", markup=False)
        for text in texts:
            for part in textwrap.wrap(text, width - 2, subsequent_indent="  ", break_on_hyphens=False):
                console.print(f"  {part}", markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _markdown(ledger: Ledger) -> str:
    out = [_md_row(["claim", *HEADINGS]), _md_row(["---", *["---:"] * 4, "---"])]
    for claim, entries in ledger.by_claim:
        head = f"**{_md(_title(claim, entries))}** {_md(claim.words)} (paper: {_md(claim.paper)})"
        out.append(_md_row([head, *[""] * 5]))
        for entry in entries:
            for line in lines(entry) if told(entry) else ():
                *cells, verdict = map(_md, line.cells)
                label = "&nbsp;" * (2 * line.depth) + _md(line.label)
                out.append(_md_row([label, *cells, f"**{verdict}**" if verdict in ("holds", "fails") else verdict]))
        if silent := _silent(entries):
            out.append(_md_row([f"&nbsp;&nbsp;{_md(silent)}", *[""] * 5]))
    for title, texts in _blocks(ledger):
        out += ["", f"**{title}**", "", *(f"- {_md(text)}" for text in texts)]
    return "\n".join(out) + "\n"


def _md_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _md(text: str) -> str:
    for character in "\\|*_<":
        text = text.replace(character, f"\\{character}")
    return text
