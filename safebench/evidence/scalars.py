"""Rows of a comparison: every scalar of a run with its unit, direction and definition.

Rewards keep their own unit; gains and reliability are in sigma_0, the reward's spread under the initial policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from safebench.metrics import Direction


@dataclass(frozen=True)
class Scalar:
    """One row of a comparison. ``primary`` ones were declared before any run; Holm's correction is over them."""

    key: str
    label: str
    unit: str
    direction: Direction
    definition: str
    primary: bool = False


SCALARS: tuple[Scalar, ...] = (
    Scalar("train_reward", "training-average reward", "reward", "up", "mean of reward/mean over all steps"),
    Scalar("final_reward", "final reward", "reward", "up", "reward/mean, last tenth of the steps"),
    Scalar("proxy_final", "held-out proxy reward, end", "reward", "up", "last eval/reward"),
    Scalar("proxy_peak", "held-out proxy reward, peak", "reward", "up", "largest eval/reward"),
    Scalar("judge_final", "held-out judge reward, end", "judge", "up", "last eval/judge", primary=True),
    Scalar(
        "judge_matched",
        "held-out judge reward at matched KL",
        "judge",
        "up",
        "eval/judge where the held-out KL first reaches the level of the footer, straight between evaluations",
        primary=True,
    ),
    Scalar("judge_peak", "held-out judge reward, peak", "judge", "up", "largest eval/judge"),
    Scalar("proxy_gain_best", "proxy gain to its best", "σ₀", "up", "largest eval/reward minus first, over σ₀"),
    Scalar("proxy_gain", "proxy gain to the end", "σ₀", "up", "last eval/reward minus first, over σ₀"),
    Scalar(
        "judge_gain_best", "judge gain to its best", "σ₀", "up", "largest eval/judge minus first, over the judge's σ₀"
    ),
    Scalar("judge_gain", "judge gain to the end", "σ₀", "up", "last eval/judge minus first, over the judge's σ₀"),
    Scalar("kl_mean", "KL, mean", "nats/token", "down", "mean of kl/mean over all steps"),
    Scalar("kl_max", "KL, max", "nats/token", "down", "largest kl/mean of a step"),
    Scalar("kl_final", "KL, final", "nats/token", "down", "kl/mean, last tenth of the steps"),
    Scalar("entropy_final", "entropy, final", "nats/token", "none", "entropy/mean, last tenth of the steps"),
    Scalar("distinct_final", "distinct replies, final", "share", "up", "reply/distinct, last tenth of the steps"),
    Scalar("distinct_2_final", "distinct bigrams, final", "share", "up", "reply/distinct_2, last tenth of the steps"),
    Scalar("known_words_final", "known words, end", "share", "up", "last eval/known_words"),
    Scalar("relevance_final", "closeness to the own turn, end", "cosine", "up", "last eval/relevance"),
    Scalar("first_perplexity_final", "perplexity under the reference, end", "1", "none", "last eval/first_perplexity"),
    Scalar("length_final", "reply length, final", "tokens", "none", "reply/length, last tenth of the steps"),
    Scalar(
        "volatility",
        "reward volatility",
        "σ₀/step",
        "down",
        "IQR of the reward's changes in a window, mean over windows",
    ),
    Scalar("max_drawdown", "max drawdown", "σ₀", "down", "deepest fall of reward/mean from its running maximum"),
    Scalar(
        "short_risk",
        "short-term risk",
        "σ₀/step",
        "up",
        "mean of the 5 % worst changes of reward/mean; a fall is negative",
    ),
    Scalar("long_risk", "long-term risk", "σ₀", "down", "mean of the 5 % deepest drawdowns of reward/mean"),
    Scalar("recovery", "recovery time", "steps", "down", "mean length of the reward crashes that ended"),
    Scalar("time_update", "time per update", "s", "down", "median of time/step, which leaves evaluations out"),
    Scalar("tokens_per_second", "tokens per second", "tokens/s", "up", "median of speed/tokens_per_second"),
    Scalar("memory_peak", "peak memory", "MiB", "down", "largest memory/peak"),
    Scalar("tokens", "tokens sampled", "tokens", "none", "reply tokens sampled for training"),
)
BY_KEY: dict[str, Scalar] = {scalar.key: scalar for scalar in SCALARS}
