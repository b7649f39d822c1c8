"""The metric schema: every column of metrics.csv with its unit, direction and definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "none"]

CRASH_KINDS = (
    "numeric",
    "reward_crash",
    "unrecovered",
    "judge_crash",
    "kl_spike",
    "kl_runaway",
    "entropy_collapse",
    "entropy_explosion",
    "degenerate",
    "length_collapse",
    "length_blowup",
    "value_divergence",
    "ratio_blowout",
)

ALARM_KINDS = ("kl_spike", "kl_runaway", "entropy_explosion", "value_divergence", "ratio_blowout")
"""Kinds that may announce harm; every other kind is a harm (crash specification, version 2)."""
HARM_KINDS = tuple(kind for kind in CRASH_KINDS if kind not in ALARM_KINDS)

LOSS_TERMS = ("policy", "value", "penalty", "entropy", "kl")


@dataclass(frozen=True)
class Metric:
    """One column. ``environment`` marks columns that differ between two runs with the same seed."""

    key: str
    unit: str
    direction: Direction
    definition: str
    environment: bool = False


def _terms() -> list[Metric]:
    named = {
        "policy": "clipped surrogate, mean over the batch's reply tokens (SAFE, equation 4)",
        "value": "value loss times its coefficient (SAFE, equation 3, or clipped squared error)",
        "penalty": "KL penalty of the controller (SAFE, equation 10 or 12)",
        "entropy": "entropy bonus: minus coefficient times entropy",
        "kl": "sampled KL (k1) as a loss term, times its coefficient",
    }
    values = [Metric(f"loss/{name}", "1", "none", f"{text}; mean over the step's updates") for name, text in named.items()]
    norms = [
        Metric(f"grad/{name}", "1", "none", f"norm of the gradient of loss/{name} alone, first update of the step; empty between measurements")
        for name in named
    ]
    return values + norms


METRICS: tuple[Metric, ...] = (
    Metric("step", "1", "none", "steps so far; row 0 is the evaluation before any update, its other columns empty"),
    Metric("episodes", "replies", "none", "replies sampled for training so far"),
    Metric("tokens", "tokens", "none", "reply tokens sampled for training so far"),
    Metric("reward/mean", "reward", "up", "proxy reward of the batch's replies, before stress, normalisation and KL, mean over replies"),
    Metric("reward/std", "reward", "none", "standard deviation of the same over the batch (unbiased)"),
    Metric("reward/shaped", "reward", "none", "sum over a reply's tokens of the reward that the advantages see, mean over replies"),
    Metric("eval/reward", "reward", "up", "proxy reward on the held-out prompts at evaluation points"),
    Metric("eval/judge", "reward", "up", "judge reward on the held-out prompts at evaluation points"),
    Metric("eval/kl", "nats/token", "down", "exact KL from the policy to the reference on the held-out prompts' replies"),
    Metric("eval/entropy", "nats/token", "none", "entropy on the held-out prompts' replies"),
    Metric("eval/length", "tokens", "none", "length of the held-out prompts' replies, end token included"),
    Metric("eval/distinct", "share", "up", "share of distinct replies among the held-out prompts' replies"),
    Metric("eval/distinct_2", "share", "up", "distinct bigrams over all bigrams of the held-out prompts' replies"),
    Metric("eval/known_words", "share", "up", "audit: share of the held-out prompts' replies' words that the embedded world's people or the encoder's vocabulary know"),
    Metric("eval/relevance", "1", "up", "audit: cosine of a held-out reply with its own turn minus that with the other turns, encoder without preferences"),
    Metric("eval/first_perplexity", "1", "none", "audit: perplexity of the held-out prompts' replies under the reference, exp of the mean surprisal per token"),
    Metric("kl/mean", "nats/token", "down", "exact KL(policy || reference) over the vocabulary, mean over the batch's reply tokens, sampling policy"),
    Metric("kl/max", "nats/token", "down", "largest exact KL of one reply token in the batch"),
    Metric("kl/sampled", "nats/reply", "down", "sum over a reply's tokens of log policy - log reference of the sampled tokens, mean over replies"),
    Metric("entropy/mean", "nats/token", "none", "entropy over the vocabulary, mean over the batch's reply tokens, sampling policy"),
    Metric("reply/surprisal", "nats/reply", "none", "-log p of the sampled tokens, summed over a reply, mean over the batch; sampling policy"),
    Metric("reply/length", "tokens", "none", "reply length, end token included, mean over the batch"),
    Metric("reply/ended", "share", "none", "share of replies that end with the end token"),
    Metric("reply/distinct", "share", "up", "share of distinct replies in the batch"),
    Metric("reply/distinct_2", "share", "up", "distinct bigrams over all bigrams of the batch's replies (tokens, end token left out)"),
    Metric("prompt/truncated", "prompts", "none", "prompts of the batch that lost tokens on the left"),
    *_terms(),
    Metric("loss/total", "1", "none", "sum of the loss terms; mean over the step's updates"),
    Metric("grad/norm", "1", "none", "norm of the policy's gradient before clipping; mean over the step's updates"),
    Metric("grad/critic_norm", "1", "none", "norm of the critic's gradient before clipping; mean over the step's updates"),
    Metric("update/clip_fraction", "share", "none", "share of reply tokens whose ratio the clip cut; mean over the step's updates"),
    Metric("update/approx_kl", "nats/token", "none", "half the mean squared log-ratio to the sampling policy; mean over the step's updates"),
    Metric("update/ratio_mean", "1", "none", "importance ratio, mean over the reply tokens; mean over the step's updates"),
    Metric("update/value_clip_fraction", "share", "none", "share of values (mean over heads) that the value clip cut; mean over the step's updates"),
    Metric("update/ratio_max", "1", "down", "largest importance ratio of the step's updates"),
    Metric("update/learning_rate", "1", "none", "learning rate of the policy"),
    Metric("preview/kl", "nats/token", "down", "exact KL on the batch that its last update reached, as kept; with update.preview (SAFE, equation 13)"),
    Metric("preview/shrunk", "share", "none", "share of the step's updates that were shortened to stay below the ceiling"),
    Metric("preview/scale", "1", "none", "smallest share of an optimizer step that was kept, over the step's updates"),
    Metric("preview/passes", "passes", "down", "forward passes over the batch that the preview took, over the step's updates"),
    Metric("critic/explained_variance", "1", "up", "1 - Var(return - value) / Var(return) over the batch's tokens, before the update"),
    Metric("critic/value", "reward", "none", "value before the update, mean over the batch's tokens"),
    Metric("critic/return", "reward", "none", "return, mean over the batch's tokens"),
    Metric("controller/kl_short", "nats/token", "none", "moving average of kl/mean, decay 0.9 (SAFE, equation 5); in safe-official of each update's sampled KL"),
    Metric("controller/kl_long", "nats/token", "none", "moving average of kl/mean, decay 0.99 (SAFE, equation 5); in safe-official of each update's sampled KL"),
    Metric("controller/threshold", "nats/token", "none", "KL threshold tau (SAFE, equation 6)"),
    Metric("controller/velocity", "sigma_0/step", "none", "change of the smoothed reward (SAFE, equation 7); empty in safe-official, whose reward is not in sigma_0"),
    Metric("controller/pid_p", "nats/token", "none", "proportional part of the PID's output"),
    Metric("controller/pid_i", "nats/token", "none", "integral part of the PID's output"),
    Metric("controller/pid_d", "nats/token", "none", "derivative part of the PID's output"),
    Metric("controller/phase", "name", "none", "warmup, climbing, converged or plateau (SAFE, equation 8)"),
    Metric("controller/phase_factor", "1", "none", "factor phi that the phase puts on the threshold"),
    Metric("controller/gate", "1", "none", "entropy gate g (SAFE, equation 9)"),
    Metric("controller/momentum", "nats/token/step", "none", "rise of kl/mean over the last window of batches, by its length; empty before, and in the gated form (SAFE, equation 12)"),
    *(Metric(f"crash/{kind}", "episodes", "down", f"episodes of {kind} so far (docs/evidence.md)") for kind in CRASH_KINDS),
    Metric("time/rollout", "s", "down", "time to sample the batch", True),
    Metric("time/reward", "s", "down", "time to score the batch", True),
    Metric("time/measure", "s", "down", "time for log-probs, KL, entropy and values", True),
    Metric("time/update", "s", "down", "time for the epochs of updates", True),
    Metric("time/evaluate", "s", "down", "time for the evaluation, where there was one", True),
    Metric("time/step", "s", "down", "time for the whole step, its evaluation left out", True),
    Metric("speed/tokens_per_second", "tokens/s", "up", "reply tokens sampled over the step's time without evaluation", True),
    Metric("memory/peak", "MiB", "down", "peak memory so far: of the device on CUDA, else of the process", True),
)

KEYS: tuple[str, ...] = tuple(metric.key for metric in METRICS)
BY_KEY: dict[str, Metric] = {metric.key: metric for metric in METRICS}
MEASURED: tuple[str, ...] = tuple(key for key in KEYS if not key.startswith("crash/"))
"""The columns that a run measures; the recorder adds the crash columns."""
