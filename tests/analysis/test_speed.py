"""A comparison stays quick: each file is parsed once, each row watched once, and all of it costs a few parses."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest

from safebench.analysis import compare, runs
from safebench.crashes.signals import Reading, Signals
from safebench.report import table
from tests.support.synthetic import collapsing, healthy, write_run

STEPS, SEEDS = 400, 2
ROWS = 2 * SEEDS * (STEPS + 1)
PARSES = 6
"""Times the CPU time of parsing every cell with csv and float alone; the comparison took 2.7 when this was written."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    for seed in range(SEEDS):
        write_run(root, "ppo", seed, collapsing(seed, STEPS))
        write_run(root, "safe", seed, healthy(seed + 10, STEPS))
    return root


def compared(root) -> str:
    found = runs.find(root)
    groups = {name: [run for run in found if run.variant == name] for name in ("ppo", "safe")}
    return table.render(compare.compare(groups), "table", width=100, color=False)


def least(work: Callable[[], object], times: int = 3) -> float:
    """CPU seconds of this process: what else the machine does is not counted, and the least of a few runs is taken."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def test_each_file_is_parsed_once_and_each_row_watched_once(root, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(owner, name):
        plain = getattr(owner, name)

        def wrapper(*args):
            calls[name] += 1
            return plain(*args)

        monkeypatch.setattr(owner, name, wrapper)

    counted(runs, "_columns")
    counted(Signals, "read")
    counted(Reading, "excess")
    compared(root)
    assert calls["_columns"] == 2 * SEEDS
    assert calls["read"] == ROWS
    assert calls["excess"] <= 3 * 16 * ROWS  # three scales, at most sixteen watched quantities a row


def test_a_comparison_costs_a_few_parses_of_its_files(root):
    def parse() -> float:
        total = 0.0
        for path in root.rglob("metrics.csv"):
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.reader(file):
                    for cell in row:
                        try:
                            total += float(cell)
                        except ValueError:
                            continue
        return total

    compared(root)  # imports and caches
    assert least(lambda: compared(root)) < PARSES * least(parse)


def test_a_comparison_does_not_import_what_it_does_not_need():
    heavy = "torch", "transformers", "pandas", "matplotlib", "plotly", "scipy.optimize", "scipy.stats"
    code = (
        "import sys; from safebench.analysis import compare, statistics; from safebench.report import table; "
        f"statistics.detectable(1.0, 5); print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
