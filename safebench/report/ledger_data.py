"""A ledger of claims for other programs: CSV with a line per figure, and JSON with everything in it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from safebench.evidence.claims.verdicts import Claim, Entry, Ledger, Part
from safebench.report.data import blank, plain

COLUMNS = (
    "claim", "title", "arm", "opponent", "verdict", "figure", "unit", "direction", "bound", "decides", "kind", "n",
    "arm_mean", "opponent_mean", "value", "low", "high", "method", "p", "detectable", "side", "paper", "why", "missing",
    "command",
)  # fmt: skip


def to_csv(ledger: Ledger) -> str:
    """Return one line per figure of each entry, one for an entry without any; what is not defined is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for entry in ledger.entries:
        writer.writerows(_record(entry) | _figures(part) for part in entry.parts)
        if not entry.parts:
            writer.writerow(_record(entry))
    return out.getvalue()


def to_json(ledger: Ledger) -> str:
    """Return the whole ledger; numbers that are not defined are null, infinite ones "inf"."""
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
