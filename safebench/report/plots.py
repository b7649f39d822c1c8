"""Draws curves of runs and differences of experiments as PNG and SVG; the only module that imports matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safebench.analysis.overview import COMPARED, ArmRow, Block
from safebench.analysis.runs import Run
from safebench.analysis.scalars import BY_KEY
from safebench.crashes.detect import SPEC
from safebench.errors import UsageError

DPI = 150
STYLE = {
    "font.size": 10,
    "svg.hashsalt": "safebench",
    "axes.titlesize": 11,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
}
FORMATS = (".png", ".svg")


def files(path: Path | str) -> list[Path]:
    """Return the files that ``path`` stands for: itself, or one of each format if it has no suffix.

    Raises ``UsageError`` for a suffix that is not in FORMATS.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS:
        raise UsageError(f"cannot draw {path.suffix} files", f"End the name in {' or '.join(FORMATS)}, or in neither.")
    return [path] if path.suffix else [path.with_name(path.name + suffix) for suffix in FORMATS]


@contextmanager
def drawn(wanted: Sequence[Path], size: tuple[float, float]) -> Iterator[Any]:
    """Yield a figure of ``size`` inches and write it to the files when the block ends.

    The same content gives the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        for file in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, metadata=metadata)


def line_key(**look: Any) -> Any:
    """Return a line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)


def patch_key(**look: Any) -> Any:
    """Return a patch for a legend."""
    from matplotlib.patches import Patch

    return Patch(**look)


COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, distinguishable with any colour vision. Further arms repeat it with other dashes."""
DASHES = ("-", "--", "-.", ":")
GREY = "#555555"
PHASES = {"warmup": "#DDDDDD", "climbing": "#F0E442", "plateau": "#8C8C8C", "converged": "#262626"}
"""Colours of the phases: greys that differ in lightness, except for climbing, the only one that is not grey."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    With ``gain``, values are relative to the first one, in the sigma_0 of the ``proxy`` or the ``judge``. ``instead``
    is shown if no run has the column.
    """

    key: str
    title: str
    unit: str
    gain: str = ""
    least: float | None = 0.0
    """Lower end of the axis; the data's if None."""
    most: float | None = None
    cut: float | None = None
    """Lowest value that the axis shows; curves below it are cut off."""
    sparse: bool = False
    """Whether it is measured only at evaluation points, which get markers."""
    instead: Panel | None = None


PANELS = (
    Panel(
        "eval/reward",
        "Proxy reward, held-out",
        "σ₀ above the start",
        "proxy",
        least=None,
        sparse=True,
        instead=Panel("reward/mean", "Proxy reward, training", "reward", least=None),
    ),
    Panel("eval/judge", "Judge reward, held-out", "σ₀ above the start", "judge", least=None, sparse=True),
    Panel("kl/mean", "KL to the reference", "nats per token"),
    Panel("entropy/mean", "Entropy", "nats per token"),
    Panel("loss/value", "Value loss", "loss × its coefficient"),
    Panel("critic/explained_variance", "Critic's explained variance", "share", least=None, most=1.04, cut=-1.04),
    Panel("reply/length", "Reply length", "tokens"),
    Panel("reply/distinct", "Distinct replies in a batch", "share", least=-0.02, most=1.04),
)
"""Eight panels; the figure's ninth place holds the legend."""


Array = NDArray[np.float64]
Curve = tuple[Array, Array]
Groups = Mapping[str, Sequence[Run]]
Spans = list[tuple[str, int, int]]
"""Name, first step and last step (included) of each span."""


def curve(run: Run, panel: Panel) -> Curve:
    """Return the steps and finite values of a run's curve, in the panel's unit."""
    steps, values = known(run.column("step"), run.column(panel.key))
    if panel.gain and values.size:
        sigma = run.sigma0 if panel.gain == "proxy" else run.judge_sigma0
        values = (values - values[0]) / sigma if sigma else np.full_like(values, math.nan)
        return known(steps, values)
    return steps, values


def known(steps: Array, values: Array) -> Curve:
    """Return the points whose value is finite."""
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def band(curves: Sequence[Curve]) -> tuple[Array, Array, Array, Array]:
    """Return the steps that any run has, with mean, smallest and largest value over the runs that have them."""
    steps = np.unique(np.concatenate([at for at, _ in curves])) if curves else np.empty(0)
    tables = [dict(zip(at.tolist(), values.tolist(), strict=True)) for at, values in curves]
    held = [[table[step] for table in tables if step in table] for step in steps.tolist()]
    middle, low, high = (np.array([float(reduce(values)) for values in held]) for reduce in (np.mean, np.min, np.max))
    return steps, middle, low, high


def drawable(panel: Panel, groups: Groups) -> Panel:
    """Return the panel, or the one to show instead if no run has its column."""
    if panel.instead is None or any(curve(run, panel)[0].size for runs in groups.values() for run in runs):
        return panel
    return panel.instead


def controlled(groups: Groups) -> str | None:
    """Return the only arm with a controller; None if there is none or several."""
    found = [arm for arm, runs in groups.items() if any(_has_penalty(run) for run in runs)]
    return found[0] if len(found) == 1 else None


def _has_penalty(run: Run) -> bool:
    keys = ("controller/threshold", "loss/penalty")
    return any(np.isfinite(run.column(key)).any() for key in keys) or any(run.cells.get("controller/phase", ()))


def phases(runs: Sequence[Run]) -> Spans:
    """Return the phases over the steps: the most frequent one of the runs; a tie goes to the earlier in PHASES."""
    held: dict[int, Counter[str]] = {}
    for run in runs:
        for step, name in zip(run.column("step").tolist(), run.cells.get("controller/phase", ()), strict=False):
            if name in PHASES:
                held.setdefault(int(step), Counter())[name] += 1
    order = list(PHASES)
    most = {step: max(order, key=lambda name: (names[name], -order.index(name))) for step, names in held.items()}
    return _spans(sorted(most.items()))


def penalties(runs: Sequence[Run]) -> Spans:
    """Return the steps at which a penalty acted in more than half of the runs that measured one."""
    held: dict[int, list[bool]] = {}
    for run in runs:
        for step, value in zip(*known(run.column("step"), run.column("loss/penalty")), strict=True):
            held.setdefault(int(step), []).append(bool(value > 0))
    most = [(step, "penalty" if 2 * sum(acting) > len(acting) else "") for step, acting in sorted(held.items())]
    return [part for part in _spans(most) if part[0]]


def floors(groups: Groups) -> list[float]:
    """Return the entropy floors of the runs' gates, in nats; empty if no gate is on."""
    found = []
    for run in (run for runs in groups.values() for run in runs):
        settings = run.settings.get("penalty")
        if isinstance(settings, Mapping) and settings.get("gate") and "entropy_floor" in settings:
            found.append(float(settings["entropy_floor"]))
    return sorted(set(found))


def _spans(named: Iterable[tuple[int, str]]) -> Spans:
    spans: Spans = []
    for step, name in named:
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], step)
        else:
            spans.append((name, step, step))
    return spans


SIZE = (10.0, 8.6)
"""Inches. Text of 10 pt appears at 8.6 pt on a screen that shows the figure 830 pixels wide."""
LIMIT, TARGET = (0, (4, 2)), (0, (1, 2))
"""Dash patterns of the threshold and of fixed levels."""


@dataclass(frozen=True)
class Control:
    """Phases and penalty periods of the only arm with a controller."""

    arm: str = ""
    runs: int = 0
    phases: Spans = field(default_factory=list)
    penalties: Spans = field(default_factory=list)


def plot_runs(groups: Groups, path: Path | str) -> list[Path]:
    """Draw the groups' curves, mean over seeds with the seeds' range, and return the files written.

    ``path`` ends in .png or .svg, or in neither for both. Runs that ended unstable are marked at their last point.
    Phases and penalty periods are drawn if exactly one group has a controller.
    Raises ``UsageError`` for another suffix, or if no run has a step.
    """
    wanted = files(path)
    if not any(run.last_step for runs in groups.values() for run in runs):
        raise UsageError("there is nothing to draw: no run has a step yet", "Run the experiment first.")
    with drawn(wanted, SIZE) as figure:
        *places, last = figure.subplots(3, 3).flat
        control = _control(groups)
        for axes, panel in zip(places, PANELS, strict=True):
            _panel(axes, drawable(panel, groups), groups, control)
        arms = places[0].get_legend_handles_labels()[0]
        figure.legend(handles=arms, loc="outside upper center", ncols=_columns(groups), frameon=False, fontsize=11)
        _keys(last, groups, control)
    return wanted


def _control(groups: Groups) -> Control:
    arm = controlled(groups)
    if arm is None:
        return Control()
    return Control(arm, len(groups[arm]), phases(groups[arm]), penalties(groups[arm]))


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
    """Draw a panel's reference lines and penalty periods, and set the limits of its axis."""
    if panel.key == "kl/mean":
        axes.axhline(SPEC.kl_target, color=GREY, linewidth=1.2, linestyle=TARGET)
        for _, first, last in control.penalties:
            axes.axvspan(first - 0.5, last + 0.5, color="black", alpha=0.09, linewidth=0, zorder=0)
    if panel.key == "entropy/mean":
        for floor in floors(groups):
            axes.axhline(floor, color=GREY, linewidth=1.2, linestyle=TARGET)
    if panel.key == "critic/explained_variance":
        axes.axhline(0.0, color=GREY, linewidth=0.8)
    low, high = axes.get_ylim()
    low = low if panel.least is None else panel.least
    if panel.cut is not None:
        low = max(low, panel.cut)
    axes.set_ylim(low, panel.most if panel.most is not None else max(high, low + 1e-9))


def _arm(axes: Any, panel: Panel, arm: str, runs: Sequence[Run], index: int) -> bool:
    """Draw one arm's mean and range, the ends of its unstable runs and, in the KL panel, its threshold."""
    color, dash = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    held = [(run, *curve(run, panel)) for run in runs]
    steps, middle, low, high = band([(at, values) for _, at, values in held])
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
        found = [known(run.column("step"), run.column("controller/threshold")) for run in runs]
        at, limit, _, _ = band(found)
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
    """Fill the last place with the legend of everything except the arms, and with the caption."""
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
    if found := floors(groups):
        told = " and ".join(f"{floor:g}" for floor in found)
        label = f"entropy: gate's floor of {told}"
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
    """Return of which arm and how phases and penalty periods are taken, and what a panel leaves out."""
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


WIDTH, ROW_HEIGHT, BLOCK_HEIGHT = 10.0, 0.24, 0.95
"""Inches: width of the figure, height of a row, and height of a block's title and axis."""
BETTER = {"up": "better →", "down": "← better", "none": ""}


def plot_differences(blocks: Sequence[Block], path: Path | str) -> list[Path]:
    """Draw each block's differences to its baseline, with their intervals, and return the files written.

    A block is a row of panels, one for each figure of COMPARED; ``path`` as in ``plot_runs``. An arm without the
    figure has an empty row. Raises ``UsageError`` for another suffix, or if no block has a difference.
    """
    wanted = files(path)
    rows = [[row for row in block.rows if row.differences] for block in blocks]
    shown = [(block, found) for block, found in zip(blocks, rows, strict=True) if found]
    if not shown:
        raise UsageError("there is nothing to draw: no arm stands beside a baseline", "Name two arms that have runs.")
    heights = [BLOCK_HEIGHT + ROW_HEIGHT * len(found) for _, found in shown]
    with drawn(wanted, (WIDTH, sum(heights))) as figure:
        grid = figure.subplots(len(shown), len(COMPARED), squeeze=False, height_ratios=heights)
        for places, (block, found) in zip(grid, shown, strict=True):
            for axes, key in zip(places, COMPARED, strict=True):
                _difference_panel(axes, key, block, found, named=key == COMPARED[0])
    return wanted


def _difference_panel(axes: Any, key: str, block: Block, rows: Sequence[ArmRow], *, named: bool) -> None:
    scalar = BY_KEY[key]
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    for place, row in enumerate(rows):
        _interval(axes, place, row, key)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{block.preset}: {scalar.label} − {block.baseline}'s")
    axes.set_xlabel("  ".join(part for part in (scalar.unit, BETTER[scalar.direction]) if part))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _interval(axes: Any, place: int, row: ArmRow, key: str) -> None:
    """Draw the difference: a filled marker if its interval excludes zero, else a hollow one."""
    found = row.differences[key]
    if not math.isfinite(found.value):
        return
    apart = found.low > 0 or found.high < 0
    if math.isfinite(found.margin):
        axes.plot([found.low, found.high], [place, place], color=COLORS[0], linewidth=1.7, solid_capstyle="butt")
    face = COLORS[0] if apart else "white"
    axes.plot(found.value, place, marker="o", markersize=6, color=COLORS[0], markerfacecolor=face)


def _label(row: ArmRow) -> str:
    pairs = "unpaired" if row.common is None else f"{len(row.common)} pair{'' if len(row.common) == 1 else 's'}"
    return f"{row.arm} ({pairs})"
