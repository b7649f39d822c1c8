"""Writes the page on how a worse proxy changes training: ``python -m tools.proxies_page PAGE RUNS FIGURE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safebench.analysis import runs as run_folders
from safebench.analysis import statistics
from safebench.analysis.frontier import run_path
from safebench.analysis.runs import Run
from safebench.analysis.scalars import summarise
from safebench.analysis.statistics import Estimate
from safebench.errors import BadResource
from safebench.report.cells import interval
from safebench.report.plots import COLORS, GREY, band, drawn, files, known, line_key
from safebench.report.table import markdown_row
from tools.marks import insert

MARK = "proxies"
PROXIES = {"proxy": "three layers", "proxy-2": "two layers", "proxy-1": "one layer"}
"""Rewards of the embedded world that differ only in layers and seed, the best first."""
WORLD = Path("safebench/world/embedded/manifest.json")
EXPERIMENT = "ppo"

Array = NDArray[np.float64]
Groups = Mapping[str, Sequence[Run]]


def by_proxy(root: Path) -> Groups:
    """Return the runs of ``ppo`` below ``root`` by the proxy that they were trained on.

    Raises ``BadResource`` if a proxy has no run, or if the seeds differ between proxies.
    """
    found = [run for run in run_folders.find(root) if run.experiment == EXPERIMENT and run.complete]
    groups = {
        proxy: sorted((run for run in found if run.settings["reward"]["name"] == f"embedded-{proxy}"), key=_seed)
        for proxy in PROXIES
    }
    seeds = {proxy: [run.seed for run in runs] for proxy, runs in groups.items()}
    if not all(seeds.values()) or len({tuple(found) for found in seeds.values()}) != 1:
        raise BadResource(f"{root} has these seeds of {EXPERIMENT}: {seeds}", "make proxies runs what is missing.")
    return groups


def gains(run: Run, key: str) -> tuple[Array, Array]:
    """Return the steps of a run's evaluations, and the column's values there minus its first value."""
    steps, values = known(run.column("step"), run.column(key))
    return steps, values - values[0]


def table(groups: Groups, figures: Mapping[str, Any]) -> str:
    """Return, as a Markdown table, a row per proxy: its quality, and the results of its runs.

    ``figures`` are those of the world's manifest. Rewards are gains over the first evaluation, halfway and at the end,
    as means over the seeds with t-intervals; the judge's highest gain is at each run's own best evaluation. KL is in
    nats per reply.
    """
    steps = [int(step) for step in gains(groups["proxy"][0], "eval/judge")[0]]
    shown = (len(steps) // 2, len(steps) - 1)
    header = ["proxy", "r", "best of 64", *(f"judge at {steps[at]}" for at in shown)]
    header += ["judge, highest", "its step", "its KL", f"proxy at {steps[-1]}", f"KL at {steps[-1]}", "crashed"]
    lines = [markdown_row(header), markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for proxy, runs in groups.items():
        judged = [gains(run, "eval/judge")[1] for run in runs]
        tops = [int(values.argmax()) for values in judged]
        points = [run_path(run).points for run in runs]
        highest = [float(values[top]) for values, top in zip(judged, tops, strict=True)]
        cells = [
            PROXIES[proxy],
            f"{figures[proxy]['r']['share']:.2f}",
            f"{figures[proxy]['best']['64']:+.2f}",
            *(_mean([values[at] for values in judged]) for at in shown),
            _mean(highest),
            ", ".join(str(path[top].step) for path, top in zip(points, tops, strict=True)),
            ", ".join(f"{path[top].kl:.1f}" for path, top in zip(points, tops, strict=True)),
            _mean([gains(run, "eval/reward")[1][-1] for run in runs]),
            _mean([path[-1].kl for path in points], sign=False),
            f"{sum(summarise(run).crashed for run in runs)}/{len(runs)}",
        ]
        lines.append(markdown_row(cells))
    return "\n".join(lines) + "\n"


def _seed(run: Run) -> int:
    return run.seed


def _mean(values: Sequence[float], *, sign: bool = True) -> str:
    found: Estimate = statistics.mean([float(value) for value in values])
    return interval(found, sign=sign)


def plot(groups: Groups, path: Path) -> list[Path]:
    """Draw both rewards over the steps, and the judge's reward over the distance from the first policy."""
    wanted = files(path)
    with drawn(wanted, (11.0, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        for color, runs in zip(COLORS, groups.values(), strict=False):
            for key, look in (("eval/judge", "-"), ("eval/reward", ":")):
                steps, middle, low, high = band([gains(run, key) for run in runs])
                left.plot(steps, middle, look, color=color, marker="o", markersize=3)
                left.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
            for run in runs:
                points = run_path(run).points
                distances = np.sqrt([max(point.kl, 0.0) for point in points])
                right.plot(distances, gains(run, "eval/judge")[1], color=color, marker="o", markersize=3)
        left.set_title("held-out rewards, mean and range of the seeds")
        left.set_xlabel("step")
        right.set_title("the judge, a line per seed")
        right.set_xlabel("√KL to the first policy, √(nats per reply)")
        left.set_ylabel("gain over the first policy, σ₀")
        for axes in (left, right):
            axes.axhline(0.0, color=GREY, linewidth=0.8)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        keys = [line_key(color=color, label=name) for color, name in zip(COLORS, PROXIES.values(), strict=False)]
        keys += [line_key(color=GREY, label="judge"), line_key(color=GREY, linestyle=":", label="proxy")]
        left.legend(handles=keys, frameon=False, fontsize=9)
    return wanted


def main(page: str, root: str, drawing: str) -> None:
    """Write the table into ``page`` and the figure to ``drawing``."""
    groups = by_proxy(Path(root))
    figures = json.loads(WORLD.read_text(encoding="utf-8"))["figures"]
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), MARK, table(groups, figures)), encoding="utf-8")
    print(path, *plot(groups, Path(drawing)), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
