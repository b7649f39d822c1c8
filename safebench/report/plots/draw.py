"""Draws runs: eight panels over the steps, arms in colours, seeds as bands, what the controller did beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safebench.errors import UsageError
from safebench.evidence.crashes import SPEC
from safebench.evidence.runs import Run
from safebench.report.plots import canvas, curves
from safebench.report.plots.canvas import line_key, patch_key
from safebench.report.plots.curves import Groups, Spans
from safebench.report.plots.panels import COLORS, DASHES, GREY, PANELS, PHASES, Panel

SIZE = (10.0, 8.6)
"""Inches: 10 pt are 8.6 pt on a screen that shows the figure 830 pixels wide."""
LIMIT, TARGET = (0, (4, 2)), (0, (1, 2))
"""Dashes of the threshold and of fixed levels."""


@dataclass(frozen=True)
class Control:
    """What the one arm with a controller did: phases, and periods with a penalty."""

    arm: str = ""
    runs: int = 0
    phases: Spans = field(default_factory=list)
    penalties: Spans = field(default_factory=list)


def plot_runs(groups: Groups, path: Path | str) -> list[Path]:
    """Draw the groups' curves, mean over seeds with the seeds' range, and return the files written.

    ``path`` ends in .png or .svg, or in neither for both. Runs that ended unstable are marked where they did.
    Phases and penalty periods are drawn where one group alone has a controller.
    Raises ``UsageError`` for another ending, or when no run has a step.
    """
    wanted = canvas.files(path)
    if not any(run.last_step for runs in groups.values() for run in runs):
        raise UsageError("there is nothing to draw: no run has a step yet", "Run the experiment first.")
    with canvas.drawn(wanted, SIZE) as figure:
        *places, last = figure.subplots(3, 3).flat
        control = _control(groups)
        for axes, panel in zip(places, PANELS, strict=True):
            _panel(axes, curves.drawable(panel, groups), groups, control)
        arms = places[0].get_legend_handles_labels()[0]
        figure.legend(handles=arms, loc="outside upper center", ncols=_columns(groups), frameon=False, fontsize=11)
        _keys(last, groups, control)
    return wanted


def _control(groups: Groups) -> Control:
    arm = curves.controlled(groups)
    if arm is None:
        return Control()
    return Control(arm, len(groups[arm]), curves.phases(groups[arm]), curves.penalties(groups[arm]))


def _columns(groups: Groups) -> int:
    longest = max(len(arm) for arm in groups)
    return max(1, min(len(groups), 96 // (longest + 12)))


def _panel(axes: Any, panel: Panel, groups: Groups, control: Control) -> None:
    drawn = [_arm(axes, panel, arm, runs, index) for index, (arm, runs) in enumerate(groups.items())]
    if not any(drawn):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
    else:
        _levels(axes, panel, groups, control)
    axes.set_title(panel.title, pad=9 if control.phases else 6)
    axes.set_xlabel("step (updates)")
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    last = max(run.last_step for runs in groups.values() for run in runs)
    axes.set_xlim(-0.02 * last, 1.02 * last + 0.5)
    _phase_strip(axes, control)


def _levels(axes: Any, panel: Panel, groups: Groups, control: Control) -> None:
    """Draw what a panel's curves are read against, and set the ends of its axis."""
    if panel.key == "kl/mean":
        axes.axhline(SPEC.kl_target, color=GREY, linewidth=1.2, linestyle=TARGET)
        for _, first, last in control.penalties:
            axes.axvspan(first - 0.5, last + 0.5, color="black", alpha=0.09, linewidth=0, zorder=0)
    if panel.key == "entropy/mean":
        for floor in curves.floors(groups):
            axes.axhline(floor, color=GREY, linewidth=1.2, linestyle=TARGET)
    if panel.key == "critic/explained_variance":
        axes.axhline(0.0, color=GREY, linewidth=0.8)
    low, high = axes.get_ylim()
    low = low if panel.least is None else panel.least
    if panel.cut is not None:
        low = max(low, panel.cut)
    axes.set_ylim(low, panel.most if panel.most is not None else max(high, low + 1e-9))


def _arm(axes: Any, panel: Panel, arm: str, runs: Sequence[Run], index: int) -> bool:
    """Draw one arm's mean and range, its broken runs and, in the panel of KL, its threshold."""
    color, dash = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    held = [(run, *curves.curve(run, panel)) for run in runs]
    steps, middle, low, high = curves.band([(at, values) for _, at, values in held])
    label = f"{arm} ({len(runs)} seeds)" if len(runs) != 1 else f"{arm} (seed {runs[0].seed})"
    marker = "o" if panel.sparse else None
    axes.plot(steps, middle, color=color, linestyle=dash, linewidth=1.7, marker=marker, markersize=3.5, label=label)
    if len(runs) > 1:
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    for run, at, values in held:
        if run.status == "unstable" and at.size:
            style = {"marker": "x", "markersize": 9, "markeredgewidth": 2, "linestyle": "none", "clip_on": False}
            axes.plot(at[-1:], values[-1:], color=color, **style)
    if panel.key == "kl/mean":
        found = [curves.known(run.column("step"), run.column("controller/threshold")) for run in runs]
        at, limit, _, _ = curves.band(found)
        axes.plot(at, limit, color=color, linewidth=1.5, linestyle=LIMIT)
    return bool(steps.size)


def _phase_strip(axes: Any, control: Control) -> None:
    """Draw the phases as a strip above the panel."""
    for name, first, last in control.phases:
        axes.axvspan(
            first - 0.5,
            last + 0.5,
            1.01,
            1.045,
            facecolor=PHASES[name],
            edgecolor=GREY,
            linewidth=0.4,
            hatch="////" if name == "climbing" else None,
            clip_on=False,
        )


def _keys(axes: Any, groups: Groups, control: Control) -> None:
    """Fill the last place with the keys of everything but the arms, and with how to read them."""
    axes.set_axis_off()
    runs = [run for found in groups.values() for run in found]
    keys: list[Any] = []
    several = any(len(found) > 1 for found in groups.values())
    if several:
        keys.append(patch_key(color=GREY, alpha=0.25, linewidth=0, label="range of the seeds; line: mean"))
    keys.append(line_key(color=GREY, linewidth=1.2, linestyle=TARGET, label=f"KL: target of {SPEC.kl_target:g}"))
    if any(np.isfinite(run.column("controller/threshold")).any() for run in runs):
        keys.append(line_key(color=GREY, linewidth=1.5, linestyle=LIMIT, label="KL: threshold, arm's colour"))
    if control.penalties:
        keys.append(patch_key(color="black", alpha=0.09, linewidth=0, label=f"KL: {_short(control.arm)}'s penalty > 0"))
    if found := curves.floors(groups):
        floors = " and ".join(f"{floor:g}" for floor in found)
        label = f"entropy: gate's floor of {floors}"
        keys.append(line_key(color=GREY, linewidth=1.2, linestyle=TARGET, label=label))
    if any(run.status == "unstable" for run in runs):
        keys.append(line_key(color=GREY, marker="x", linestyle="none", markersize=8, label="ended unstable"))
    seen = [name for name in PHASES if any(name == part[0] for part in control.phases)]
    keys += [
        patch_key(facecolor=PHASES[name], edgecolor=GREY, linewidth=0.4, hatch="////" if name == "climbing" else None,
              label=f"phase: {name}")
        for name in seen
    ]  # fmt: skip
    legend = axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(-0.12, 1.04), frameon=False, borderpad=0)
    legend.set_in_layout(False)
    caption = _caption(groups, control)
    if caption:
        text = "\n".join(textwrap.wrap(caption, 42))
        axes.text(-0.1, -0.16, text, transform=axes.transAxes, va="bottom", color=GREY, fontsize=9.5, in_layout=False)


def _caption(groups: Groups, control: Control) -> str:
    """Say of which arm and how the phases and penalty periods are taken, and what a panel leaves out."""
    parts = []
    if control.arm and (control.phases or control.penalties):
        if control.runs > 1:
            parts.append(f"Phases of {control.arm}: most frequent of {control.runs} seeds; penalty: in over half.")
        elif len(groups) > 1:
            parts.append(f"Phases and penalty of {control.arm}.")
    lasts = [{run.last_step for run in found} for found in groups.values()]
    if any(len(steps) > 1 for steps in lasts):
        parts.append("Means are of the seeds that have the step.")
    for panel in PANELS:
        columns = [run.column(panel.key) for runs in groups.values() for run in runs]
        if panel.cut is not None and any((values < panel.cut).any() for values in columns):
            parts.append("Explained variance below −1 is cut.")
    return " ".join(parts)


def _short(arm: str) -> str:
    return arm if len(arm) <= 14 else arm[:13] + "…"
