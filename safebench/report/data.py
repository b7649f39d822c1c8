"""A comparison for other programs: CSV in long form and JSON with everything in it."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from safebench.analysis.compare import Comparison
from safebench.analysis.rows import Cell, Row
from safebench.analysis.statistics import Estimate
from safebench.analysis.stopping import Stopping
from safebench.crashes.detect import SCALES

COLUMNS = (
    "metric", "label", "unit", "direction", "primary", "arm", "baseline", "pairing", "n", "value", "low", "high",
    "method", "p", "holm_p", "detectable", "runs_hit", *(f"episodes_at_{scale:g}" for scale in SCALES),
)  # fmt: skip
ROUNDING = ("rounding_each", "rounding_mean", "rounding_n")
"""Columns of an arm's cell where replicates were asked for."""


def to_csv(comparison: Comparison) -> str:
    """Return one line per metric and arm, then per metric and difference (``baseline`` is set there).

    Numbers have all their digits; what is not defined is empty. Warnings and footers are in the JSON.
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
    """Return the whole comparison; numbers that are not defined are null, infinite ones "inf"."""
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
    """Tell whether no run of the arm was watched for this kind of crash: then no run hit means nothing."""
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
    """Return a number as a CSV cell: empty where it is not defined."""
    return "" if math.isnan(value) else value


def plain(value: Any) -> Any:
    """Return a value as strict JSON has it: NaN as null, an infinite number by its name."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
