"""Typed settings of one run: every key, its unit, its range and its default.

The defaults here are neutral (a feature is off, a size is small). The values of the named
experiments are in ``experiments/_base.yaml`` and the files that extend it.
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
    """A group of settings. It is immutable, and an unknown key is an error."""

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
    """Training phase, and the factor by which it multiplies the threshold (SAFE, equation 8)."""

    enabled: bool = True
    rule: Literal["published", "standardised"] = "published"
    """How a change of the reward is judged: by fixed numbers, or by its standard error (``standardised_phase``)."""
    window: PositiveInt = 50
    rise: Finite = 0.01
    calm: NonNegative = 0.02
    good: Finite = 0.7
    sure: Positive = 2.0
    """Number of standard errors that count as a rise in the standardised rule."""
    warmup: Positive = 1.5
    climbing: Positive = 1.2
    converged: Positive = 1.0
    plateau: Positive = 0.8


class Momentum(Section):
    """Momentum term of the asymmetric-KL controller (SAFE, equation 12)."""

    coefficient: NonNegative = 5.0
    window: Annotated[int, Field(ge=2)] = 50
    """Batches; the term is zero until this many batches have been seen."""


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
    """Nats, added to the entropy in the gate. As published (0.1), the gate is then below 1 at the entropy floor."""
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
"""How points are chosen: by Halton's sequence only, or by it for the first half and by Optuna for the others."""


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
    """How a tuned experiment was found, and the cost of the search. It does not change what a run computes."""

    experiment: str
    """The experiment as published."""
    preset: str | None = None
    criterion: str
    sampler: Sampler = "halton"
    seeds: tuple[NonNegativeInt, ...]
    """Seeds of the pilot runs."""
    points: PositiveInt
    """Number of settings tried, including the published one."""
    runs: PositiveInt
    """Number of pilot runs over all points; the costs below are totals over these runs."""
    steps: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegative
    """Time of training and evaluation, without the time to load."""


class Lora(Section):
    """Low-rank adapter (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A.

    Dropout is on only in update passes, as in SAFE's released code. With dropout, rollouts and updates use different
    policies, and the ratio is not 1 at the start.
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
    """Data type of the weights."""
    mixed_precision: bool = False
    """Compute in bfloat16 where that is safe, without converting the weights (torch's autocast)."""
    gradient_checkpointing: bool = False
    lora: Lora | None = Lora()
    """The adapter that is trained. If null, all weights are trained, and a frozen copy is the reference."""


class Reward(Section):
    """The rewards that score replies: the policy is trained on ``name``; ``judge`` is only measured."""

    name: str = "embedded-proxy"
    judge: str | None = "embedded-judge"
    label: int | str | None = None
    """Which output of a classifier with several labels is the reward: its index or its name."""
    judge_label: int | str | None = None
    missing_eos_penalty: NonNegative = 0.0
    normalise: bool = False
    """Running mean and variance of all rewards seen (SAFE, equation 15)."""
    kl_coefficient: NonNegative = 0.0
    """Weight of the sampled KL that is subtracted from each token's reward (TRL's ``kl_coef``)."""
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
    """Use only the first prompts, up to this number."""
    max_tokens: PositiveInt = 48
    """Longer prompts lose tokens on the left; the number of these prompts is counted and reported."""


class Rollout(Section):
    """Sampling of replies."""

    batch: PositiveInt = 32
    """Replies per update, over all processes."""
    reply_tokens: PositiveInt = 24
    temperature: Positive = 1.0
    chunk: PositiveInt | None = None
    """Rows sampled at once; all if null."""


class Preview(Section):
    """Ceiling on the KL that an optimizer step may reach on its batch (SAFE, equation 13)."""

    ceiling: Positive = 0.5
    """Nats per token. A step may end above it only if it began above it, and then not above where it began."""
    trials: PositiveInt = 3
    """Number of shorter steps tried, each with a forward pass over the batch, before the whole step is undone."""


class Update(Section):
    """How often and how the policy is updated."""

    steps: PositiveInt = 100
    epochs: PositiveInt = 2
    minibatches: PositiveInt = 1
    microbatch: PositiveInt | None = None
    """Rows per forward and backward pass, grouped by length; the gradients add up to the mini-batch's."""
    learning_rate: Positive = 1e-3
    critic_learning_rate: Positive | None = None
    """The policy's learning rate if null."""
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    critic_max_grad_norm: Positive | None = 0.5
    optimizer: str = "adamw"
    preview: Preview | None = None
    """Shorten steps that would exceed the KL ceiling. If null, the optimizer's steps are left as they are."""


class Advantage(Section):
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

    gamma: Share = 1.0
    lam: Share = 0.95
    whiten: bool = True
    whiten_rewards: bool = False


class Critic(Section):
    """The value function."""

    body: Literal["shared", "separate"] = "shared"
    """Whether the heads read the policy's own hidden states or those of a separate value model."""
    heads: Literal["single", "double"] = "single"
    head: Literal["linear", "mlp"] = "linear"
    layer_norm: bool = False
    detach: bool = True
    """Stop the gradient of the value loss from reaching the policy."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    init: Literal["small", "torch"] = "small"
    """Initial weights of the heads: small, so that values are near zero, or torch's default for a linear layer."""
    softmin_alpha: Positive = 0.3
    target_decay: Share | None = None
    """Share of the target critic kept per update (SAFE, equation 14); no target if null."""
    target_follows: Literal["batch", "update"] = "batch"
    """Whether the target moves once per batch or with every update."""


class Loss(Section):
    """Coefficients of the named loss terms."""

    clip: Positive = 0.2
    value_coefficient: NonNegative = 0.1
    value_clip: Positive | None = 0.2
    value_huber: Positive | None = None
    """Delta of the Huber loss; half the squared error if null."""
    value_combine: Literal["max", "mean"] = "max"
    """How the unclipped and the clipped value error are combined: PPO's maximum or SAFE's mean."""
    regress: Literal["heads", "softmin"] = "heads"
    """What is fitted to the return: each head by itself, or the heads' soft minimum."""
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
    """Steps between two measurements of each loss term's own gradient; never if null."""
    checkpoint_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 1
    samples: NonNegativeInt = 8
    """Replies of each batch kept in samples.jsonl."""
    trackers: tuple[str, ...] = ()


class Compute(Section):
    """Device and threads. By default one thread, so that a run's rows do not depend on other processes."""

    device: str = "auto"
    threads: PositiveInt | None = 1
    """Threads of one process; the library's own choice if null."""
    replicate: NonNegativeInt = 0
    """Order of the rows in each pass and of the passes: 0 is by length, each number from 1 on is another order. Only
    the rounding of sums changes."""

    @model_serializer(mode="wrap")
    def _leave_out_no_replicate(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write ``replicate`` only if it is not 0, so that files and hashes of other runs do not change."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "replicate" or value}


class Settings(Section):
    """All settings of one run."""

    experiment: str
    algorithm: str
    seed: NonNegativeInt = 0
    description: str = ""
    trust_remote_code: tuple[str, ...] = ()
    """Names of the models and rewards whose own Python code may run; the code of others does not run."""
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
    """How the settings were chosen, in an experiment that `safebench tune` wrote."""

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
