"""Figures of runs: both files are drawn, with every arm, threshold and broken run in them."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from safebench.errors import UsageError
from safebench.evidence import runs
from safebench.report import plots
from tests.synthetic import CONSTANTS, collapsing, healthy, write_run


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two seeds of ppo, one of them unstable at step 20, and two of safe."""
    root = tmp_path_factory.mktemp("results")
    short = {key: values[:21] for key, values in healthy(1, 40).items()}
    short["reward/mean"][-1] = math.nan
    without = {key: values for key, values in collapsing(0, 40).items() if key != "controller/threshold"}
    write_run(root, "ppo", 0, without)
    write_run(root, "ppo", 1, {**short, "controller/threshold": [None] * 21}, steps=40, state="unstable")
    for seed in range(2):
        write_run(root, "safe", seed, healthy(seed + 5, 40))
    found = runs.find(root)
    return {arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")}


def test_png_and_svg_are_drawn(groups, tmp_path):
    png, svg = plots.plot_runs(groups, tmp_path / "new" / "curves")
    assert (png.name, svg.name) == ("curves.png", "curves.svg")
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1500, 900)
    text = svg.read_text(encoding="utf-8")
    written = re.findall(r"<!-- (.*?) -->", text)  # glyphs are paths; each text stands in a comment
    for words in (
        "ppo (n=2)", "safe (n=2)", "range of the seeds", "ended unstable", "threshold of safe", "Entropy",
        "Judge reward, held-out", "KL to the reference", "Distinct replies in a batch", "Reply length",
    ):  # fmt: skip
        assert words in written
    assert "threshold of ppo" not in written  # it has none
    for color in plots.COLORS[:2]:
        assert color.lower() in text


def test_the_ending_chooses_the_format(groups, tmp_path):
    assert plots.plot_runs(groups, tmp_path / "a.svg") == [tmp_path / "a.svg"]
    assert plots.plot_runs(groups, str(tmp_path / "b.png")) == [tmp_path / "b.png"]
    with pytest.raises(UsageError, match="pdf"):
        plots.plot_runs(groups, tmp_path / "a.pdf")


def test_the_same_runs_give_the_same_svg(groups, tmp_path):
    once, again = (plots.plot_runs(groups, tmp_path / name)[0].read_bytes() for name in ("a.svg", "b.svg"))
    assert once == again


def test_nothing_to_draw_is_said(groups, tmp_path):
    with pytest.raises(UsageError, match="nothing to draw"):
        plots.plot_runs({"ppo": []}, tmp_path / "none")


def test_an_arm_without_runs_or_judge_leaves_its_panel_empty(groups, tmp_path):
    constants = {key: value for key, value in CONSTANTS.items() if key != "judge_sigma0"}
    folder = write_run(tmp_path, "safe", 0, healthy(0, 20), constants=constants)
    found = {"ppo": groups["ppo"], "blind": [runs.read(folder)], "empty": []}
    assert plots.plot_runs(found, tmp_path / "part.png")[0].stat().st_size > 10_000


def test_the_band_is_mean_and_range_of_the_runs_that_have_a_step():
    curves = [(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 2.0])), (np.array([1.0, 2.0]), np.array([3.0, 0.0]))]
    steps, middle, low, high = plots._band(curves)
    assert [part.tolist() for part in (steps, middle, low, high)] == [[1, 2, 3], [2, 2, 2], [1, 0, 2], [3, 4, 2]]


def test_gains_are_from_the_first_value_in_sigma0(groups):
    (run,) = [run for run in groups["safe"] if run.seed == 0]
    steps, values = plots._curve(run, plots.PANELS[1])
    judge = run.column("eval/judge")
    assert steps.tolist() == [0, 20, 40] and values.tolist() == ((judge[[0, 20, 40]] - judge[0]) / 0.5).tolist()


def test_comparing_imports_no_plotting_no_tables_and_no_torch():
    code = (
        "import sys; import safebench.evidence.compare, safebench.report.table, safebench.report.plots;"
        "print(sorted({'torch', 'matplotlib', 'pandas', 'rich', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
