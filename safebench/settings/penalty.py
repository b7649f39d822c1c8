"""Settings of SAFE's penalty and of the controllers that steer it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from safebench.settings.section import Finite, NonNegative, Positive, Section, Share


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
