"""What the command line asks for, as settings of runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safebench import config
from safebench.doctor import device_kind
from safebench.errors import UsageError
from safebench.knobs import Tunable, tunable
from safebench.settings import Settings

T = TypeVar("T")
EMBEDDED = "embedded"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, before it is resolved."""

    experiments: Sequence[str]
    seeds: str | None = None
    preset: str | None = None
    model: str | None = None
    reward: str | None = None
    prompts: str | None = None
    random_weights: bool = False
    steps: int | None = None
    files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    trackers: Sequence[str] = ()
    trust: Sequence[str] = ()
    replicate: int | None = None

    def settings(self) -> list[Settings]:
        """Return the settings of each experiment and preset, once, with the first seed; every fault at once."""
        return self._each(config.resolve)

    def tunable(self) -> list[Tunable]:
        """Return each experiment and preset with its knobs; every fault at once."""
        return self._each(tunable)

    def _each(self, resolve: Callable[..., T]) -> list[T]:
        found: list[T] = []
        wrong: list[UsageError] = []
        for experiment in dict.fromkeys(self.experiments):
            for preset in config.expand_preset(self.preset):
                try:
                    found.append(self._one(resolve, experiment, preset))
                except UsageError as error:
                    wrong.append(error)
        if wrong:
            raise UsageError("\n".join(dict.fromkeys(str(error) for error in wrong)), hint=wrong[0].hint)
        return found

    def seeded(self, default: str) -> list[Settings]:
        """Return the settings of every run: each experiment with each seed, seeds in the outer order.

        So a comparison that is cut short has as many pairs as can be. Every other seed goes through the experiments
        backwards: with two runs at a time, where one arm takes longer, neither worker ends up with all its runs.
        """
        chosen, experiments = parse_seeds(self.seeds or default), self.settings()
        orders = (experiments, experiments[::-1])
        return [one.model_copy(update={"seed": seed}) for i, seed in enumerate(chosen) for one in orders[i % 2]]

    def _one(self, resolve: Callable[..., T], experiment: str, preset: str | None) -> T:
        flags = {
            "model.name": self.model,
            "model.random_weights": self.random_weights or None,
            "reward.name": self.reward,
            "prompts.name": self.prompts,
            "update.steps": self.steps,
            "recording.trackers": parse_trackers(self.trackers) if self.trackers else None,
            "trust_remote_code": list(self.trust) or None,
            "compute.replicate": self.replicate,
        }
        given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
        overrides = [*given, *self.overrides]
        chosen = preset or self._default_preset(experiment, overrides)
        return resolve(experiment, preset=chosen, files=self.files, overrides=overrides)

    def _default_preset(self, experiment: str, overrides: Sequence[str]) -> str | None:
        """Return the preset of the model on this device where --model names another model than the embedded one.

        The embedded world's precision and learning rate would serve no larger model.
        """
        if self.model in (None, EMBEDDED) or "@" in experiment:
            return None
        device = config.resolve(experiment, files=self.files, overrides=overrides).compute.device
        return config.own_preset(self.model, device_kind(device))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``0-4``, ``3`` or ``0,2,7-9`` names, in that order, each once."""
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"--seeds {text!r}: {part.strip()!r} is no seed and no range", hint="Write 3, 0-4 or 0,2,7."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"--seeds {text!r}: {part.strip()!r} runs backwards", hint=f"Write {last}-{first}.")
        if last - first >= 10_000:
            raise UsageError(f"--seeds {text!r}: more than 10,000 runs", hint="Write fewer seeds.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def parse_trackers(names: Sequence[str]) -> list[str]:
    """Return the trackers named, commas or repetition alike; ``csv`` is always on and needs no place in the list."""
    parts = [part.strip() for name in names for part in name.split(",")]
    return [part for part in dict.fromkeys(parts) if part and part != "csv"]
