"""Read run folders, finished, unstable or unfinished, as values; files are read lazily and never written."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safebench.config import current, yaml_text
from safebench.crashes.signals import EMPTY, WATCHED, number
from safebench.errors import BadResource

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("controller/phase",)
"""Columns of metrics.csv that hold text."""

COMPLETE = ("finished", "unstable")
"""States that are results; runs in other states have no result yet."""


_SECTIONS = ("model", "reward", "prompts", "rollout", "update", "evaluation")


@dataclass(frozen=True)
class Run:
    """One run folder. ``status`` is the state in status.json, ``unknown`` without one, ``damaged`` if unreadable.

    ``columns`` (key -> cells as text) replace those of metrics.csv.
    """

    folder: Path
    experiment: str
    model: str
    seed: int
    settings: Mapping[str, Any]
    manifest: Mapping[str, Any]
    status: str
    message: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Name of the experiment's folder: the experiment, with a hash if settings were changed."""
        return self.folder.parent.name

    @property
    def complete(self) -> bool:
        """Whether the run is a result: it reached its end, or ended in a non-finite number."""
        return self.status in COMPLETE

    @property
    def arm(self) -> str:
        """Name of the algorithm."""
        return str(self.settings.get("algorithm", ""))

    @property
    def paired(self) -> bool:
        """Whether the same seed gives this run the same first batch as other paired runs.

        True unless its manifest says otherwise, as that of a trainer with its own generator does.
        """
        return self.manifest.get("paired") is not False

    @property
    def replicate(self) -> int:
        """Number of the order of sums that the run was made with; 0 for the usual one."""
        compute = self.settings.get("compute")
        found = compute.get("replicate") if isinstance(compute, Mapping) else None
        return found if isinstance(found, int) else 0

    @property
    def planned_steps(self) -> int:
        """Planned number of updates; 0 if the settings are unreadable."""
        return int(self.settings.get("update", {}).get("steps", 0))

    @property
    def sigma0(self) -> float | None:
        """Spread of the proxy reward under the initial policy, in reward units."""
        return number(self.manifest.get("sigma0"))

    @property
    def judge_sigma0(self) -> float | None:
        """Spread of the judge's reward under the initial policy, in the judge's units."""
        return number(self.manifest.get("judge_sigma0"))

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens the policy chooses from."""
        size = self.manifest.get("vocabulary")
        return None if size is None else int(size)

    @property
    def reply_limit(self) -> int | None:
        """Longest reply in tokens."""
        limit = self.settings.get("rollout", {}).get("reply_tokens")
        return None if limit is None else int(limit)

    @cached_property
    def cells(self) -> dict[str, tuple[str, ...]]:
        """Columns of metrics.csv as text; an incomplete last line is left out."""
        return {**_columns(self.folder / "metrics.csv"), **self.columns}

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv as a table: numbers as floats, empty cells and NaN both as NaN, names as text."""
        import pandas as pd

        frame = pd.DataFrame(self.cells)
        names = [key for key in frame if key in TEXTS]
        return frame.drop(columns=names).replace("", "nan").astype(float).join(frame[names])

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Records of samples.jsonl; an incomplete last line is left out."""
        path = self.folder / "samples.jsonl"
        return [json.loads(line) for line in _whole_lines(path)]

    @property
    def last_step(self) -> int:
        """Last step in metrics.csv; 0 if there is none."""
        steps = self.cells.get("step", ())
        return int(float(steps[-1])) if steps else 0

    def column(self, key: str) -> NDArray[np.float64]:
        """Return one column of metrics.csv as read-only floats, one per row; NaN where empty or not a number."""
        if key not in self._parsed:
            cells = self.cells.get(key)
            known = ("",) * len(self.cells.get("step", ())) if cells is None else cells
            values = np.array([np.nan if cell in EMPTY else float(cell) for cell in known], dtype=np.float64)
            values.setflags(write=False)
            self._parsed[key] = values
        return self._parsed[key]

    @cached_property
    def _parsed(self) -> dict[str, NDArray[np.float64]]:
        return {}

    def watched(self) -> list[dict[str, str]]:
        """Return the rows with the columns that the crash specification reads; empty cells differ from NaN here."""
        keys = [key for key in WATCHED if key in self.cells]
        columns = [self.cells[key] for key in keys]
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def find(root: Path | str, model: str | None = None) -> list[Run]:
    """Return every run below ``root`` (of one ``model``, by name or folder), in any state.

    The runs are sorted by model, experiment folder and seed. A missing ``root`` holds no runs.
    """
    folders = [path for path in Path(root).glob("*/*/seed-*") if path.is_dir() and path.name[5:].isdigit()]
    runs = [read(folder) for folder in folders]
    chosen = [run for run in runs if model is None or model in (run.model, run.folder.parents[1].name)]
    return sorted(chosen, key=lambda run: (run.model, run.variant, run.seed))


def of_experiment(folder: Path) -> list[Run]:
    """Return every run in an experiment's folder, in any state; a missing folder holds none."""
    return [read(path) for path in sorted(folder.glob("seed-*")) if path.is_dir() and path.name[5:].isdigit()]


def read(folder: Path | str) -> Run:
    """Return the run in ``folder``. If a file cannot be read, it is ``damaged``, with the reason as its message."""
    folder = Path(folder)
    faults: list[str] = []
    settings = current(_mapping(folder / "config.yaml", yaml_text.read, faults))
    if odd := [key for key in _SECTIONS if not isinstance(settings.get(key, {}), dict)]:
        faults.append(f"config.yaml: {', '.join(odd)} is no section")
        settings = {}
    manifest = _mapping(folder / "manifest.json", json.loads, faults)
    status = _mapping(folder / "status.json", json.loads, faults) if (folder / "status.json").exists() else {}
    return Run(
        folder=folder,
        experiment=str(settings.get("experiment", folder.parent.name)),
        model=str(settings.get("model", {}).get("name", folder.parents[1].name)),
        seed=int(folder.name.removeprefix("seed-")),
        settings=settings,
        manifest=manifest,
        status="damaged" if faults else str(status.get("state", "unknown")),
        message="; ".join(faults) or str(status.get("message", "")),
    )


def _mapping(path: Path, parse: Any, faults: list[str]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{path.name}: {error}")
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path.name}: not a mapping")
        return {}
    return content


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise BadResource(
            f"{path} cannot be read: {error}", "Start this run again with --if-exists overwrite."
        ) from error


def _columns(path: Path) -> dict[str, tuple[str, ...]]:
    header, *rows = list(csv.reader(_whole_lines(path))) or [[]]
    for number_, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise BadResource(
                f"{path}, line {number_} has {len(row)} cells where the header has {len(header)}",
                "Start this run again with --if-exists overwrite.",
            )
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    found = dict(zip(header, columns, strict=True))
    for key, cells in found.items():
        if key not in TEXTS:
            _refuse_words(path, key, cells)
    return found


def _refuse_words(path: Path, key: str, cells: Sequence[str]) -> None:
    """Raise ``BadResource`` for a cell that is not a number, because no recorder wrote it."""
    line = 1
    try:
        for line, cell in enumerate(cells, start=2):  # noqa: B007 - the line of the cell that is none
            number(cell)
    except ValueError as error:
        raise BadResource(
            f"{path}, line {line}: {key} is no number: {error}", "Start this run again with --if-exists overwrite."
        ) from error
