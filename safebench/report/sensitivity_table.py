"""Sensitivity of the result as Markdown: a table of crashes, one of differences, and what turns over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from safebench.analysis.sensitivity import CRASHED, SIGN, Variant
from safebench.report.cells import DASH, interval


def to_markdown(variants: Sequence[Variant], arms: tuple[str, str]) -> str:
    """Return the tables for ``sensitivity(groups)`` of the two ``arms``, the chosen values bold."""
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
    """Show every kind of the chosen value, and of the others those with other runs."""
    hits, usual = variant.hits or {}, chosen.hits or {}
    kinds = [kind for kind in hits if kind != CRASHED and (variant.chosen or hits[kind] != usual.get(kind))]
    told = ", ".join(f"{kind} {hits[kind][0]} : {hits[kind][1]}" for kind in kinds)
    return _row(variant.choice, _value(variant), f"{hits[CRASHED][0]} : {hits[CRASHED][1]}", told or DASH)


def _figure_row(variant: Variant) -> str:
    found = variant.difference
    assert found is not None
    p = DASH if math.isnan(found.p) else f"{found.p:.3g}"
    return _row(variant.choice, _value(variant), variant.metric, _difference(variant), p)


def _difference(variant: Variant) -> str:
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


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

