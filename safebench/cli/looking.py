"""Look at recorded runs: their curves, how two of them differ, and what their alarms were worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safebench.analysis import runs
from safebench.analysis.runs import Run
from safebench.analysis.statistics import Estimate
from safebench.cli.results import locate, locate_all
from safebench.cli.tables import columns
from safebench.errors import UsageError
from safebench.metrics import ALARM_KINDS
from safebench.report.cells import DASH


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
    from safebench.analysis.diff_runs import differences
    from safebench.report.difference import to_text

    print(to_text(differences(runs.read(locate(first, root)), runs.read(locate(second, root)))), end="")


def keep(names: Sequence[str], out: Path, root: Path) -> None:
    """Copy what evidence needs of the runs and print the folders; into a CSV file, write a line each."""
    if out.suffix == ".csv":
        from safebench.cli.brief import keep_lines

        keep_lines(_folders(names, root), out)
        return
    from safebench.recording.layout import keep

    for folder in _folders(names, root):
        print(keep(folder, out))


def alarms(names: Sequence[str], root: Path) -> None:
    """Print what each kind of alarm was worth over the runs; runs that cannot be read are told and left out."""
    from safebench.analysis.alarms import Worth, chance, course_of, worth

    found = [runs.read(folder) for folder in _folders(names, root)] if names else runs.find(root)
    for run in (run for run in found if run.status == "damaged"):
        print(f"note: {run.folder} is left out: {run.message}", file=sys.stderr)
    courses = [course_of(run) for run in found if run.status != "damaged"]
    if not courses:
        raise UsageError(f"no runs in {root}", "Make some with `safebench run`, or name their folder by --results.")

    def share(estimate: Estimate) -> str:
        of = f"{round(estimate.value * estimate.n)} of {estimate.n}" if estimate.n else "0 of 0"
        return f"{of} [{estimate.low:.2f}, {estimate.high:.2f}]"

    def line(one: Worth) -> tuple[str, ...]:
        return one.kind, share(one.preceded), share(one.followed), DASH if one.lead is None else f"{one.lead:g}"

    harmed = sum(bool(one.harms) for one in courses)
    print(f"runs: {len(courses)}, harmed: {harmed}; shares with 95 % intervals")
    lines = [line(worth(courses, kind)) for kind in ALARM_KINDS]
    print(columns([("ALARM", "HARMS IT PRECEDED", "FIRINGS THAT HARM FOLLOWED", "LEAD [steps]"), *lines]))
    any_step = chance(courses)
    print(f"a harm followed {share(any_step)} of all steps: a firing at random would be worth as much")


def _folders(names: Sequence[str], root: Path) -> list[Path]:
    return list(dict.fromkeys(folder for name in names for folder in locate_all(name, root)))
