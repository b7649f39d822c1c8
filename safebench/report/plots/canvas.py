"""A figure without a screen, in our style, written as PNG and SVG: the one place that imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Return the files that ``path`` stands for: itself, or where it has no ending, one of each format.

    Raises ``UsageError`` for an ending that is not of FORMATS.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS:
        raise UsageError(f"cannot draw {path.suffix} files", f"End the name in {' or '.join(FORMATS)}, or in neither.")
    return [path] if path.suffix else [path.with_name(path.name + suffix) for suffix in FORMATS]


@contextmanager
def drawn(wanted: Sequence[Path], size: tuple[float, float]) -> Iterator[Any]:
    """Yield a figure of ``size`` inches, and write it to the files when the block ends; same content, same bytes."""
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
