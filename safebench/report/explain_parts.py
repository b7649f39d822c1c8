"""Sentences on the parts of a penalty: threshold, PID, gate, size, gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safebench.evidence.explain import Log

AGREE = 1e-6
"""Relative difference up to which two figures count as the same."""
PARTS = ("controller/pid_p", "controller/pid_i", "controller/pid_d")


def number(value: float) -> str:
    """Return a figure with four significant digits."""
    return "not logged" if math.isnan(value) else f"{value:.4g}"


def span(values: NDArray[np.float64]) -> str:
    """Return the least and the largest of the finite values, or the one there is."""
    known = values[np.isfinite(values)]
    if not known.size:
        return "not logged"
    low, high = number(float(known.min())), number(float(known.max()))
    return low if low == high else f"{low} to {high}"


def threshold(log: Log, rows: Sequence[int]) -> str:
    """Say how the threshold of the first row was made, and where it and the PID lay over all."""
    settings, row, held = log.penalty_settings, rows[0], list(rows)
    limit = log.column("controller/threshold")
    if settings is None or not math.isfinite(limit[row]):
        return ""
    base = float(settings.get("base_threshold", math.nan))
    if not log.has(PARTS[0]) or not log.has("controller/phase_factor"):
        if math.isclose(limit[row], base, rel_tol=AGREE):
            return f"Threshold: {number(base)}, the base; the log has no PID and no phase factor."
        return f"Threshold: {number(limit[row])}; the log has neither PID nor phase factor to make it of."
    p, i, d = (log.column(key) for key in PARTS)
    pid, factor = p + i + d, log.column("controller/phase_factor")
    made = (base + pid[row]) * factor[row]
    low, high = float(settings.get("min_threshold", -math.inf)), float(settings.get("max_threshold", math.inf))
    phase = f" ({log.phases[row]})" if log.phases[row] else ""
    text = (
        f"Threshold at step {int(log.steps[row])}: (base {number(base)} + P {number(p[row])} + I {number(i[row])} + "
        f"D {number(d[row])}) × phase factor {number(factor[row])}{phase} = {number(made)}"
    )
    if not math.isclose(min(max(made, low), high), limit[row], rel_tol=AGREE):
        return f"{text}, and the log has {number(limit[row])}."
    if made != min(max(made, low), high):
        text += f", held to {number(limit[row])}"
    over = f"; in the episode {span(limit[held])}, PID {span(pid[held])}" if len(rows) > 1 else ""
    return f"{text}{over}."


def clamped(log: Log, rows: Sequence[int]) -> str:
    """Say at how many of the rows the threshold lay at an edge of its clamp; empty where at none."""
    settings, limit = log.penalty_settings or {}, log.column("controller/threshold")[list(rows)]
    if not log.has("controller/phase_factor"):
        return ""
    at = {
        word: int(np.sum(limit == float(settings[key])))
        for word, key in (("lower", "min_threshold"), ("upper", "max_threshold"))
        if key in settings
    }
    told = [f"at its {word} limit at {count} of {len(rows)}" for word, count in at.items() if count]
    return f"The threshold lay {' and '.join(told)} steps." if told else ""


def gate(log: Log, rows: Sequence[int]) -> str:
    """Say what the entropy gate did to the penalty."""
    held, settings = list(rows), log.penalty_settings or {}
    values = log.column("controller/gate")[held]
    if not np.isfinite(values).any():
        return "The log has no gate."
    if settings.get("gate") is False:
        return f"Gate off: g = {span(values)}."
    below, above = int(np.sum(values < 1)), int(np.sum(values > 1))
    acts = [f"weakened the penalty at {below}"] if below else []
    acts += [f"strengthened it at {above}" if below else f"strengthened the penalty at {above}"] if above else []
    entropy = log.column("entropy/mean")[held]
    floor = settings.get("entropy_floor")
    measured = entropy[np.isfinite(entropy)]
    low = ""
    if floor is not None and measured.size:
        under = int(np.sum(measured < float(floor)))
        low = f", below the floor of {number(float(floor))} at {under} of {measured.size} steps"
    did = f"it {' and '.join(acts)} of {len(rows)} steps" if acts else "it left the penalty as it was"
    return f"Gate: g {span(values)} at entropy {span(entropy)}{low}; {did}."


def sized(log: Log, rows: Sequence[int]) -> str:
    """Say how large the penalty was, what made the largest one, and the policy term beside it.

    The terms' values do not compare: on-policy the policy term is zero, whatever its gradient.
    """
    penalty, policy = log.column("loss/penalty"), log.column("loss/policy")
    row = max(rows, key=lambda at: penalty[at])
    total = number(float(penalty[list(rows)].sum()))
    several = f"Penalty: {total} in all, the largest" if len(rows) > 1 else "Penalty:"
    text = f"{several} {number(penalty[row])} at step {int(log.steps[row])}{_made(log, row)}"
    if not math.isfinite(policy[row]):
        return f"{text}."
    return f"{text}; the policy term there {number(policy[row])}."


def _made(log: Log, row: int) -> str:
    """Return the product that gives the penalty, where the log has its parts and they do give it."""
    settings = log.penalty_settings or {}
    tracked, limit = log.column(log.tracked)[row], log.column("controller/threshold")[row]
    strength = float(settings.get("coefficient", math.nan))
    excess = tracked - limit if settings.get("asymmetric") is False else max(0.0, tracked - limit)
    momentum, rise = settings.get("momentum"), log.column("controller/momentum")[row]
    if momentum:
        moved = float(momentum["coefficient"]) * max(0.0, rise) ** 2 if math.isfinite(rise) else 0.0
        made = strength * excess**2 + moved
        text = f" = {number(strength)} × ({number(tracked)} - {number(limit)})²" if excess else " = 0"
        weight = number(float(momentum["coefficient"]))
        text += f" + {weight} × {number(rise)}² (the rise of KL)" if moved else " + 0 for the rise of KL"
    else:
        factor = log.column("controller/gate")[row]
        made = factor * strength * excess**2
        text = f" = {number(factor)} (gate) × {number(strength)} × ({number(tracked)} - {number(limit)})²"
    return text if math.isclose(made, log.column("loss/penalty")[row], rel_tol=AGREE) else ""


def gradients(log: Log, rows: Sequence[int]) -> str:
    """Say how large the penalty's gradient was where it was measured, and what that is against the policy term's."""
    own, policy = (log.column(f"grad/{term}")[list(rows)] for term in ("penalty", "policy"))
    known = np.isfinite(own)
    if not known.any():
        return "Gradient norms: measured at none of these steps."
    where = f"measured at {int(known.sum())} of these {len(rows)} steps"
    if not own[known].any():
        return f"Gradient norms, {where}: the penalty's was exactly zero each time, so it moved no weight there."
    both = known & np.isfinite(policy) & (policy > 0)
    against = f", {span(own[both] / policy[both])} times the policy term's" if both.any() else ""
    return f"Gradient norms, {where}: the penalty's {span(own[known])}{against}."
