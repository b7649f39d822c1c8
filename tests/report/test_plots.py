"""Figures of runs: what is drawn, from which columns, and that nothing is drawn that is not there."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safebench.analysis import runs
from safebench.analysis.overview import ArmRow, Block
from safebench.analysis.statistics import Estimate
from safebench.cli.main import main
from safebench.errors import UsageError
from safebench.report import plots
from safebench.report.plots import COLORS, PANELS, PHASES, plot_differences, plot_runs
from tests.support.synthetic import CONSTANTS, collapsing, healthy, write_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def steered(seed, steps=40, since=15):
    """Curves of a run with phases, and a penalty at the steps from ``since`` on."""
    names = ["warmup" if t < 20 else "plateau" for t in range(steps + 1)]
    return healthy(seed, steps) | {
        "controller/phase": [None, *names[1:]],
        "loss/penalty": [None, *[0.01 * (t >= since) for t in range(1, steps + 1)]],
        "loss/value": [None, *[0.1] * steps],
    }


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two seeds of ppo, one of them unstable at step 20, and two of safe."""
    root = tmp_path_factory.mktemp("results")
    short = {key: values[:21] for key, values in healthy(1, 40).items()}
    short["reward/mean"][-1] = math.nan
    bare = {"controller/threshold", "controller/phase"}
    write_run(root, "ppo", 0, {key: cells for key, cells in collapsing(0, 40).items() if key not in bare})
    short = {key: cells for key, cells in short.items() if key not in bare}
    write_run(root, "ppo", 1, short, steps=40, state="unstable")
    for seed in range(2):
        write_run(root, "safe", seed, steered(seed + 5))
    found = runs.find(root)
    return {arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")}


def words(svg):
    """Return the texts of a figure; glyphs are paths, and each text stands in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_png_and_svg_are_drawn(groups, tmp_path):
    png, svg = plot_runs(groups, tmp_path / "new" / "curves")
    assert (png.name, svg.name) == ("curves.png", "curves.svg")
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1500, 1290)
    written = words(svg)
    for text in (
        "ppo (2 seeds)", "safe (2 seeds)", "range of the seeds; line: mean", "ended unstable",
        "KL: threshold, arm's colour", "KL: target of 0.3", "KL: safe's penalty &gt; 0", "entropy: gate's floor of 2",
        "phase: warmup", "phase: plateau", "Phases of safe: most frequent of 2 seeds;",
        "penalty: in over half. Means are of the",
    ):  # fmt: skip
        assert text in written, text
    assert "phase: climbing" not in written
    for color in (*COLORS[:2], PHASES["warmup"], PHASES["plateau"]):
        assert color.lower() in svg.read_text(encoding="utf-8")


def test_every_panel_has_its_title_and_both_units(groups, tmp_path):
    written = words(plot_runs(groups, tmp_path / "a.svg")[0])
    for panel in PANELS:
        assert panel.title in written
        assert written.count(panel.unit) == sum(panel.unit == other.unit for other in PANELS)
    assert written.count("step (updates)") == len(PANELS)
    issue = {"eval/reward", "eval/judge", "kl/mean", "entropy/mean", "loss/value", "reply/length"}
    assert issue | {"critic/explained_variance"} <= {panel.key for panel in PANELS}


def test_text_is_legible_at_the_readmes_width(groups, tmp_path, monkeypatch):
    sizes = set()
    from matplotlib.text import Text

    drawn = Text.draw

    def measured(self, *given):
        if self.get_text():
            sizes.add(self.get_fontsize())
        return drawn(self, *given)

    monkeypatch.setattr(Text, "draw", measured)
    plot_runs(groups, tmp_path / "a.png")
    width = plots.SIZE[0] * plots.DPI
    assert sizes and min(sizes) * plots.DPI / 96 * 830 / width >= 8.0


def test_the_ending_chooses_the_format(groups, tmp_path):
    assert plot_runs(groups, tmp_path / "a.svg") == [tmp_path / "a.svg"]
    assert plot_runs(groups, str(tmp_path / "b.png")) == [tmp_path / "b.png"]
    with pytest.raises(UsageError, match="pdf"):
        plot_runs(groups, tmp_path / "a.pdf")


def test_the_same_runs_give_the_same_files(groups, tmp_path):
    once, again = ([file.read_bytes() for file in plot_runs(groups, tmp_path / name)] for name in ("a", "b"))
    assert once == again


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UsageError, match="nothing to draw"):
        plot_runs({"ppo": []}, tmp_path / "none")


def test_one_run_is_its_own_curve(groups, tmp_path):
    written = words(plot_runs({"safe": groups["safe"][:1]}, tmp_path / "one.svg")[0])
    assert "safe (seed 0)" in written and "phase: warmup" in written
    assert not [text for text in written if "range" in text or "most frequent" in text]
    plain = words(plot_runs({"ppo": groups["ppo"][:1]}, tmp_path / "ppo.svg")[0])
    assert not [text for text in plain if re.search("phase|penalty|threshold|floor", text)]


def test_two_arms_with_controllers_have_no_phases_and_no_periods(groups, tmp_path):
    both = {"safe": groups["safe"][:1], "other": groups["safe"][1:]}
    written = words(plot_runs(both, tmp_path / "both.svg")[0])
    assert plots.controlled(both) is None and plots.controlled(groups) == "safe"
    assert "KL: threshold, arm's colour" in written
    assert not [text for text in written if text.startswith("phase") or "penalty" in text]


def test_what_was_not_measured_is_said_and_a_stand_in_is_shown(groups, tmp_path):
    constants = {key: value for key, value in CONSTANTS.items() if key != "judge_sigma0"}
    blind = runs.read(write_run(tmp_path, "safe", 0, healthy(0, 20), constants=constants))
    written = words(plot_runs({"blind": [blind], "empty": []}, tmp_path / "part.svg")[0])
    assert written.count("not measured") == 2  # the judge without its sigma_0, and the value loss
    curve = {"reward/mean": [None, 1.0, 2.0]}
    foreign = runs.read(write_run(tmp_path / "foreign", "ppo", 0, curve))
    written = words(plot_runs({"foreign": [foreign]}, tmp_path / "foreign.svg")[0])
    assert written.count("not measured") == 7
    assert "Proxy reward, training" in written and "Proxy reward, held-out" not in written


def test_the_band_is_mean_and_range_of_the_runs_that_have_a_step():
    held = [(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 2.0])), (np.array([1.0, 2.0]), np.array([3.0, 0.0]))]
    steps, middle, low, high = plots.band(held)
    assert [part.tolist() for part in (steps, middle, low, high)] == [[1, 2, 3], [2, 2, 2], [1, 0, 2], [3, 4, 2]]


def test_gains_are_from_the_first_value_in_sigma0(groups):
    (run,) = [run for run in groups["safe"] if run.seed == 0]
    steps, values = plots.curve(run, PANELS[1])
    judge = run.column("eval/judge")
    assert steps.tolist() == [0, 20, 40] and values.tolist() == ((judge[[0, 20, 40]] - judge[0]) / 0.5).tolist()


def test_phases_and_penalties_over_seeds(tmp_path):
    def run(seed, phases, penalties):
        cells = {"controller/phase": [None, *phases], "loss/penalty": [None, *penalties]}
        return runs.read(write_run(tmp_path, "safe", seed, cells))

    w, c, p = "warmup", "climbing", "plateau"
    first = run(0, [w, w, c, c, c], [0.0, 0.2, 0.1, 0.0, 0.3])
    second = run(1, [w, p, c, p, p], [0.0, 0.0, None, 0.0, 0.1])
    third = run(2, [w, c, p, p, c], [0.0, 0.5, 0.1, math.nan, 0.0])
    assert plots.phases([first]) == [(w, 1, 2), (c, 3, 5)]
    assert plots.penalties([first]) == [("penalty", 2, 3), ("penalty", 5, 5)]
    assert plots.phases([first, second, third]) == [(w, 1, 2), (c, 3, 3), (p, 4, 4), (c, 5, 5)]  # a tie at 2
    assert plots.penalties([first, second, third]) == [("penalty", 2, 3), ("penalty", 5, 5)]
    assert plots.penalties([first, second]) == [("penalty", 3, 3), ("penalty", 5, 5)]  # half is not over half


def test_the_floor_is_the_settings_and_only_with_a_gate(tmp_path):
    def run(name, *overrides):
        return runs.read(write_run(tmp_path / name, "safe", 0, healthy(0, 5), overrides=overrides))

    low, off = run("low", "penalty.entropy_floor=1.5"), run("off", "penalty.gate=false")
    assert plots.floors({"a": [low, run("plain")], "b": [off]}) == [1.5, 2.0]
    assert plots.floors({"b": [off]}) == []


def test_the_command_draws_the_reference(tmp_path, capsys):
    assert main(["plot", "ppo", "safe/seed-0", "--results", str(REFERENCE), "--out", str(tmp_path / "a.svg")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a.svg")]
    written = words(tmp_path / "a.svg")
    assert {"ppo (5 seeds)", "safe (seed 0)", "Phases and penalty of safe."} <= set(written)


def test_comparing_imports_no_plotting_no_tables_and_no_torch():
    code = (
        "import sys; import safebench.analysis.compare, safebench.report.table, safebench.report.plots;"
        "print(sorted({'torch', 'matplotlib', 'pandas', 'rich', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Differences between arms


@pytest.fixture
def block():
    """Of three arms beside ppo: one apart in judge, one of which KL is unknown, one of independent runs."""
    judge = [estimate(0.5, 0.2), estimate(0.1, 0.3), estimate(-0.2, 0.1)]
    kl = [estimate(0.01, 0.2), estimate(math.nan, math.nan), estimate(1.0, 0.5)]
    rows = [
        ArmRow(arm, (), {}, {}, {"judge_final": judge[n], "kl_mean": kl[n]}, common, paired=common is not None)
        for n, (arm, common) in enumerate({"safe": (0, 1), "short": (0,), "grpo": None}.items())
    ]
    baseline = ArmRow("ppo", (), {}, {}, {}, (), paired=True)
    return Block("default", "ppo", (baseline, *rows), (), ())


def estimate(value, margin):
    return Estimate(value, value - margin, value + margin, 2, "t")


def test_differences_are_drawn_with_their_arms(block, tmp_path):
    png, svg = plot_differences([block, block], tmp_path / "differences")
    assert struct.unpack(">II", png.read_bytes()[16:24])[0] == 1500
    written = words(svg)
    for text in ("safe (2 pairs)", "short (1 pair)", "grpo (unpaired)"):
        assert written.count(text) == 2, "once in each block, beside its first panel"
    assert not [text for text in written if text.startswith("ppo")], "the baseline is the line at zero"
    for title in ("held-out judge reward, end", "KL, mean"):
        assert written.count(f"default: {title} − ppo's") == 2
    assert written.count("nats/token  ← better") == 2 and "judge  better →" in written


def test_only_what_leaves_zero_out_is_full_and_what_is_unknown_is_not_drawn(block, monkeypatch, tmp_path):
    figures = keep_figures(monkeypatch)
    plot_differences([block], tmp_path / "a.png")
    judge, kl = (marks(axes) for axes in figures[0].axes)
    assert judge == [(0.5, 0, True), (0.1, 1, False), (-0.2, 2, True)]
    assert kl == [(0.01, 0, False), (1.0, 2, True)]
    spans = [line.get_xdata() for line in figures[0].axes[0].lines if line.get_marker() == "None"][1:]
    np.testing.assert_allclose(spans, [(0.3, 0.7), (-0.2, 0.4), (-0.3, -0.1)])


def keep_figures(monkeypatch):
    from matplotlib.figure import Figure

    seen, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (seen.append(figure), savefig(figure, *a, **k)))
    return seen


def marks(axes):
    """Value, row and whether it is full, of each difference."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor() != "white")
        for line in axes.lines
        if line.get_marker() == "o"
    ]


def test_differences_need_a_second_arm_and_a_known_ending(block, tmp_path):
    with pytest.raises(UsageError, match="no arm stands beside a baseline"):
        plot_differences([replace(block, rows=block.rows[:1])], tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"cannot draw \.pdf"):
        plot_differences([block], tmp_path / "a.pdf")
