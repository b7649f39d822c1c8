"""Figures, PNG and SVG: curves of runs, and differences between arms."""

from __future__ import annotations

from safebench.report.plots.differences import plot_differences
from safebench.report.plots.draw import plot_runs

__all__ = ["plot_differences", "plot_runs"]
