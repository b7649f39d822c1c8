"""Maps the log keys of the supported trainers to columns: unit, column, conversion, or the reason for none."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from safebench.errors import UsageError
from safebench.importers.history import Raw, Steps, number
from safebench.metrics import BY_KEY, MEASURED

Value = float | int | None
UNKNOWN = "not a key that this version knows"
NO_NUMBER = "no number"


@dataclass(frozen=True)
class Taken:
    """One column of ours and its source; ``formula`` is in the trainer's own keys."""

    ours: str
    keys: tuple[str, ...]
    formula: str
    note: str


@dataclass(frozen=True)
class Converted:
    """Rows of ours by step, and the use of every key: ``kept`` as it was, ``converted``, or ``left``."""

    rows: Mapping[int, Mapping[str, Value]]
    kept: tuple[Taken, ...]
    converted: tuple[Taken, ...]
    left: tuple[tuple[str, str], ...]
    assumed: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """A usable line of the table: ``raw`` has the logged keys by the trainer's names, ``factor`` the factor's value."""

    line: Key
    raw: Mapping[str, str]
    factor: float = 1.0

    @property
    def keeps(self) -> bool:
        """Whether our number equals the trainer's own."""
        line = self.line
        return (line.scale, line.offset, line.factor) == (1.0, 0.0, None) and len(self.raw) == 1

    def value(self, row: Raw) -> Value:
        """Return our value for a row, or None if it was not logged."""
        logged = [number(row.get(self.raw[name])) for name in self.line.names if name in self.raw]
        parts = [part for part in logged if part is not None]
        if not parts:
            return None
        less = [number(row.get(self.raw[name])) or 0.0 for name in self.line.less if name in self.raw]
        value = (self.line.offset + self.line.scale * (sum(parts) - sum(less))) * self.factor
        if self.line.only_broken and math.isfinite(value):
            return None
        counts = BY_KEY[str(self.line.ours)].unit == "replies"
        return int(value) if counts and math.isfinite(value) and value.is_integer() else value


def convert(steps: Steps, trainer: Trainer, config: Mapping[str, Any]) -> Converted:
    """Return the history in our columns; ``config`` holds the known settings of the trainer."""
    numeric = [key for key in steps.keys if any(number(row.get(key)) is not None for row in steps.rows.values())]
    raw: dict[str, str] = {}
    for key in numeric:
        raw.setdefault(trainer.plain(key), key)
    plans, assumed = _plans(trainer, raw, config)
    rows = {
        step: {**dict.fromkeys(MEASURED), "step": step, **{ours: plan.value(row) for ours, plan in plans.items()}}
        for step, row in steps.rows.items()
    }
    taken = [
        Taken(ours, tuple(plan.raw.values()), plan.line.formula(plan.raw), plan.line.why)
        for ours, plan in plans.items()
        if not plan.line.only_broken
    ]
    return Converted(
        rows=rows,
        kept=tuple(one for one in taken if plans[one.ours].keeps),
        converted=tuple(one for one in taken if not plans[one.ours].keeps),
        left=tuple(_left(steps, trainer, config, plans, numeric)),
        assumed=tuple(assumed),
        notices=tuple(_mixed(steps, numeric)),
    )


def _plans(trainer: Trainer, raw: Mapping[str, str], config: Mapping[str, Any]) -> tuple[dict[str, _Plan], list[str]]:
    """Choose the first usable line for each column; return them and the assumptions that they rest on."""
    plans: dict[str, _Plan] = {}
    assumed: list[str] = []
    for line in trainer.keys:
        names = {name: raw[name] for name in (*line.names, *line.less) if name in raw}
        if line.ours is None or line.ours in plans or not any(name in names for name in line.names):
            continue
        if _refused(line, config) is not None:
            continue
        factor = number(setting(config, line.factor)[1]) if line.factor else None
        plans[line.ours] = _Plan(line, names, 1.0 if factor is None else factor)
        for path, allowed in line.needs.items():
            if not setting(config, path)[0]:
                assumed.append(f"{path} is {_said(allowed[0])}: else {line.ours} is not {line.formula(names)}")
    return plans, assumed


def _refused(line: Key, config: Mapping[str, Any]) -> str | None:
    """Return why a line cannot be used with these settings, or None if it can."""
    if line.factor and number(setting(config, line.factor)[1]) is None:
        return f"{line.why}; the history does not say what {line.factor} was"
    for path, allowed in line.needs.items():
        known, value = setting(config, path)
        if known and value not in allowed:
            return f"{path} was {_said(value)}: {line.why}"
    return None


def _left(
    steps: Steps, trainer: Trainer, config: Mapping[str, Any], plans: Mapping[str, _Plan], numeric: list[str]
) -> list[tuple[str, str]]:
    used = {key for plan in plans.values() if not plan.line.only_broken for key in plan.raw.values()}
    broken = {key: plan for plan in plans.values() if plan.line.only_broken for key in plan.raw.values()}
    found = []
    for key in steps.keys:
        if key in used or key == steps.counted:
            continue
        line = trainer.line(trainer.plain(key))
        if key in broken:
            why = f"{broken[key].line.why}; values that are not finite are taken over"
        elif key not in numeric:
            why = NO_NUMBER
        elif line is None:
            why = UNKNOWN
        elif line.ours is None:
            why = line.why
        else:
            why = (
                _refused(line, config)
                or f"{line.ours} is taken from {plans[line.ours].line.formula(plans[line.ours].raw)}"
            )
        found.append((key, why))
    return found


def _mixed(steps: Steps, numeric: list[str]) -> list[str]:
    """Return a sentence for each key that is a number in some rows and something else in others."""
    said = []
    for key in numeric:
        cells = [row[key] for row in steps.rows.values() if key in row and row[key] is not None]
        odd = [cell for cell in cells if number(cell) is None]
        if odd:
            said.append(f"{key} is no number in {len(odd)} of {len(cells)} rows ({odd[0]!r}), which stay empty")
    return said


def _said(value: object) -> str:
    return "unset" if value is None else str(value)


Needs = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Key:
    """One line of a trainer's table.

    ``names`` are its keys (``*`` matches anything). The value is the sum of those that were logged, minus the sum of
    ``less``. Then ours = ``offset`` + ``scale`` · value, times the setting ``factor``. If ``ours`` is None, no column
    uses the keys, for the reason ``why``; otherwise ``why`` is a note on the column. ``needs``: settings of the
    trainer that must have one of these values; if the history does not state the setting, the first value is assumed,
    and the report says so. ``only_broken``: the unit is not ours, so only values that are not finite are used,
    because these need no unit.
    """

    names: tuple[str, ...]
    unit: str
    ours: str | None = None
    why: str = ""
    scale: float = 1.0
    offset: float = 0.0
    factor: str | None = None
    less: tuple[str, ...] = ()
    needs: Needs = field(default_factory=dict)
    only_broken: bool = False

    def formula(self, logged: Collection[str] | None = None) -> str:
        """Return the formula of our value as text, with all its keys or only those ``logged``."""
        names, less = ([n for n in all_ if logged is None or n in logged] for all_ in (self.names, self.less))
        value = " + ".join(names) + "".join(f" − {name}" for name in less)
        if self.scale == -1.0:
            value = f"{self.offset:g} − {value}"
        elif self.scale != 1.0:
            value = f"{self.scale:g} · {value}"
        return f"{value} · {self.factor}" if self.factor else value

    def matches(self, key: str) -> bool:
        """Return whether the trainer's key belongs to this line."""
        return any(key == name or fnmatchcase(key, name) for name in (*self.names, *self.less))


@dataclass(frozen=True)
class Trainer:
    """One trainer's table. If several lines fit a key or a column, the first is used.

    ``marks``: keys, any one of which distinguishes its histories from others. ``counters``: keys that count steps;
    the first one logged is used. ``prefixes``: what a tracker puts before a key, and its replacement. ``limit``,
    ``vocabulary``, ``plan``: settings with the longest reply, the number of tokens and the planned steps;
    ``estimator``: the setting that names the algorithm. ``critic``: keys that only an algorithm with a critic logs.
    """

    name: str
    arm: str
    family: str
    marks: tuple[str, ...]
    counters: tuple[str, ...]
    keys: tuple[Key, ...]
    source: str
    prefixes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    limit: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    estimator: str = ""
    critic: tuple[str, ...] = ()

    def arm_of(self, keys: Collection[str], config: Mapping[str, Any]) -> str:
        """Return the name of the algorithm that logged these keys: PPO's, another's, or the trainer's if unclear."""
        known, estimator = setting(config, self.estimator)
        if known and isinstance(estimator, str):
            return self.arm if estimator == "gae" else f"{self.family}-{estimator.replace('_', '-')}"
        return self.arm if not self.critic or any(key in keys for key in self.critic) else self.family

    def plain(self, key: str) -> str:
        """Return the trainer's own name of a logged key, without a tracker's prefix."""
        for prefix, instead in self.prefixes.items():
            if key.startswith(prefix):
                return instead + key.removeprefix(prefix)
        return key

    def takes(self, key: str) -> bool:
        """Return whether a logged key may become a column of ours."""
        line = self.line(self.plain(key))
        return line is not None and line.ours is not None

    def line(self, key: str) -> Key | None:
        """Return the first line of the table that matches the trainer's key, or None."""
        return next((line for line in self.keys if line.matches(key)), None)


def left(why: str, unit: str, *names: str) -> Key:
    """Return a line for keys that no column of ours uses."""
    return Key(names, unit, why=why)


def setting(config: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """Return whether ``config`` has the setting at a dotted path, and its value."""
    found: Any = config
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return (True, config[path]) if path in config else (False, None)
        found = found[name]
    return True, found


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


_AGGREGATION = {"actor_rollout_ref.actor.loss_agg_mode": ("token-mean",)}

VERL = Trainer(
    name="verl",
    arm="verl-ppo",
    family="verl",
    marks=("critic/score/mean", "critic/rewards/mean", "actor/pg_loss", "response_length/clip_ratio"),
    counters=("step", "_step", "training/global_step"),
    source="verl, trainer/ppo/metric_utils.py, trainer/ppo/ray_trainer.py, workers/actor, workers/critic",
    limit=("data.max_response_length",),
    plan=("trainer.total_training_steps",),
    estimator="algorithm.adv_estimator",
    critic=("critic/values/mean", "critic/vf_loss"),
    keys=(
        Key(("critic/score/mean",), "reward", "reward/mean", "sum of a reply's scores, mean over replies not aborted"),
        Key(
            ("critic/rewards/mean",),
            "reward/reply",
            "reward/shaped",
            "the scores, and the KL penalty where it is in the reward; mean over replies not aborted",
        ),
        Key(
            ("response_length/mean",),
            "tokens",
            "reply/length",
            "what tools say counts too; an aborted reply has length 0",
        ),
        Key(
            ("actor/entropy",),
            "nats/token",
            "entropy/mean",
            "of the sampling policy; per token with loss_agg_mode token-mean only",
            needs=_AGGREGATION,
        ),
        Key(
            ("critic/vf_explained_var",),
            "1",
            "critic/explained_variance",
            "verl adds 1e-5 to the variance of returns: nearer to 1 than ours where that is tiny",
        ),
        Key(("critic/values/mean",), "reward", "critic/value"),
        Key(("actor/grad_norm",), "1", "grad/norm"),
        Key(("critic/grad_norm",), "1", "grad/critic_norm"),
        Key(("actor/pg_clipfrac",), "share", "update/clip_fraction", "mean over micro-batches"),
        Key(("actor/lr",), "1", "update/learning_rate"),
        Key(("timing_s/gen",), "s", "time/rollout"),
        Key(("timing_s/reward",), "s", "time/reward"),
        Key(("timing_s/old_log_prob", "timing_s/ref", "timing_s/values"), "s", "time/measure"),
        Key(("timing_s/update_actor", "timing_s/update_critic"), "s", "time/update"),
        Key(("timing_s/testing",), "s", "time/evaluate"),
        Key(
            ("timing_s/step",),
            "s",
            "time/step",
            "verl's step includes evaluation and saving",
            less=("timing_s/testing", "timing_s/save_checkpoint"),
        ),
        Key(
            ("actor/pg_loss",),
            "1",
            "loss/policy",
            "newer releases divide it by the number of micro-batches, older ones do not: the scale is not known",
            only_broken=True,
        ),
        Key(("critic/vf_loss",), "reward²", "loss/value", "scaled as actor/pg_loss is", only_broken=True),
        left(
            "estimate on sampled tokens (kl_loss_type), of the policy between its updates, scaled as actor/pg_loss is; "
            "ours is exact over the vocabulary",
            "nats/token",
            "actor/kl_loss",
        ),
        left(
            "estimate on sampled tokens, mean over a reply's tokens and then over replies; ours is exact per token, "
            "or summed per reply",
            "nats/token",
            "actor/reward_kl_penalty",
            "critic/kl",
        ),
        left(
            "mean of the log-ratio to the sampling policy; ours is half its mean square", "nats/token", "actor/ppo_kl"
        ),
        left("of the policy between its updates, not of the one that sampled", "nats/token", "actor/entropy_loss"),
        left("a reply of full length may have ended there", "share", "response_length/clip_ratio"),
        left("prompts are counted, and speed is per device", "–", "perf/*"),
        left(
            "one data source, reward and kind of mean each: which of them is the held-out reward, the log does not say",
            "–",
            "val-core/*",
            "val-aux/*",
            "val/*",
        ),
        left("a return with gae alone: other estimators put advantages there", "reward", "critic/returns/mean"),
        left("no column of ours", "–", "critic/*", "actor/*", "response_length/*", "response_length_non_aborted/*"),
        left("no column of ours", "–", "response/*", "prompt_length/*", "num_turns/*", "tool_call_counts/*"),
        left("no column of ours", "–", "timing_s/*", "timing_per_token_ms/*", "global_seqlen/*", "training/*"),
        left("counts and times of the log itself", "–", "step", "_*"),
    ),
)


OPENRLHF = Trainer(
    name="openrlhf",
    arm="openrlhf-ppo",
    family="openrlhf",
    marks=("actor_lr", "total_length", "ppo_clip_ratio"),
    counters=("train/global_step", "global_step", "step"),
    prefixes={"train/": ""},
    source="OpenRLHF, trainer/ppo_trainer.py, trainer/ray/ppo_actor.py, trainer/ppo_utils/experience_maker.py",
    limit=("generate_max_len",),
    estimator="advantage_estimator",
    critic=("critic_loss", "values"),
    notes=("means over micro-batches and epochs: of the replies only where micro-batches are of one size",),
    keys=(
        Key(
            ("reward",),
            "reward",
            "reward/mean",
            "the reward model's, before clipping and KL; an overlong penalty would be in it",
            needs={"overlong_buffer_len": (None,)},
        ),
        Key(
            ("return",),
            "reward/reply",
            "reward/shaped",
            "sum over a reply of the reward that the advantages see: clipped, less KL and baseline",
        ),
        Key(("response_length",), "tokens", "reply/length"),
        Key(("ppo_clip_ratio",), "share", "update/clip_fraction"),
        Key(("actor_lr",), "1", "update/learning_rate"),
        Key(
            ("policy_loss",),
            "1",
            "loss/policy",
            "mean over tokens or over replies' means, by release and setting: the weighting is not known",
            only_broken=True,
        ),
        Key(("critic_loss",), "reward²", "loss/value", "weighted as policy_loss is", only_broken=True),
        left(
            "estimate on sampled tokens (kl_estimator), mean per token, averaged over micro-batches after the "
            "division: neither ours per token, which is exact, nor the sum per reply can be had from it",
            "nats/token",
            "kl",
        ),
        left("mean of the log-ratio to the sampling policy; ours is half its mean square", "nats/token", "ppo_kl"),
        left("log-ratio between the engines that sample and train", "nats/token", "vllm_kl"),
        left("of the policy between its updates, not of the one that sampled", "nats/token", "entropy_loss"),
        left("of the critic between its updates; ours is before them", "reward", "values"),
        left("prompt and reply together", "tokens", "total_length"),
        left("a reply of full length may have ended there", "share", "response_clip_ratio"),
        left("spread within a prompt's replies; ours is over the batch", "reward", "group_reward_std"),
        left("the reward, or what selects prompts in its place", "reward", "score"),
        left("no column of ours", "–", "ptx_loss", "aux_loss", "critic_lr", "timing/*", "generated_samples"),
        left(
            "of the data set's own measure and sampling: whether it is the reward, the log does not say", "–", "eval/*"
        ),
        left("counts and times of the log itself", "–", "step", "global_step", "epoch", "_*"),
    ),
)


TRAINERS: tuple[Trainer, ...] = (PPO, GRPO, RLOO, VERL, OPENRLHF)

NAMES: tuple[str, ...] = tuple(dict.fromkeys([t.family for t in TRAINERS] + [t.name for t in TRAINERS]))
"""Values that ``--from`` accepts: a family, or one trainer of it."""


def recognise(keys: Iterable[str], name: str | None = None) -> Trainer:
    """Return the trainer that logged ``keys``, among those that ``name`` allows.

    Raises ``UsageError`` with the keys that were seen if none or several fit, or if ``name`` is unknown.
    """
    seen = list(keys)
    allowed = [trainer for trainer in TRAINERS if name in (None, trainer.name, trainer.family)]
    if not allowed:
        raise UsageError(f"no trainer {name!r}; there are {', '.join(NAMES)}", "Name one of these with --from.")
    if len(allowed) == 1:
        return _checked(allowed[0], seen)
    fitting = [trainer for trainer in allowed if _marked(trainer, seen)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(trainer.name for trainer in fitting)
        raise UsageError(f"these keys fit {names}: {_shown(seen)}", f"Say which it is: --from {fitting[0].name}.")
    raise UsageError(
        f"these keys are of no trainer that is known: {_shown(seen)}",
        f"If it is one of {', '.join(NAMES)} all the same, say so with --from.",
    )


def _checked(trainer: Trainer, seen: list[str]) -> Trainer:
    """Return the trainer; refuse it if none of the keys can be converted with its table."""
    lines = [trainer.line(trainer.plain(key)) for key in seen]
    if not any(line and line.ours for line in lines):
        raise UsageError(f"none of these keys is one of {trainer.name}'s that convert: {_shown(seen)}", "Check --from.")
    return trainer


def _marked(trainer: Trainer, seen: list[str]) -> bool:
    plain = {trainer.plain(key) for key in seen}
    return any(mark in plain for mark in trainer.marks)


def _shown(seen: list[str]) -> str:
    shown = [key for key in seen if not key.startswith("_")]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") if shown else "none"
