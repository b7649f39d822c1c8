"""What a tracker is, and which there are by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from safebench.errors import MissingResource, UsageError
from safebench.recording.metrics_csv import Row
from safebench.recording.samples import Sample

TRACKERS: dict[str, str] = {
    "wandb": "wandb",
    "wandb-online": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
}
"""Names that ``recording.trackers`` takes, and the package each needs."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of the run at its start. ``config`` is the resolved settings."""

    folder: str
    experiment: str
    model: str
    seed: int
    run_id: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run within its project."""
        return f"{self.experiment}/seed-{self.seed}"

    def place(self, tracker: str) -> Path:
        """Folder of the run that the tracker's files go to."""
        return Path(self.folder) / "trackers" / tracker


class Tracker(Protocol):
    """Somewhere else that a run's metrics go. All but ``abandon`` are called from one thread, in this order."""

    def start(self, info: RunInfo) -> None:
        """Begin with nothing: of a resumed run all that was kept is told again."""

    def log(self, step: int, row: Row) -> None:
        """Take the row of one step."""

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Take the samples of one step, before or after its row."""

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Close the run, whose final status is ``summary["status"]``; return a line for the user or None."""

    def abandon(self) -> None:
        """End at once, from another thread, whatever is under way."""


class NullTracker:
    """Tracks nothing; also the base of trackers that care for some calls only."""

    def start(self, info: RunInfo) -> None:
        """Do nothing."""

    def log(self, step: int, row: Row) -> None:
        """Do nothing."""

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Say nothing."""
        return None

    def abandon(self) -> None:
        """Do nothing."""


def check_names(names: Sequence[str]) -> None:
    """Raise ``UsageError`` for a tracker we do not know, ``MissingResource`` for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, n=1)
            hint = f"Did you mean {close[0]}?" if close else None
            raise UsageError(f"there is no tracker {name!r}; there are: {', '.join(TRACKERS)}", hint)
        if find_spec(TRACKERS[name]) is None:
            package = TRACKERS[name]
            raise MissingResource(
                f"tracker {name} needs the package {package}, which is not installed",
                f"Install it (pip install {package}), or leave {name} out: metrics.csv is written in any case.",
            )


def present(row: Row) -> dict[str, float | int | str]:
    """Return what the row measured."""
    return {key: value for key, value in row.items() if value is not None}
