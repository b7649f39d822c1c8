"""Renders smaller tables: a row per experiment, the sensitivity of a result, the differences of two runs."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safebench.analysis.diff_runs import ABSENT, TOLERANCE, Difference, Part
from safebench.analysis.overview import COMPARED, FIGURES, ArmRow, Block
from safebench.analysis.scalars import BY_KEY
from safebench.analysis.sensitivity import CRASHED, SIGN, Variant
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import CRASH_KINDS
from safebench.errors import UsageError
from safebench.report.cells import ARROWS, DASH, fitted, interval, number
from safebench.report.table import blank, markdown, markdown_row, plain, printed

SHORT = {
    "judge_final": "judge, end",
    "kl_mean": "KL, mean",
    "kl_max": "KL, max",
    "entropy_final": "entropy, end",
    "time_update": "s/update",
}
BRIEF_FORMATS = ("table", "md", "csv", "json")


def render_brief(
    blocks: Sequence[Block], fmt: str = "table", *, width: int | None = None, color: bool | None = None
) -> str:
    """Return the blocks as ``fmt``: table, md, csv or json, ending with a line break.

    ``table`` and ``md`` have one table per preset; ``csv`` and ``json`` hold all presets together.
    """
    width, color = fitted(width, color)
    renderers: dict[str, Callable[[], str]] = {
        "table": lambda: "\n".join(_terminal(block, len(blocks) > 1, width, color) for block in blocks),
        "md": lambda: "\n".join(_markdown(block, len(blocks) > 1) for block in blocks),
        "csv": lambda: _csv(blocks),
        "json": lambda: json.dumps(plain(_json(blocks)), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    if fmt not in renderers:
        raise UsageError(f"the brief table has no format {fmt!r}", f"Choose one of {', '.join(BRIEF_FORMATS)}.")
    return renderers[fmt]()


def _title(block: Block) -> str:
    return f"{block.preset}, against {block.baseline}"


def _heads(block: Block) -> dict[str, str]:
    """Return the heading of each column, by its key."""
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
        **{f"{key} −": _difference_cell(row, row.differences.get(key)) for key in COMPARED},
        "crashed": f"{row.crashed}/{n}",
        "crashes": _crashes(row),
    }


def _figure(estimate: Estimate, runs: int) -> str:
    return interval(estimate) + (f" ({estimate.n})" if 0 < estimate.n < runs else "")


def _difference_cell(row: ArmRow, estimate: Estimate | None) -> str:
    """Return the difference, with the number of pairs if some run has none, and a mark if there are no pairs."""
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
    """Return two tables, one of figures, one of crashes and time: all columns together are wider than a screen."""
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
    """Return the kinds that some run was watched for; for the others no count is known."""
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


def sensitivity_to_markdown(variants: Sequence[Variant], arms: tuple[str, str]) -> str:
    """Return the tables for ``sensitivity(groups)`` of the two ``arms``, with the chosen values in bold."""
    crashed = [variant for variant in variants if variant.hits is not None]
    order = list(dict.fromkeys(variant.choice for variant in variants))
    figures = sorted((v for v in variants if v.difference is not None), key=lambda v: order.index(v.choice))
    chosen = {variant.choice: variant for variant in crashed if variant.chosen}
    lines = [
        f"Crashed runs, of {_of(variants)}, `{arms[0]}` : `{arms[1]}`; the chosen value is bold.",
        "",
        "| choice | value | crashed | runs with an event of a kind, where it moves |",
        "| --- | --- | ---: | --- |",
        *(_crash_row(variant, chosen[variant.choice]) for variant in crashed),
        "",
        f"Differences, `{arms[1]}` − `{arms[0]}`, with 95 % intervals; p before correction, but for the last choice.",
        "",
        "| choice | value | figure | difference | p |",
        "| --- | --- | --- | ---: | ---: |",
        *(_figure_row(variant) for variant in figures),
        "",
        *_turned(variants),
    ]
    return "\n".join(lines) + "\n"


def _turned(variants: Sequence[Variant]) -> list[str]:
    def named(test: Callable[[str], bool]) -> str:
        return "; ".join(_name(v) for v in variants if any(map(test, v.flips))) or "none"

    turned = [variant for variant in variants if variant.flips]
    return [
        f"Choices that change which arm has more crashed runs: {named(lambda flip: flip.startswith(f'{CRASHED}:'))}.",
        "",
        f"Choices that change the sign of a difference: {named(lambda flip: flip == SIGN)}.",
        "",
        f"All that turns over:{'' if turned else ' nothing.'}",
        *([""] if turned else []),
        *(f"- {_name(variant)}: {'; '.join(variant.flips)}" for variant in turned),
    ]


def _of(variants: Sequence[Variant]) -> str:
    first, second = variants[0].runs
    return str(first) if first == second else f"{first} and {second}"


def _crash_row(variant: Variant, chosen: Variant) -> str:
    """Return the row of one value: every kind for the chosen value, for another only the kinds with other counts."""
    hits, usual = variant.hits or {}, chosen.hits or {}
    kinds = [kind for kind in hits if kind != CRASHED and (variant.chosen or hits[kind] != usual.get(kind))]
    told = ", ".join(f"{kind} {hits[kind][0]} : {hits[kind][1]}" for kind in kinds)
    return _sensitivity_row(variant.choice, _value(variant), f"{hits[CRASHED][0]} : {hits[CRASHED][1]}", told or DASH)


def _figure_row(variant: Variant) -> str:
    found = variant.difference
    assert found is not None
    p = DASH if math.isnan(found.p) else f"{found.p:.3g}"
    return _sensitivity_row(variant.choice, _value(variant), variant.metric, _sensitivity_difference(variant), p)


def _sensitivity_difference(variant: Variant) -> str:
    found = variant.difference
    assert found is not None
    if found.method == "percentile bootstrap":  # not symmetric around its centre
        return f"{found.value:+.2g} [{found.low:+.2g}, {found.high:+.2g}]".replace("-", "−")
    return interval(found, sign=True)


def _value(variant: Variant) -> str:
    return f"**{variant.value}**" if variant.chosen else variant.value


def _name(variant: Variant) -> str:
    metric = f" ({variant.metric})" if variant.metric else ""
    return f"{variant.choice}, {variant.value}{metric}"


def _sensitivity_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


WIDTH = 100


def difference_to_text(difference: Difference, width: int = WIDTH) -> str:
    """Return the text, no line longer than ``width`` (at least 40)."""
    first, second = difference.names
    lines = [f"first   {first}: {_ended(difference, 0)}", f"second  {second}: {_ended(difference, 1)}"]
    for title, unequal in (
        ("Settings", difference.settings),
        ("Files (sha256)", difference.hashes),
        ("Constants", difference.constants),
        ("Environment", difference.environment),
    ):
        lines += ["", *_block(title, unequal, width)]
    lines += ["", *_curves(difference, width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _ended(difference: Difference, side: int) -> str:
    return f"{difference.status[side]}, {difference.steps[side]} steps"


def _block(title: str, unequal: Mapping[str, tuple[Any, Any]], width: int) -> list[str]:
    if not unequal:
        return [f"{title}: equal"]
    rows = [(key, _shown(first), _shown(second)) for key, (first, second) in unequal.items()]
    return [title, *_aligned([("", "first", "second"), *rows], width)]


def _curves(difference: Difference, width: int) -> list[str]:
    common = difference.common
    if not common:
        return ["Curves: the runs have no step in common"]
    lines = [f"Curves, over steps {common[0]} to {common[-1]} that both have"]
    if difference.equal:
        lines.append(f"  equal in every digit, in all {len(difference.parts)} columns that both measured")
    elif difference.first is not None:
        part = difference.first
        words = (
            f"{part.column} parts first, at step {part.differs}: {part.first or ABSENT} against {part.second or ABSENT}"
        )
        lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
        rows = [_group(name, parts) for name, parts in difference.groups.items()]
        heads = ("columns", "differ from step", f"by > {TOLERANCE:g} from", "first in")
        lines += _aligned([heads, *rows], width)
    alone = [f"{part.column} ({part.alone} steps)" for part in difference.parts if part.alone]
    if alone:
        words = f"measured by one run alone at some steps: {', '.join(alone)}"
        lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
    for name, only in zip(("first", "second"), difference.only, strict=True):
        if only:
            words = f"measured only in the {name}: {', '.join(only)}"
            lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _group(name: str, parts: Sequence[Part]) -> tuple[str, str, str, str]:
    """Return a group's name, its first differing steps, and the columns that differ at the earlier one."""
    differs = min((part.differs for part in parts if part.differs is not None), default=None)
    beyond = min((part.beyond for part in parts if part.beyond is not None), default=None)
    columns = [part.column for part in parts if part.differs is not None and part.differs == differs]
    more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
    told = "never" if differs is None else str(differs)
    return name, told, "never" if beyond is None else str(beyond), f"{columns[0]}{more}" if columns else ABSENT


def _aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Align columns: the first as wide as needed, the others cut in the middle to share the remaining width."""
    name = max(len(row[0]) for row in rows)
    others = len(rows[0]) - 1
    room = max(8, (width - 2 - name - 2 * others) // others)
    cut = [[row[0], *(_cut(cell, room) for cell in row[1:])] for row in rows]
    widths = [max(len(row[index]) for row in cut) for index in range(others + 1)]
    return ["  " + "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cut]


def _cut(text: str, room: int) -> str:
    """Cut a long text in the middle and keep both ends: versions differ at the end, names at the beginning."""
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
