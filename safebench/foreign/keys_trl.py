"""Log keys of TRL 1.12: its PPOTrainer, GRPOTrainer and RLOOTrainer."""

from __future__ import annotations

from safebench.foreign.keys import Key, Trainer, left

_PREFIXES = {"train/": "", "eval/": "eval_"}
_PLAN = ("max_steps",)
_BOOKKEEPING = left(
    "counts, times and totals of the whole run",
    "–",
    *("step", "global_step", "epoch", "_*", "train_runtime", "train_loss", "train_*_per_second", "total_flos"),
    *("eval_runtime", "eval_*_per_second"),
)

PPO = Trainer(
    name="trl-ppo",
    arm="trl-ppo",
    family="trl",
    marks=("objective/rlhf_reward", "objective/scores", "policy/approxkl_avg"),
    counters=("step", "train/global_step", "global_step"),
    prefixes=_PREFIXES,
    source="trl 1.12.0, experimental/ppo/ppo_trainer.py",
    limit=("response_length",),
    vocabulary=("vocab_size",),
    plan=("num_total_batches", *_PLAN),
    keys=(
        Key(("episode",), "replies", "episodes"),
        Key(
            ("objective/scores",),
            "reward",
            "reward/mean",
            "with missing_eos_penalty it would be the score less that penalty",
            needs={"missing_eos_penalty": (None,)},
        ),
        Key(
            ("objective/rlhf_reward",),
            "reward/reply",
            "reward/shaped",
            "score and KL penalty summed over a reply; the advantages see another one where rewards are whitened",
            needs={"whiten_rewards": (False,)},
        ),
        Key(
            ("objective/kl",),
            "nats/reply",
            "kl/sampled",
            "summed over a reply's sampled tokens; k1 is our kl/sampled, k3 another estimate",
            needs={"kl_estimator": ("k1",)},
        ),
        Key(("loss/policy_avg",), "1", "loss/policy", "mean over micro-batches, each of its own tokens"),
        Key(("loss/value_avg",), "reward²", "loss/value", "logged without its coefficient", factor="vf_coef"),
        Key(("loss/value_avg",), "reward²", "loss/value", "logged without its coefficient vf_coef", only_broken=True),
        Key(
            ("policy/clipfrac_avg",), "share", "update/clip_fraction", "mean over micro-batches, each of its own tokens"
        ),
        Key(("lr",), "1", "update/learning_rate"),
        Key(
            ("objective/entropy",),
            "nats/reply",
            "reply/surprisal",
            "sum over a reply of −log p of the sampled tokens: no entropy over the vocabulary",
        ),
        left("of the policy between its updates, and padding counts as tokens", "nats/position", "policy/entropy_avg"),
        left("padding counts as tokens, with a log-ratio of 0", "nats/position", "policy/approxkl_avg"),
        Key(("val/ratio",), "1", "update/ratio_max", "a mean, padding included; ours is the largest", only_broken=True),
        left("variance of mean ratios over micro-batches", "1", "val/ratio_var"),
        Key(
            ("val/clipfrac_avg",),
            "share",
            "update/value_clip_fraction",
            "mean over micro-batches, each of its own values",
        ),
        left(
            "counts end tokens, not replies that ended: what follows the end is counted too",
            "tokens",
            "val/num_eos_tokens",
        ),
        left("the part of objective/rlhf_reward that is not the score", "reward/reply", "objective/non_score_reward"),
        left("replies per second since the start, rounded", "replies/s", "eps"),
        _BOOKKEEPING,
    ),
)

_GROUP_NOTES = (
    "TRL leaves out NaN before it averages: a non-finite reward may not show",
    "with logging_steps above 1 a row is the mean of so many steps, its gradient norm that of the last",
)

_GROUP = (
    Key(
        ("reward",), "reward", "reward/mean", "weighted sum of the reward functions, mean over the replies they scored"
    ),
    Key(("reward_std",), "reward", "reward/std"),
    Key(("completions/mean_length",), "tokens", "reply/length"),
    Key(("completions/clipped_ratio",), "share", "reply/ended", "the share that did not end", scale=-1.0, offset=1.0),
    Key(
        ("entropy",),
        "nats/token",
        "entropy/mean",
        "mean over micro-batches; with more iterations a batch, of the policy between its updates",
        needs={"num_iterations": (1,)},
    ),
    Key(("loss",), "1", "loss/total"),
    Key(("grad_norm",), "1", "grad/norm"),
    Key(("learning_rate",), "1", "update/learning_rate"),
    Key(("step_time",), "s", "time/step"),
    Key(("eval_reward",), "reward", "eval/reward"),
    Key(("eval_completions/mean_length",), "tokens", "eval/length"),
    Key(("eval_entropy",), "nats/token", "eval/entropy", "mean over batches"),
    left("prompts are counted too; ours are reply tokens", "tokens", "num_tokens", "num_input_tokens_seen"),
    left("one reward function's part of the reward", "reward", "rewards/*", "eval_rewards/*"),
    left("one side of the clip", "share", "clip_ratio/low_*", "clip_ratio/high_*"),
    left("the policy term alone, scaled by the loss type", "1", "policy_loss"),
    left(
        "no column of ours",
        "–",
        "completions/*",
        "frac_reward_zero_std",
        "sampling/*",
        "tools/*",
        "eval_*",
        "profiling/*",
    ),
)


def _group(name: str, own: tuple[Key, ...]) -> Trainer:
    return Trainer(
        name=name,
        arm=name.removeprefix("trl-"),
        family="trl",
        marks=("completions/mean_length", "frac_reward_zero_std"),
        counters=PPO.counters,
        prefixes=_PREFIXES,
        source=f"trl 1.12.0, trainer/{name.removeprefix('trl-')}_trainer.py",
        limit=("max_completion_length",),
        vocabulary=("vocab_size",),
        plan=_PLAN,
        notes=_GROUP_NOTES,
        keys=(*own, _BOOKKEEPING, *_GROUP),
    )


GRPO = _group(
    "trl-grpo",
    (
        left(
            "k3 estimate on sampled tokens, of the policy between its updates; ours is exact over the vocabulary",
            "nats/token",
            "kl",
            "eval_kl",
        ),
        Key(
            ("clip_ratio/region_mean",),
            "share",
            "update/clip_fraction",
            "mean over micro-batches",
            needs={"importance_sampling_level": ("token",)},
        ),
    ),
)

RLOO = _group(
    "trl-rloo",
    (
        left(
            "k1 estimate on sampled tokens, mean over tokens; ours are exact per token, or sampled per reply",
            "nats/token",
            "kl",
            "eval_kl",
        ),
        left(
            "share of replies, since RLOO's ratio is one per reply; ours is of tokens",
            "share",
            "clip_ratio/region_mean",
        ),
    ),
)
