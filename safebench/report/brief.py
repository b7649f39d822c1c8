"""The table of many arms: a row each, in the terminal, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from safebench.analysis.overview import COMPARED, FIGURES, ArmRow, Block
from safebench.analysis.scalars import BY_KEY
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import CRASH_KINDS
from safebench.errors import UsageError
from safebench.report.cells import ARROWS, DASH, interval, number
from safebench.report.data import blank, plain
from safebench.report.screen import fitted
from safebench.report.table import markdown, markdown_row, printed

SHORT = {
    "judge_final": "judge, end",
    "kl_mean": "KL, mean",
    "kl_max": "KL, max",
    "entropy_final": "entropy, end",
    "time_update": "s/update",
}
FORMATS = ("table", "md", "csv", "json")


def render(blocks: Sequence[Block], fmt: str = "table", *, width: int | None = None, color: bool | None = None) -> str:
    """Return the blocks as ``fmt``: table, md, csv or json, ending with a line break; one table per preset where people
    read it, one in all for programs.
    """
    width, color = fitted(width, color)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: "\n".join(_terminal(block, len(blocks) > 1, width, color) for block in blocks),
        "md": lambda: "\n".join(_markdown(block, len(blocks) > 1) for block in blocks),
        "csv": lambda: _csv(blocks),
        "json": lambda: json.dumps(plain(_json(blocks)), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    if fmt not in renderers:
        raise UsageError(f"the brief table has no format {fmt!r}", f"Choose one of {', '.join(FORMATS)}.")
    return renderers[fmt]()


def _title(block: Block) -> str:
    return f"{block.preset}, against {block.baseline}"


def _heads(block: Block) -> dict[str, str]:
    """Return the columns by their key: what stands above each."""
    figures = {key: f"{SHORT[key]}{ARROWS[BY_KEY[key].direction]}" for key in FIGURES}
    differences = {f"{key} −": f"{SHORT[key]} − {block.baseline}" for key in COMPARED}
    return {
        "arm": "arm",
        "n": "n",
        **figures,
        **differences,
        "crashed": "crashed",
        "crashes": "events: episodes in runs",
    }


def _cells(row: ArmRow) -> dict[str, str]:
    """Return the row's texts by the keys of ``_heads``."""
    n = len(row.runs)
    figures = {key: _figure(row.figures[key], n) for key in FIGURES}
    figures["time_update"] = number(row.figures["time_update"].value, row.figures["time_update"].value / 10)
    return {
        "arm": row.arm if row.paired else f"{row.arm} (unpaired)",
        "n": str(n),
        **figures,
        **{f"{key} −": _difference(row, row.differences.get(key)) for key in COMPARED},
        "crashed": f"{row.crashed}/{n}",
        "crashes": _crashes(row),
    }


def _figure(estimate: Estimate, runs: int) -> str:
    return interval(estimate) + (f" ({estimate.n})" if 0 < estimate.n < runs else "")


def _difference(row: ArmRow, estimate: Estimate | None) -> str:
    """Return the difference, with the number of pairs where some run has none, and a mark where there are no pairs."""
    if estimate is None:
        return ""
    if not math.isfinite(estimate.value):
        return DASH
    if row.common is None:
        return f"{interval(estimate, sign=True)} (unpaired)"
    return interval(estimate, sign=True) + (f" ({estimate.n})" if estimate.n < len(row.runs) else "")


def _crashes(row: ArmRow) -> str:
    def told(kinds: Sequence[str]) -> str:
        found = {kind: row.crashes[kind] for kind in kinds if kind in row.crashes}
        return ", ".join(f"{kind} {tally.episodes} in {tally.hit}" for kind, tally in found.items())

    harms, alarms = told(row.spec.harms), told(row.spec.alarms)
    return "; ".join([*([harms] if harms else []), *([f"alarms: {alarms}"] if alarms else [])]) or "none"


def _markdown(block: Block, titled: bool) -> str:
    heads = _heads(block)
    out = [f"## {_title(block)}\n"] if titled else []
    out.append(markdown_row([markdown(head) for head in heads.values()]))
    out.append(markdown_row(["---", *["---:"] * (len(heads) - 2), "---"]))
    out += [markdown_row([markdown(cell) for cell in _cells(row).values()]) for row in block.rows]
    out += ["", *(f"> **!** {markdown(warning)}\n" for warning in block.warnings)]
    out += [f"- {markdown(note)}" for note in block.notes]
    return "\n".join(out) + "\n"


def _terminal(block: Block, titled: bool, width: int, color: bool) -> str:
    """Return two tables, of figures and of crashes and time: all columns side by side fit no screen."""
    heads, rows = _heads(block), [_cells(row) for row in block.rows]
    late = ("time_update", "crashed", "crashes")
    parts: list[object] = [_title(block)] if titled else []
    for keys in ([key for key in heads if key not in late], ["arm", "n", *late]):
        parts.append(
            _table([heads[key] for key in keys], [[row[key] for key in keys] for row in rows], keys[-1] in late)
        )
    return printed(parts, block.warnings, [("Made from", block.notes)], width, color)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], ragged: bool) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for rank, head in enumerate(heads):
        left = rank == 0 or (ragged and rank == len(heads) - 1)
        table.add_column(Text(head), justify="left" if left else "right", no_wrap=rank == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _csv(blocks: Sequence[Block]) -> str:
    records = [_record(block, row) for block in blocks for row in block.rows]
    out = io.StringIO()
    columns = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(out, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(block: Block, row: ArmRow) -> dict[str, Any]:
    record: dict[str, Any] = {
        "preset": block.preset,
        "arm": row.arm,
        "baseline": block.baseline,
        "n": len(row.runs),
        "seeds": " ".join(map(str, row.seeds)),
        "paired": str(row.paired).lower(),
        "crashed": row.crashed,
    }
    for key in FIGURES:
        record |= _estimate(key, row.figures[key], ("value", "low", "high", "n"))
    for key in COMPARED:
        fields = ("value", "low", "high", "n", "p", "method")
        made = _estimate(f"{key} difference", row.differences.get(key), fields)
        record |= made
    return record | {
        f"crash/{kind}": row.crashes[kind].episodes if kind in row.crashes else 0 for kind in _watched(row)
    }


def _estimate(name: str, estimate: Estimate | None, fields: Sequence[str]) -> dict[str, Any]:
    values = {field: "" if estimate is None else getattr(estimate, field) for field in fields}
    return {f"{name} {field}": blank(value) if isinstance(value, float) else value for field, value in values.items()}


def _watched(row: ArmRow) -> list[str]:
    """Kinds that some run was watched for: of the others no count is known."""
    return [kind for kind in CRASH_KINDS if any(run.crashes[kind] is not None for run in row.runs)]


def _json(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    return [
        {
            "preset": block.preset,
            "baseline": block.baseline,
            "warnings": block.warnings,
            "notes": block.notes,
            "arms": [
                {
                    "arm": row.arm,
                    "seeds": row.seeds,
                    "paired": row.paired,
                    "common_seeds": row.common,
                    "crashed": row.crashed,
                    "crashes": {
                        kind: asdict(row.crashes[kind]) if kind in row.crashes else {"episodes": 0}
                        for kind in _watched(row)
                    },
                    "figures": {key: asdict(estimate) for key, estimate in row.figures.items()},
                    "differences": {key: asdict(estimate) for key, estimate in row.differences.items()},
                }
                for row in block.rows
            ],
        }
        for block in blocks
    ]
