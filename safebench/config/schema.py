"""Typed settings of one run: every key, its unit, its range and its default.

The defaults here are neutral (a feature is off, a size is small). What the named
experiments use stands in ``experiments/_base.yaml`` and the files that extend it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A group of settings: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pid(Section):
    """PID on reward velocity (SAFE, equation 7)."""

    enabled: bool = True
    proportional: Finite = 0.3
    integral: Finite = 0.01
    derivative: Finite = 0.05
    target_velocity: Finite = 0.001
    integral_limit: NonNegative = 1.0
    smoothing: Share = 0.95


class Phase(Section):
    """Training phase and the factor it puts on the threshold (SAFE, equation 8)."""

    enabled: bool = True
    rule: Literal["published", "standardised"] = "published"
    """How a change of the reward is judged: by fixed numbers, or by its standard error (``standardised_phase``)."""
    window: PositiveInt = 50
    rise: Finite = 0.01
    calm: NonNegative = 0.02
    good: Finite = 0.7
    sure: Positive = 2.0
    """Standard errors that make a rise, in the standardised rule."""
    warmup: Positive = 1.5
    climbing: Positive = 1.2
    converged: Positive = 1.0
    plateau: Positive = 0.8


class Momentum(Section):
    """Momentum term of the asymmetric-KL controller (SAFE, equation 12)."""

    coefficient: NonNegative = 5.0
    window: Annotated[int, Field(ge=2)] = 50
    """Batches; the KL may rise freely until so many were seen."""


class Penalty(Section):
    """Entropy-gated, asymmetric KL penalty with a phase-aware threshold (SAFE, equations 5 to 10)."""

    coefficient: NonNegative = 0.1
    asymmetric: bool = True
    base_threshold: NonNegative = 0.3
    min_threshold: NonNegative = 0.1
    max_threshold: NonNegative = 0.6
    short_decay: Share = 0.9
    long_decay: Share = 0.99
    gate: bool = True
    gate_floor: NonNegative = 0.5
    gate_offset: NonNegative = 0.1
    """Nats; added to the entropy in the gate, which as published is then below 1 at the entropy's floor."""
    gate_most: Positive | None = None
    entropy_floor: NonNegative = 2.0
    """Nats."""
    pid: Pid = Pid()
    phase: Phase = Phase()
    momentum: Momentum | None = None
    """The asymmetric-KL controller (SAFE, equation 12) in place of gate, PID and phase, which must then be off."""

    @model_validator(mode="after")
    def _one_controller(self) -> Penalty:
        parts = {"gate": self.gate, "pid.enabled": self.pid.enabled, "phase.enabled": self.phase.enabled}
        on = [name for name, enabled in parts.items() if enabled]
        if self.momentum is not None and on:
            raise ValueError(f"momentum stands in place of gate, pid and phase; set {', '.join(on)} to false")
        return self


Sampler = Literal["halton", "optuna"]
"""What chose the points: Halton's sequence alone, or it for the first half and Optuna for the others."""


class Knob(Section):
    """Range of one setting: ``tuning.knobs`` of an experiment has one for each setting that tuning may change."""

    low: Finite
    high: Finite
    scale: Literal["linear", "log"] = "linear"
    """Whether the points are spread evenly over the range, or over its logarithm."""

    @model_validator(mode="after")
    def _range_is_one(self) -> Knob:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"scale: log needs a low above 0, not {self.low:g}")
        return self


class Tuned(Section):
    """How a tuned experiment was found, and what that cost. Nothing that a run computes depends on it."""

    experiment: str
    """The experiment as published."""
    preset: str | None = None
    criterion: str
    sampler: Sampler = "halton"
    seeds: tuple[NonNegativeInt, ...]
    """Of the pilot runs."""
    points: PositiveInt
    """Settings tried, the published one included."""
    runs: PositiveInt
    """Pilot runs, all points together; so are the costs below."""
    steps: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegative
    """Of training and evaluation, without the time to load."""


class Lora(Section):
    """Low-rank adapter (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A.

    Dropout, where asked for, is on in update passes alone, as in SAFE's released code: rollouts and updates then
    see different policies, and the ratio is not 1 at the start.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Model(Section):
    """The policy's language model: a catalogue name, a hub id or a local directory."""

    name: str = "embedded"
    random_weights: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    mixed_precision: bool = False
    """Compute in bfloat16 where that is safe, weights as they are (torch's autocast)."""
    gradient_checkpointing: bool = False
    lora: Lora | None = Lora()
    """The adapter that is trained; all weights when null, against a frozen copy as the reference."""


class Reward(Section):
    """What scores replies: ``name`` is trained on, ``judge`` is only ever measured."""

    name: str = "embedded-proxy"
    judge: str | None = "embedded-judge"
    label: int | str | None = None
    """Which output of a classifier with several labels is the reward: its index or its name."""
    judge_label: int | str | None = None
    missing_eos_penalty: NonNegative = 0.0
    normalise: bool = False
    """Running mean and variance of all rewards seen (SAFE, equation 15)."""
    kl_coefficient: NonNegative = 0.0
    """Weight of the sampled KL that is taken off each token's reward (TRL's ``kl_coef``)."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    noise: NonNegative = 0.0
    """Standard deviation, in sigma_0, of Gaussian noise added to the training reward (stress)."""
    rescale_at: Share | None = None
    """Share of the run after which the training reward's scale changes (stress)."""
    rescale_by: Positive = 1.0


class Prompts(Section):
    """Where prompts come from: ``embedded``, a catalogue name, a hub data set or a local file."""

    name: str = "embedded"
    column: str | None = None
    limit: PositiveInt | None = None
    """Use only the first so many prompts."""
    max_tokens: PositiveInt = 48
    """Longer prompts lose tokens on the left; how many did is counted and reported."""


class Rollout(Section):
    """Sampling of replies."""

    batch: PositiveInt = 32
    """Replies per update, over all processes."""
    reply_tokens: PositiveInt = 24
    temperature: Positive = 1.0
    chunk: PositiveInt | None = None
    """Rows sampled at once; all when null."""


class Preview(Section):
    """Ceiling on the KL that an optimizer step may reach on its batch (SAFE, equation 13)."""

    ceiling: Positive = 0.5
    """Nats per token. A step may end above it only where it began above it, and then no higher."""
    trials: PositiveInt = 3
    """Shorter steps tried, each a forward pass over the batch, before a step is taken back as a whole."""


class Update(Section):
    """How often and how the policy is updated."""

    steps: PositiveInt = 100
    epochs: PositiveInt = 2
    minibatches: PositiveInt = 1
    microbatch: PositiveInt | None = None
    """Rows per forward and backward pass, like lengths together; gradients add up to the mini-batch's."""
    learning_rate: Positive = 1e-3
    critic_learning_rate: Positive | None = None
    """The policy's when null."""
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    critic_max_grad_norm: Positive | None = 0.5
    optimizer: str = "adamw"
    preview: Preview | None = None
    """Shorten steps that would reach too much KL; steps are as the optimizer makes them when null."""


class Advantage(Section):
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

    gamma: Share = 1.0
    lam: Share = 0.95
    whiten: bool = True
    whiten_rewards: bool = False


class Critic(Section):
    """The value function."""

    body: Literal["shared", "separate"] = "shared"
    """On the policy's own hidden states, or a value model of its own."""
    heads: Literal["single", "double"] = "single"
    head: Literal["linear", "mlp"] = "linear"
    layer_norm: bool = False
    detach: bool = True
    """Keep the value loss from moving the policy."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    init: Literal["small", "torch"] = "small"
    """First weights of the heads: no value far from zero, or torch's default for a linear layer."""
    softmin_alpha: Positive = 0.3
    target_decay: Share | None = None
    """Share of the target critic kept per update (SAFE, equation 14); no target when null."""
    target_follows: Literal["batch", "update"] = "batch"
    """Whether the target moves once per batch or with every update."""


class Loss(Section):
    """Coefficients of the named loss terms."""

    clip: Positive = 0.2
    value_coefficient: NonNegative = 0.1
    value_clip: Positive | None = 0.2
    value_huber: Positive | None = None
    """Delta of the Huber loss; half the squared error when null."""
    value_combine: Literal["max", "mean"] = "max"
    """How the unclipped and the clipped value error are combined: PPO's maximum or SAFE's mean."""
    regress: Literal["heads", "softmin"] = "heads"
    """What learns the return: each head by itself, or the heads' soft minimum."""
    entropy_coefficient: NonNegative = 0.0
    kl_coefficient: NonNegative = 0.0
    """Weight of the sampled KL (k1) as a loss term; on-policy its expected gradient is zero."""


class Evaluation(Section):
    """Held-out evaluation: fixed prompts, the seed's own sampling noise, temperature 1."""

    every: PositiveInt = 20
    prompts: PositiveInt = 128
    audits: bool = True
    """Count known words and compare replies with their turns by an English encoder."""


class Recording(Section):
    """What is written, and how often."""

    gradient_norms_every: PositiveInt | None = 10
    """Steps between two measurements of each loss term's own gradient; never when null."""
    checkpoint_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 1
    samples: NonNegativeInt = 8
    """Replies of each batch kept in samples.jsonl."""
    trackers: tuple[str, ...] = ()


class Compute(Section):
    """Device and threads. One thread by default: rows then do not depend on what runs beside."""

    device: str = "auto"
    threads: PositiveInt | None = 1
    """Threads of one process; the library's own choice when null."""
    replicate: NonNegativeInt = 0
    """Order of the rows in each pass and of the passes: by length, or from 1 on one of the others. Sums then round
    otherwise, and nothing else changes."""

    @model_serializer(mode="wrap")
    def _leave_out_no_replicate(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write ``replicate`` only where it is on, so that files and hashes of other runs stay as they are."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "replicate" or value}


class Settings(Section):
    """All settings of one run."""

    experiment: str
    algorithm: str
    seed: NonNegativeInt = 0
    description: str = ""
    trust_remote_code: tuple[str, ...] = ()
    """Models and rewards, by name, whose own Python code may run; nobody else's does."""
    model: Model = Model()
    reward: Reward = Reward()
    prompts: Prompts = Prompts()
    rollout: Rollout = Rollout()
    update: Update = Update()
    advantage: Advantage = Advantage()
    critic: Critic = Critic()
    loss: Loss = Loss()
    penalty: Penalty | None = None
    evaluation: Evaluation = Evaluation()
    recording: Recording = Recording()
    compute: Compute = Compute()
    tuned: Tuned | None = None
    """In an experiment that `safebench tune` wrote: how its settings were chosen."""

    @model_serializer(mode="wrap")
    def _without_an_empty_record(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if content.get("tuned") is None:
            content.pop("tuned", None)
        return content

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.rollout.batch % self.update.minibatches:
            raise ValueError(
                f"rollout.batch ({self.rollout.batch}) must be a multiple of "
                f"update.minibatches ({self.update.minibatches})"
            )
        return self

    @model_validator(mode="after")
    def _replicates_round_only(self) -> Settings:
        if self.compute.replicate and self.model.lora is not None and self.model.lora.dropout:
            raise ValueError(
                "compute.replicate needs model.lora.dropout 0: dropout goes by a row's place, so another order "
                "would change more than rounding"
            )
        return self
