"""Curves of runs as a figure: reward, judge, KL with its threshold, entropy, length and variety, PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safebench.errors import UsageError
from safebench.evidence.crashes import SPEC
from safebench.evidence.runs import Run

Array = NDArray[np.float64]
Groups = Mapping[str, Sequence[Run]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette: told apart with any colour vision. Further arms repeat it with other dashes."""
DASHES = ("-", "--", "-.", ":")
SIZE, DPI = (10.0, 6.0), 150
GREY = "#555555"
FORMATS = (".png", ".svg")


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``gain``: from the first value, in the sigma_0 of the ``proxy`` or the ``judge``."""

    key: str
    title: str
    unit: str
    gain: str = ""


PANELS = (
    Panel("eval/reward", "Proxy reward, held-out", "σ₀ above the start", "proxy"),
    Panel("eval/judge", "Judge reward, held-out", "σ₀ above the start", "judge"),
    Panel("kl/mean", "KL to the reference", "nats per token"),
    Panel("entropy/mean", "Entropy", "nats per token"),
    Panel("reply/length", "Reply length", "tokens"),
    Panel("reply/distinct", "Distinct replies in a batch", "share"),
)


def plot_runs(groups: Groups, path: Path | str) -> list[Path]:
    """Draw the groups' curves, mean over seeds with the seeds' range, and return the files written.

    ``path`` ends in .png or .svg, or in neither for both. Runs that ended unstable are marked where they did.
    Raises ``UsageError`` for another ending, or when no run has a step.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS:
        raise UsageError(f"cannot draw {path.suffix} files", f"End the name in {' or '.join(FORMATS)}, or in neither.")
    if not any(run.last_step for runs in groups.values() for run in runs):
        raise UsageError("there is nothing to draw: no run has a step yet", "Run the experiment first.")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path] if path.suffix else [path.with_name(path.name + suffix) for suffix in FORMATS]
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "safebench", "axes.titlesize": 11}):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
            _draw(axes, panel, groups)
        handles = [*figure.axes[0].get_legend_handles_labels()[0], *_keys(groups)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False)
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, metadata=metadata)
    return files


def _draw(axes: Any, panel: Panel, groups: Groups) -> None:
    for index, (arm, runs) in enumerate(groups.items()):
        color, dash = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
        curves = [(run, *_curve(run, panel)) for run in runs]
        steps, middle, low, high = _band([(steps, values) for _, steps, values in curves])
        marker = "o" if panel.gain else None
        label = f"{arm} (n={len(runs)})"
        axes.plot(steps, middle, color=color, linestyle=dash, linewidth=1.8, marker=marker, markersize=3.5, label=label)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for run, at, values in curves:
            if run.status == "unstable" and at.size:
                axes.plot(
                    at[-1:], values[-1:], marker="x", color=color, markersize=9, markeredgewidth=2, linestyle="none"
                )
        if panel.key == "kl/mean":
            _threshold(axes, arm, runs, color)
    if panel.key == "kl/mean":
        target = f"target of {SPEC.kl_target:g}"
        axes.axhline(SPEC.kl_target, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=target)
        handles, labels = axes.get_legend_handles_labels()
        extra = [index for index, label in enumerate(labels) if label.startswith(("target", "threshold"))]
        axes.legend(
            [handles[i] for i in extra], [labels[i] for i in extra], fontsize=8, frameon=False, loc="upper left"
        )
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.margins(x=0.02)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.unit == "share":
        axes.set_ylim(-0.02, 1.04)
    elif not panel.gain:
        axes.set_ylim(bottom=0)


def _keys(groups: Groups) -> list[Any]:
    """Legend of what is drawn for every arm alike."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=GREY, alpha=0.25, label="range of the seeds")]
    if any(run.status == "unstable" for runs in groups.values() for run in runs):
        keys.append(Line2D([], [], color=GREY, marker="x", linestyle="none", markersize=8, label="ended unstable"))
    return keys


def _threshold(axes: Any, arm: str, runs: Sequence[Run], color: str) -> None:
    found = [_known(run.column("step"), run.column("controller/threshold")) for run in runs]
    if any(steps.size for steps, _ in found):
        steps, middle, _, _ = _band(found)
        axes.plot(steps, middle, color=color, linewidth=1.2, linestyle=(0, (4, 2)), label=f"threshold of {arm}")


def _curve(run: Run, panel: Panel) -> tuple[Array, Array]:
    steps, values = _known(run.column("step"), run.column(panel.key))
    if panel.gain and values.size:
        sigma = run.sigma0 if panel.gain == "proxy" else run.judge_sigma0
        values = (values - values[0]) / sigma if sigma else np.full_like(values, math.nan)
        return _known(steps, values)
    return steps, values


def _known(steps: Array, values: Array) -> tuple[Array, Array]:
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _band(curves: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array, Array]:
    """Steps that any run has, with mean, least and largest value of the runs that have them."""
    steps = np.unique(np.concatenate([at for at, _ in curves])) if curves else np.empty(0)
    tables = [dict(zip(at.tolist(), values.tolist(), strict=True)) for at, values in curves]
    held = [[table[step] for table in tables if step in table] for step in steps.tolist()]
    middle, low, high = (np.array([float(reduce(values)) for values in held]) for reduce in (np.mean, np.min, np.max))
    return steps, middle, low, high
