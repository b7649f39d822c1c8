"""What a run drives: something that learns step by step and says what each step was like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from safebench.models.assemble import World
from safebench.recording.jsonl import Sample
from safebench.trainers.clock import Clock
from safebench.trainers.describe import Row
from safebench.trainers.evaluate import Evaluation

Report = Callable[[Row, list[Sample]], bool]
"""Takes a step's row and samples; says whether to go on."""


class Learner(Protocol):
    """One run's learner: our loop, or another library's trainer wrapped."""

    world: World
    clock: Clock
    sigma0: float
    """Standard deviation of the initial policy's held-out rewards; set before the first step."""
    step_number: int
    broken: str | None
    """Which number stopped being finite, if one did."""

    @property
    def resumable(self) -> bool:
        """Whether ``state`` can continue the run; where not, one that was broken off begins anew."""
        ...

    @property
    def paired(self) -> bool:
        """Whether its randomness is that of seed, step and row, and runs of one seed are pairs."""
        ...

    def evaluate(self) -> Evaluation:
        """Evaluate the present policy on the held-out prompts."""
        ...

    def learn(self, report: Report) -> None:
        """Make steps until the last one, or until ``report`` says that it is enough."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        ...
