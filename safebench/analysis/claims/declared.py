"""The claims of SAFE's paper (Maity 2026) as a table: words, what is measured, and the function that measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safebench.analysis.claims import questions
from safebench.analysis.claims.verdicts import Claim

MATCHED_TO: Mapping[str, Sequence[str]] = {"safe": ("ppo", "ppo-matched"), "safe-official": ("ppo", "ppo-official")}
"""Whom each arm is held against. ``ppo-matched`` is the fair opponent of ``safe``; ``ppo-official`` is the one that
the paper's own figures are against, so that what fails against ``ppo`` alone is not laid at its door."""
OPPONENTS = ("ppo", "ppo-matched")
"""Whom any other arm is held against: the headline's opponents."""


def matched(arms: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the opponents of each of ``arms``; of those that the ledger is of by itself where none is named."""
    return {arm: MATCHED_TO.get(arm, OPPONENTS) for arm in arms} or MATCHED_TO


CLAIMS: tuple[Claim, ...] = (
    Claim(
        1,
        "Higher reward",
        "averaged over training, reward is higher than PPO's",
        "training-average reward, difference in σ₀: holds above 0, fails below; in per cent besides, where in every "
        f"seed the opponent's average is at least {questions.WELL_AWAY:g} σ₀",
        questions.reward,
        paper="+5.15 % (0.725 against 0.689)",
    ),
    Claim(
        2,
        "Negligible crashes",
        "training crashes less often than PPO's",
        "crashed runs: McNemar's exact test, one-sided at 2.5 %: holds where fewer "
        "of the arm's crashed, fails where more",
        questions.crashes,
    ),
    Claim(
        3,
        "Superior KL control",
        "KL stays lower and spikes less often, and the reward does not pay for it",
        "largest KL lower, fewer episodes of kl_spike, and the judge's reward at the end no more than "
        f"{questions.JUDGE_MARGIN:g} of its σ₀ lower: holds where all three are shown, fails where the contrary "
        "of one is",
        questions.kl,
    ),
    Claim(
        4,
        "Minimal overhead",
        "time and memory are hardly more than PPO's",
        f"time per update and peak memory, ratio: holds where both are below {questions.OVERHEAD:g}, fails where one "
        "is above",
        questions.cost,
    ),
    Claim(
        5,
        "The gate tells exploration from collapse",
        "the entropy gate keeps runs from collapsing",
        f"runs with {', '.join(questions.COLLAPSES)}, with the gate and without, at the same mean penalty: McNemar's "
        "exact test, one-sided at 2.5 %: holds where fewer collapsed with it, fails where more, or where the penalty "
        "never has a gradient",
        questions.gate,
        against="ablation",
        ablations={"safe": "safe-no-gate"},
        drops=("penalty.gate", "penalty.coefficient"),
    ),
    Claim(
        6,
        "Penalties follow reward velocity",
        "moving the threshold with the reward's velocity serves something",
        "judge's reward at the end, crashed runs, mean KL, with the PID and without, each at a third of 5 %: holds "
        "where one is worse without it and none better, fails the other way round, or where the penalty never has a "
        "gradient",
        questions.pid,
        against="ablation",
        ablations={"safe": "safe-no-pid"},
        drops=("penalty.pid",),
        tests=questions.TESTED,
    ),
    Claim(
        7,
        "Learning speed kept",
        "learning is no slower than PPO's",
        f"steps until the smoothed reward has made {100 * questions.WAY:.0f} % of the opponent's way to its peak: "
        "holds where fewer, fails where more",
        questions.speed,
    ),
    Claim(
        8,
        "Stable over long horizons",
        "longer training stays whole",
        f"crashed runs at {questions.LONGER} times the steps: holds where none of at least six is, fails where one is",
        questions.long_run,
        against="length",
    ),
    Claim(
        9,
        "Interpretable",
        "the controller's log explains what it did",
        "holds where in every run each controller column is filled at every step and the logged penalty is the one "
        "that logged threshold, gate and KL_short give; fails otherwise",
        questions.interpretable,
        against="itself",
    ),
    Claim(
        10,
        "Reduced volatility",
        "reward changes less from step to step than PPO's",
        "reward volatility, difference in σ₀ per step: holds below 0, fails above",
        questions.volatility,
    ),
)
