"""Explains when and why a run's penalty acted, in sentences based only on its log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from safebench.analysis.explain import AFTER, Episode, Log
from safebench.analysis.runs import Run
from safebench.crashes.inert import inert_in, sentence

AGREE = 1e-6
"""Largest relative difference at which two figures count as equal."""
PARTS = ("controller/pid_p", "controller/pid_i", "controller/pid_d")


def number(value: float) -> str:
    """Return a figure with four significant digits."""
    return "not logged" if math.isnan(value) else f"{value:.4g}"


def span(values: NDArray[np.float64]) -> str:
    """Return the smallest and the largest finite value as text, or one figure if the two are equal."""
    known = values[np.isfinite(values)]
    if not known.size:
        return "not logged"
    low, high = number(float(known.min())), number(float(known.max()))
    return low if low == high else f"{low} to {high}"


def threshold(log: Log, rows: Sequence[int]) -> str:
    """Return how the first row's threshold was computed, and the ranges of threshold and PID over all rows."""
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
    """Return at how many of the rows the threshold was at a limit of its clamp; empty if at none."""
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
    """Return how the entropy gate changed the penalty."""
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
    """Return the size of the penalty, the factors of the largest one, and the policy term at the same step.

    The values of the two terms are not comparable: on-policy, the policy term is zero whatever its gradient is.
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
    """Return the formula of the penalty with its figures; empty if the log lacks a part or the result differs."""
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
    """Return the penalty's gradient norm where it was measured, and its ratio to the policy term's."""
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


DETAILED = 12
"""Number of episodes described one by one: those with the largest sums of penalty."""
UNITS = "KL, thresholds and entropy in nats per token; all figures from metrics.csv and config.yaml."


def explain(run: Run) -> str:
    """Return what the log shows of the run's penalty; for a run without one, what it has instead."""
    log = Log(run)
    lines = [f"{run.model} {run.variant} seed {run.seed}: what its penalty did. {UNITS}", ""]
    if not log.steps.size:
        return _text([*lines, "The log has no training step yet."])
    if not log.measured.size:
        return _text([*lines, *_without(log)])
    lines += [_capital(sentence(term)) + "." for term in inert_in(run) if term.term == "penalty"]
    if run.settings.get("algorithm") == "safe-official":
        lines.append(
            "This arm's controller advances with every update: KL_short, threshold and gate are those of a step's last "
            "update, the penalty is the mean over its updates."
        )
    lines += [*_summary(log), *_each(log)]
    return _text(lines)


def _summary(log: Log) -> list[str]:
    penalty, count = log.column("loss/penalty"), len(log.measured)
    lost = int(np.sum(~np.isfinite(log.column("loss/penalty")))) if count < len(log.steps) else 0
    blank = [f"At {lost} of {len(log.steps)} steps the log has no finite penalty."] if lost else []
    if not log.acting.size:
        return [*blank, f"The penalty was zero at all {count} steps.", *_nearest(log)]
    acting, held = log.acting, penalty[log.acting]
    largest = int(acting[np.argmax(held)])
    lines = [
        *blank,
        f"The penalty acted at {acting.size} of {count} steps ({100 * acting.size / count:.1f} %), in "
        f"{_count(len(log.episodes), 'episode')}: the first such step is {_step(log, acting[0])}, the last "
        f"{_step(log, acting[-1])}.",
        f"Its sum over these steps is {number(held.sum())}, its mean there {number(held.mean())}, the largest "
        f"{number(penalty[largest])} at step {_step(log, largest)}.",
    ]
    phases, within = Counter(log.phases[row] for row in log.measured), Counter(log.phases[row] for row in acting)
    named = [f"{name} {within[name]} of {total} steps" for name, total in phases.items() if name]
    lines.append(f"By phase: {', '.join(named)}." if named else "The log has no phases.")
    words = {"KL": "kl/mean", "KL_short": "controller/kl_short", "threshold": "controller/threshold"}
    words["entropy"] = "entropy/mean"
    spans = [f"{word} {span(log.column(key)[acting])}" for word, key in words.items() if log.has(key)]
    lines.append(f"While it acted: {', '.join(spans)}." if spans else "The log has neither KL nor threshold.")
    lines += [gradients(log, acting.tolist())]
    return lines + _followed(log)


def _nearest(log: Log) -> list[str]:
    gap = log.column(log.tracked) - log.column("controller/threshold")
    if not np.isfinite(gap).any():
        return []
    row, name = int(np.nanargmax(gap)), "KL_short" if log.tracked != "kl/mean" else "KL"
    tracked, limit = log.column(log.tracked)[row], log.column("controller/threshold")[row]
    return [f"{name} came nearest to the threshold at step {_step(log, row)}: {number(tracked)} and {number(limit)}."]


def _followed(log: Log) -> list[str]:
    ends = [end for end in map(log.aftermath, log.episodes) if end is not None and end.whole]
    unknown = len(log.episodes) - len(ends)
    lower = sum(end.kl < end.start for end in ends)
    text = f"Ten steps after an episode's first step, KL was lower than at it in {lower} of {len(ends)}"
    return [f"{text}; for {unknown} the log does not tell." if unknown else f"{text}."] if ends else []


def _each(log: Log) -> list[str]:
    ranked = sorted(log.episodes, key=lambda episode: -episode.total)[:DETAILED]
    lines: list[str] = []
    for index, episode in enumerate(log.episodes, 1):
        if episode in ranked:
            lines += ["", *_told(log, episode, index)]
    rest = [episode for episode in log.episodes if episode not in ranked]
    if rest:
        steps, total = sum(len(episode.rows) for episode in rest), sum(episode.total for episode in rest)
        lines += [
            "",
            f"{_count(len(rest), 'further episode')}, {_count(steps, 'step')} together, with smaller sums: "
            f"{number(total)} in all.",
        ]
    return lines


def _told(log: Log, episode: Episode, index: int) -> list[str]:
    where = f"step {episode.first}" if episode.first == episode.last else f"steps {episode.first} to {episode.last}"
    still = ", still open where the log ends" if episode.open else ""
    title = f"Episode {index}: {where} ({_count(len(episode.rows), 'step')}{still})"
    lines = [
        _phases(log, episode),
        _began(log, episode.rows[0]),
        threshold(log, episode.rows),
        clamped(log, episode.rows),
        gate(log, episode.rows),
        sized(log, episode.rows),
        gradients(log, episode.rows),
        _after(log, episode),
    ]
    return [title, *(f"  {line}" for line in lines if line)]


def _phases(log: Log, episode: Episode) -> str:
    parts = log.stretches(episode.rows)
    when = [f"at step {a}" if a == b else f"in steps {a} to {b}" for _, a, b in parts]
    told = [f"{part.phase} {text}" for part, text in zip(parts, when, strict=True)]
    if len(parts) > 1:
        limit, kl = log.column("controller/threshold"), log.column("kl/mean")
        within = [(log.steps >= part.first) & (log.steps <= part.last) for part in parts]
        told = [
            f"{text} (threshold {span(limit[rows])}, KL {span(kl[rows])})"
            for text, rows in zip(told, within, strict=True)
        ]
    return f"Phase: {', '.join(told)}." if told else ""


def _began(log: Log, row: int) -> str:
    tracked, limit = log.column(log.tracked), log.column("controller/threshold")
    if not np.isfinite(tracked[row]) or not np.isfinite(limit[row]):
        return f"KL of the batch {number(log.column('kl/mean')[row])}; the log has no threshold to hold it against."
    name = "KL" if log.tracked == "kl/mean" else "KL_short"
    text = f"At its first step {name} was {number(tracked[row])} and the threshold {number(limit[row])}"
    before = row - 1
    if before >= 0 and np.isfinite(tracked[before]) and np.isfinite(limit[before]):
        text += f" (the step before: {number(tracked[before])} and {number(limit[before])})"
    batch = "" if name == "KL" else f"; KL of the batch {number(log.column('kl/mean')[row])}"
    return f"{text}{batch}; entropy {number(log.column('entropy/mean')[row])}."


def _after(log: Log, episode: Episode) -> str:
    end = log.aftermath(episode)
    if end is None:
        return "What KL did afterwards is not in the log."
    so = "lower" if end.kl < end.start else "higher" if end.kl > end.start else "the same"
    when = (
        f"{AFTER} steps after its first step, at step {end.step},"
        if end.whole
        else f"At step {end.step}, the last one logged within {AFTER} steps of its first,"
    )
    return (
        f"{when} KL was {number(end.kl)}, {so} than {number(end.start)} at the first; the least in between was "
        f"{number(end.least)} at step {end.least_step}."
    ).replace("the same than", "the same as")


def _without(log: Log) -> list[str]:
    """Return what a run without penalties has instead."""
    if log.penalty_settings is not None:
        return ["Its settings have a penalty and its log has none: whether it acted cannot be told."]
    reward, loss = log.run.settings.get("reward", {}), log.run.settings.get("loss", {})
    coefficient, estimator = float(reward.get("kl_coefficient", 0.0)), reward.get("kl_estimator", "k1")
    lines = ["There is no controller and no penalty in this run's loss."]
    if coefficient:
        lines.append(
            f"In their place KL is in the reward: {coefficient:g} × the sampled KL ({estimator}) is taken off each "
            "token's reward (reward.kl_coefficient), alike at every step, whatever KL is."
        )
        sampled = log.column("kl/sampled")
        if estimator == "k1" and log.has("kl/sampled"):
            mean, top = float(np.nanmean(sampled)), int(np.nanargmax(sampled))
            lines.append(
                f"Over a reply the sampled KL was {number(mean)} nats on average, which took "
                f"{number(coefficient * mean)} off its reward; most at step {_step(log, top)}: "
                f"{number(sampled[top])} nats, {number(coefficient * sampled[top])} off."
            )
    if weight := float(loss.get("kl_coefficient", 0.0)):
        lines.append(f"The loss has {weight:g} × the sampled KL (k1) as a term of its own (loss.kl_coefficient).")
        if log.has("loss/kl"):
            lines.append(f"That term lay between {span(log.column('loss/kl')).replace(' to ', ' and ')}.")
    if not coefficient and not weight:
        lines.append("Nothing stands in their place: no KL in the reward, and none in the loss.")
    if log.has("kl/mean"):
        kl = log.column("kl/mean")
        top, mean = int(np.nanargmax(kl)), float(np.nanmean(kl))
        lines.append(f"KL was {number(mean)} on average and at most {number(kl[top])}, at step {_step(log, top)}.")
    return lines


def _step(log: Log, row: int) -> str:
    return str(int(log.steps[row]))


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(lines: Iterable[str] | Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
