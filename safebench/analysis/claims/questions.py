"""Define the claims of SAFE's paper (Maity 2026) as a table, and measure each of them on the available runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safebench.analysis import fairness, scalars, statistics
from safebench.analysis.claims.verdicts import (
    Case,
    Claim,
    Finding,
    Part,
    Value,
    all_of,
    any_of,
    difference,
    enough,
    p_value,
    ratio,
    share,
    side,
)
from safebench.analysis.fairness import filled
from safebench.analysis.runs import Run
from safebench.analysis.scalars import Summary
from safebench.analysis.statistics import ALPHA, Estimate
from safebench.crashes.detect import SCALES
from safebench.crashes.inert import never_acted
from safebench.crashes.signals import SPEC
from safebench.metrics import KEYS

WELL_AWAY = 1.0
"""Least training average of the opponent in sigma_0, in every seed, for a difference in per cent to be shown."""
JUDGE_MARGIN = 0.1
"""Margin in the judge's sigma_0 by which judge reward may be lower and still count as no lower."""
OVERHEAD = 1.01
"""Ratio of costs up to which an overhead counts as minimal."""


def reward(case: Case) -> Finding:
    """Evaluate claim 1: training-average reward is higher, in sigma_0, and also in per cent if that is meaningful."""
    found = all_of([difference("training-average reward", "σ₀", case, _in_sigma("train_reward"), "up")])
    others = [_in_sigma("train_reward")(second) for _, second in case.pairs]
    if not others or not min(others) >= WELL_AWAY:
        return found
    return Finding(found.verdict, found.why, (*found.parts, _per_cent(case)))


def kl(case: Case) -> Finding:
    """Evaluate claim 3: lower maximum of KL, fewer spikes, and judge reward no lower than the margin allows."""
    return all_of(
        [
            difference("KL, max", "nats/token", case, _scalar("kl_max"), "down"),
            difference("KL spikes", "episodes", case, _spikes, "down", exact=True),
            difference("judge reward, end", "judge's σ₀", case, _judge, "up", bound=-JUDGE_MARGIN),
        ]
    )


def cost(case: Case) -> Finding:
    """Evaluate claim 4: time per update and peak memory at most 1 % above the other's, on the same hardware."""
    parts = [
        ratio("time per update, s", case, _scalar("time_update"), "down", bound=OVERHEAD),
        ratio("peak memory, MiB", case, _scalar("memory_peak"), "down", bound=OVERHEAD),
    ]
    if len({_hardware(summary) for pair in case.pairs for summary in pair}) > 1:
        return Finding("not shown", "the runs come from different hardware: costs do not compare", tuple(parts))
    return all_of(parts)


def volatility(case: Case) -> Finding:
    """Evaluate claim 10: the reward changes less from step to step."""
    return all_of([difference("reward volatility", "σ₀/step", case, _scalar("volatility"), "down")])


def _per_cent(case: Case) -> Part:
    mean_reward = _in_sigma("train_reward")
    others = {second.run.seed: mean_reward(second) for _, second in case.pairs}
    part = difference(
        "the same", "%", case, lambda summary: 100 * mean_reward(summary) / others[summary.run.seed], "up"
    )
    return replace(part, means=(math.nan, math.nan), side=0, decides=False)


def _scalar(key: str) -> Value:
    return lambda summary: summary.values[key]


def _in_sigma(key: str) -> Value:
    def value(summary: Summary) -> float:
        sigma = summary.run.sigma0
        return summary.values[key] / sigma if sigma else math.nan

    return value


def _judge(summary: Summary) -> float:
    sigma = summary.run.judge_sigma0
    return summary.values["judge_final"] / sigma if sigma else math.nan


def _spikes(summary: Summary) -> float:
    return float(summary.count("kl_spike"))


def _hardware(summary: Summary) -> str:
    return json.dumps(summary.run.manifest.get("hardware"), sort_keys=True)


LONGER = 4
"""Length of a long run relative to an ordinary run."""
FREE = ("experiment", "description", "seed", "recording.", "compute.", "evaluation.every", "update.steps")
"""Settings in which a long run may differ from its ordinary run."""


def crashes(case: Case) -> Finding:
    """Evaluate claim 2: fewer crashed runs."""
    found = all_of([share("crashed runs", case, lambda summary: summary.crashed)])
    first, second = ([pair[i] for pair in case.pairs] for i in (0, 1))
    if not first:
        return found
    if len({summary.unmeasured_harms for summary in (*first, *second)}) > 1:
        return replace(found, verdict="not shown", why="the runs were not all watched for the same kinds of crash")
    scales = " / ".join(f"{scale:g}×" for scale in SCALES)
    told = f"crashed at {scales} thresholds: {case.arm} {_at_scales(first)}, {case.other} {_at_scales(second)}"
    drops = f"with a reward crash: {_with_drop(first)} against {_with_drop(second)}"
    return replace(found, why=f"{found.why}; {told}; {drops}")


def long_run(case: Case) -> Finding:
    """Evaluate claim 8: no crash in a run four times as long; one crashed run is a counterexample.

    ``case.second`` holds the same arm's runs of ordinary length, which define that length.
    """
    if not case.first:
        return Finding("not shown", "no long runs")
    part = _share_crashed(case.first)
    if not case.second:
        return Finding("not shown", "nothing says how long the ordinary run is", (part,))
    if reason := _not_longer(case.first[0].run, case.second[0].run):
        return Finding("not shown", reason, (part,))
    crashed = [summary for summary in case.first if summary.crashed]
    beside = "".join(f"; at this length {name}: {_crashed(runs)}" for name, runs in case.context.items() if runs)
    if crashed:
        told = "; ".join(f"seed {s.run.seed}: {_kinds(s)}" for s in crashed)
        return Finding("fails", f"{part.why} ({told}){beside}", (replace(part, side=-1),), certain=True)
    if blind := sorted({kind for summary in case.first for kind in summary.unmeasured_harms}):
        return Finding("not shown", f"{part.why}, but nobody watched {', '.join(blind)}", (part,))
    if len(case.first) < enough():
        return Finding("not shown", f"{part.why}; a verdict needs {enough()} runs{beside}", (part,))
    return Finding("holds", f"{part.why}{beside}", (replace(part, side=1),))


def _share_crashed(summaries: Sequence[Summary]) -> Part:
    hit = sum(summary.crashed for summary in summaries)
    estimate = statistics.clopper_pearson(hit, len(summaries))
    why = f"{_crashed(summaries)}, which allows a rate from {estimate.low:.2f} to {estimate.high:.2f}"
    return Part("crashed long runs", "share of runs", "down", estimate, (estimate.value, float("nan")), 0, why, "share")


def _kinds(summary: Summary) -> str:
    return ", ".join(dict.fromkeys(event.kind for event in summary.harms(1.0)))


def _crashed(summaries: Sequence[Summary]) -> str:
    return f"{sum(summary.crashed for summary in summaries)} of {len(summaries)} runs crashed"


def _not_longer(long: Run, short: Run) -> str:
    """Return why ``long`` is not a run of the same experiment, four times as long as ``short``; empty if it is."""
    if long.planned_steps < LONGER * short.planned_steps:
        return f"{long.planned_steps} steps are not {LONGER} times {short.planned_steps}"
    one, other = filled(long), filled(short)
    keys = [key for key in {**one, **other} if not key.startswith(FREE) and one.get(key) != other.get(key)]
    return f"the long runs differ in more than their length: {', '.join(keys)}" if keys else ""


def _at_scales(summaries: Sequence[Summary]) -> str:
    return " / ".join(str(sum(bool(summary.harms(scale)) for summary in summaries)) for scale in SCALES)


def _with_drop(summaries: Sequence[Summary]) -> str:
    return f"{sum(summary.count('reward_crash') > 0 for summary in summaries)} of {len(summaries)}"


WAY = 0.8
LEARNED = 0.5
"""Minimum gain of the opponent in sigma_0; 80 % of a smaller gain is noise."""
STEPS_TO_PEAK = f"steps to {100 * WAY:.0f} % of the peak"


def speed(case: Case) -> Finding:
    """Evaluate claim 7: no more steps than the opponent to 80 % of the opponent's own gain, pair by pair."""
    goals = {second.run.seed: goal(second) for _, second in case.pairs}
    lazy = [seed for seed, reward in goals.items() if math.isnan(reward)]
    if lazy:
        seeds = ", ".join(map(str, lazy))
        told = f"{case.other} gained less than {LEARNED:g} σ₀ in seed {seeds}: no peak to measure by"
        return Finding("not shown", told)
    part = difference(STEPS_TO_PEAK, "steps", case, lambda summary: steps_to(summary, goals[summary.run.seed]), "down")
    times = [tuple(steps_to(summary, goals[summary.run.seed]) for summary in pair) for pair in case.pairs]
    if any(math.isinf(first) for first, _ in times):
        part = _censored(part, case, [(first, second) for first, second in times])
    return all_of([part])


def curve(summary: Summary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the measured training steps and the smoothed reward at them (the crash specification's average)."""
    steps, reward = summary.run.column("step"), summary.run.column("reward/mean")
    known = (steps >= 1) & np.isfinite(reward)
    return steps[known], scalars.smoothed(reward[known], SPEC.smoothing_span)


def goal(summary: Summary) -> float:
    """Return the reward at 80 % of the way from the first batch's to the smoothed peak; NaN if it did not learn."""
    _, reward = curve(summary)
    sigma = summary.run.sigma0
    if not reward.size or not sigma:
        return math.nan
    start, peak = float(reward[0]), float(reward.max())
    return start + WAY * (peak - start) if peak - start >= LEARNED * sigma else math.nan


def steps_to(summary: Summary, reward: float) -> float:
    """Return the first step at which the smoothed reward is at least ``reward``; infinite if it never is."""
    steps, smoothed = curve(summary)
    reached = steps[smoothed >= reward]
    return float(reached[0]) if reached.size else math.inf


def _censored(part: Part, case: Case, times: Sequence[tuple[float, float]]) -> Part:
    late = [first - second for first, second in times]
    signs = [float(np.sign(value)) for value in late]
    p = statistics.sign_flip(signs)
    estimate = Estimate(float(np.median(late)), math.nan, math.nan, len(late), "median, sign test", p)
    never = sum(math.isinf(first) for first, _ in times)
    earlier = sum(sign < 0 for sign in signs)
    told = f"{case.arm} never got there in {never} of {len(late)} runs, and was earlier in {earlier}"
    medians = tuple(float(np.median([pair[i] for pair in times])) for i in (0, 1))
    why = f"{told}; sign test p {p_value(p)}"
    return replace(part, estimate=estimate, means=(medians[0], medians[1]), side=-side(signs, exact=True), why=why)


COLLAPSES = ("entropy_collapse", "degenerate", "length_collapse")
"""Crashes that are a loss of variety, which the gate should distinguish from exploration."""
SAME = 1.25
"""Two mean penalties count as the same if their ratio lies between 1 / SAME and SAME."""
TESTED = 3
"""Number of figures that claim 6 tests for one that gets worse; they share the level."""


def gate(case: Case) -> Finding:
    """Evaluate claim 5: at the same mean penalty, more runs collapse without the entropy gate."""
    if found := _beforehand(case):
        return found
    found = all_of([share("collapsed runs", case, _collapsed)])
    same, told = _same_penalty(case)
    if not same:
        return Finding("not shown", f"{told}; {found.why}", tuple(replace(part, side=0) for part in found.parts))
    return replace(found, why=f"{found.why}; {told}")


def pid(case: Case) -> Finding:
    """Evaluate claim 6: without the PID one of three primary metrics gets worse; each is tested at a third of 5 %."""
    if found := _beforehand(case):
        return found
    level = ALPHA / TESTED
    return any_of(
        [
            difference("judge reward, end", "judge's σ₀", case, _judge, "up", alpha=level),
            difference("crashed runs", "runs", case, _harmed, "down", alpha=level, exact=True),
            difference("judge reward at matched KL", "judge's σ₀", case, _judge_matched, "up", alpha=level),
        ]
    )


def unlike(claim: Claim, case: Case) -> str:
    """Return the settings in which arm and ablation differ, except those that the claim drops; empty if none."""
    groups = {name: [summary.run for summary in found] for name, found in _sides(case)}
    keys = [item.key for item in fairness.differences(groups) if not item.key.startswith(claim.drops)]
    return ", ".join(keys)


def mean_penalty(summary: Summary) -> float:
    """Return the mean of loss/penalty over the run's steps; NaN if it was not measured."""
    column = summary.run.column("loss/penalty")
    known = column[np.isfinite(column) & (summary.run.column("step") >= 1)]
    return float(known.mean()) if known.size else math.nan


def _beforehand(case: Case) -> Finding | None:
    if not case.first:
        return Finding("not shown", f"no runs of {case.arm}")
    if all(never_acted(summary.run, "penalty") for summary in case.first):
        why = (
            f"in {len(case.first)} of {len(case.first)} runs the penalty is inert, without a gradient at every "
            "measured step: what shapes it changes no weight, and a run without that is the same run"
        )
        return Finding("fails", why, certain=True)
    return None if case.pairs else Finding("not shown", "nothing to hold it against")


def _same_penalty(case: Case) -> tuple[bool, str]:
    """Return whether the 95 % interval of the mean penalties' ratio lies within 1 / SAME to SAME, with a text."""
    values = [(mean_penalty(first), mean_penalty(second)) for first, second in case.pairs]
    if not all(math.isfinite(v) and v > 0 for pair in values for v in pair):
        return False, "the mean penalty is not known, or zero, in some run"
    found = statistics.mean([math.log(first / second) for first, second in values])
    centre, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    told = f"mean penalty {centre:.2f} times that without, 95 % interval {low:.2f} to {high:.2f}"
    within = f"within {1 / SAME:.2f} to {SAME:.2f}"
    if low > 1 / SAME and high < SAME:
        return True, f"{told}, {within}"
    return False, f"{told}, must lie {within}: multiply the ablation's coefficient by {centre:.2g}"


def _collapsed(summary: Summary) -> bool:
    return any(summary.count(kind) for kind in COLLAPSES)


def _harmed(summary: Summary) -> float:
    return float(summary.crashed)


def _judge_matched(summary: Summary) -> float:
    sigma = summary.run.judge_sigma0
    return summary.values["judge_matched"] / sigma if sigma else math.nan


def _sides(case: Case) -> list[tuple[str, tuple[Summary, ...]]]:
    return [(case.arm, case.first), (case.other, case.second)]


CONTROLLER: tuple[str, ...] = tuple(
    key for key in KEYS if key.startswith("controller/") and key != "controller/momentum"
)
"""The columns of the gated form (SAFE, equations 5 to 9); momentum belongs to the other form."""
TOLERANCE = float(np.finfo(np.float32).eps)
"""Relative tolerance. A loss term is a float32, rounded once in each micro-batch; twice that error is not reached."""
EXPLAINED = "runs whose log explains each penalty"
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Explained:
    """What one run's log holds: number of steps, steps with a gap in a controller column, steps not recomputed."""

    seed: int
    steps: int
    gaps: tuple[int, ...]
    unexplained: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether there are steps, and each of them is complete and explained."""
        return bool(self.steps) and not self.gaps and not self.unexplained


def interpretable(case: Case) -> Finding:
    """Evaluate claim 9: every controller column is filled at every step, and every logged penalty can be recomputed."""
    silent = [summary.run.seed for summary in case.first if not summary.run.settings.get("penalty")]
    if not case.first or silent:
        return Finding("not shown", f"no runs of {case.arm}" if not case.first else f"{case.arm} has no penalty")
    found = [explained(summary.run) for summary in case.first]
    whole = sum(one.whole for one in found)
    estimate = Estimate(whole / len(found), math.nan, math.nan, len(found), "check of every step")
    steps = sum(one.steps for one in found)
    faults = [_fault(one) for one in found if not one.whole]
    side, why = (-1, "; ".join(faults)) if faults else (1, f"at all {steps} steps of {len(found)} runs")
    part = Part(EXPLAINED, "share of runs", "up", estimate, (estimate.value, math.nan), side, why, "share")
    return Finding("fails", why, (part,), certain=True) if faults else Finding("holds", why, (part,))


def explained(run: Run) -> Explained:
    """Check one run's log, step by step."""
    trained = run.column("step") >= 1
    steps = run.column("step")[trained]
    gaps = np.zeros(steps.size, dtype=np.bool_)
    for key in CONTROLLER:
        gaps |= ~_filled(run, key)[trained]
    logged, again = run.column("loss/penalty")[trained], recomputed(run)[trained]
    same = np.abs(logged - again) <= TOLERANCE * np.abs(again) + TINY  # a NaN is never the same
    return Explained(run.seed, steps.size, _steps(steps, gaps), _steps(steps, ~same & ~gaps))


def recomputed(run: Run) -> NDArray[np.float64]:
    """Return g c max(0, KL_short - tau)^2 (SAFE, equation 10) from the logged columns, one value per row."""
    penalty = run.settings["penalty"]
    excess = run.column("controller/kl_short") - run.column("controller/threshold")
    if penalty.get("asymmetric", True):
        excess = np.maximum(excess, 0.0)
    return run.column("controller/gate") * float(penalty["coefficient"]) * excess**2


def _filled(run: Run, key: str) -> NDArray[np.bool_]:
    if key == "controller/phase":
        return np.array([cell != "" for cell in run.cells.get(key, [""] * run.column("step").size)], dtype=np.bool_)
    return np.isfinite(run.column(key))


def _steps(steps: NDArray[np.float64], chosen: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(step) for step in steps[chosen])


def _fault(one: Explained) -> str:
    if not one.steps:
        return f"seed {one.seed} has no step"
    told = [_first("an empty cell", one.gaps), _first("a penalty that the log does not give", one.unexplained)]
    return f"seed {one.seed}: {' and '.join(text for text in told if text)}"


def _first(what: str, steps: Sequence[int]) -> str:
    return f"{what} in {len(steps)} steps, first {steps[0]}" if steps else ""


MATCHED_TO: Mapping[str, Sequence[str]] = {"safe": ("ppo", "ppo-matched"), "safe-official": ("ppo", "ppo-official")}
"""Opponents of each arm. ``ppo-matched`` is the fair opponent of ``safe``. ``ppo-official`` is the opponent in the
paper's own figures; with it, a claim that fails only against ``ppo`` is not attributed to the paper."""
OPPONENTS = ("ppo", "ppo-matched")
"""Opponents of any other arm: those of the headline."""


def matched(arms: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the opponents of each of ``arms``, or of the ledger's default arms if ``arms`` is empty."""
    return {arm: MATCHED_TO.get(arm, OPPONENTS) for arm in arms} or MATCHED_TO


CLAIMS: tuple[Claim, ...] = (
    Claim(
        1,
        "Higher reward",
        "averaged over training, reward is higher than PPO's",
        "training-average reward, difference in σ₀: holds above 0, fails below; in per cent besides, where in every "
        f"seed the opponent's average is at least {WELL_AWAY:g} σ₀",
        reward,
        paper="+5.15 % (0.725 against 0.689)",
    ),
    Claim(
        2,
        "Negligible crashes",
        "training crashes less often than PPO's",
        "crashed runs: McNemar's exact test, one-sided at 2.5 %: holds where fewer "
        "of the arm's crashed, fails where more",
        crashes,
    ),
    Claim(
        3,
        "Superior KL control",
        "KL stays lower and spikes less often, and the reward does not pay for it",
        "largest KL lower, fewer episodes of kl_spike, and the judge's reward at the end no more than "
        f"{JUDGE_MARGIN:g} of its σ₀ lower: holds where all three are shown, fails where the contrary "
        "of one is",
        kl,
    ),
    Claim(
        4,
        "Minimal overhead",
        "time and memory are hardly more than PPO's",
        f"time per update and peak memory, ratio: holds where both are below {OVERHEAD:g}, fails where one "
        "is above",
        cost,
    ),
    Claim(
        5,
        "The gate tells exploration from collapse",
        "the entropy gate keeps runs from collapsing",
        f"runs with {', '.join(COLLAPSES)}, with the gate and without, at the same mean penalty: McNemar's "
        "exact test, one-sided at 2.5 %: holds where fewer collapsed with it, fails where more, or where the penalty "
        "never has a gradient",
        gate,
        against="ablation",
        ablations={"safe": "safe-no-gate"},
        drops=("penalty.gate", "penalty.coefficient"),
    ),
    Claim(
        6,
        "Penalties follow reward velocity",
        "moving the threshold with the reward's velocity serves something",
        "judge's reward at the end and at matched KL, crashed runs, with the PID and without, each at a third of 5 %: "
        "holds where one is worse without it and none better, fails the other way round, or where the penalty never "
        "has a gradient",
        pid,
        against="ablation",
        ablations={"safe": "safe-no-pid"},
        drops=("penalty.pid",),
        tests=TESTED,
    ),
    Claim(
        7,
        "Learning speed kept",
        "learning is no slower than PPO's",
        f"steps until the smoothed reward has made {100 * WAY:.0f} % of the opponent's way to its peak: "
        "holds where fewer, fails where more",
        speed,
    ),
    Claim(
        8,
        "Stable over long horizons",
        "longer training stays whole",
        f"crashed runs at {LONGER} times the steps: holds where none of at least six is, fails where one is",
        long_run,
        against="length",
    ),
    Claim(
        9,
        "Interpretable",
        "the controller's log explains what it did",
        "holds where in every run each controller column is filled at every step and the logged penalty is the one "
        "that logged threshold, gate and KL_short give; fails otherwise",
        interpretable,
        against="itself",
    ),
    Claim(
        10,
        "Reduced volatility",
        "reward changes less from step to step than PPO's",
        "reward volatility, difference in σ₀ per step: holds below 0, fails above",
        volatility,
    ),
)
