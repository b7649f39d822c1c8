"""Look at single runs: their curves, and how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safebench.cli.results import locate, locate_all
from safebench.evidence import runs
from safebench.evidence.runs import Run


def plot(names: Sequence[str], out: Path, root: Path) -> None:
    """Draw the runs' curves and print the files."""
    from safebench.report.plots import plot_runs

    groups: dict[str, list[Run]] = {}
    for folder in _folders(names, root):
        run = runs.read(folder)
        groups.setdefault(run.variant, []).append(run)
    for file in plot_runs(groups, out):
        print(file)


def diff(first: str, second: str, root: Path) -> None:
    """Print what differs between two runs."""
    from safebench.evidence.difference import differences
    from safebench.report.difference import to_text

    print(to_text(differences(runs.read(locate(first, root)), runs.read(locate(second, root)))), end="")


def keep(names: Sequence[str], out: Path, root: Path) -> None:
    """Copy what evidence needs of the runs and print the folders; into a CSV file, write a line each."""
    if out.suffix == ".csv":
        from safebench.cli.brief import keep_lines

        keep_lines(_folders(names, root), out)
        return
    from safebench.recording.keep import keep

    for folder in _folders(names, root):
        print(keep(folder, out))


def _folders(names: Sequence[str], root: Path) -> list[Path]:
    return list(dict.fromkeys(folder for name in names for folder in locate_all(name, root)))
