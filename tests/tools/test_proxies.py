"""The page on proxies of graded quality: its table from runs written here, and from those that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safebench import config
from safebench.analysis import overview, runs
from safebench.errors import BadResource
from tests.support.synthetic import healthy, write_run
from tools import proxies_page
from tools.marks import insert
from tools.proxies_page import PROXIES, WORLD, by_proxy, plot, table

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "proxies"
FIGURES = {proxy: {"r": {"share": 0.5}, "best": {"64": 0.25}} for proxy in PROXIES}


def write(root: Path, proxy: str, seed: int, judge: list[float]) -> None:
    """Write a run of ``ppo`` whose three evaluations have the judge's values, 4 and 9 nats per reply away."""
    curves = healthy(seed, steps=20, every=10)
    for key, values in {"eval/judge": judge, "eval/kl": [0.0, 0.4, 0.9], "eval/length": [10.0] * 3}.items():
        curves[key] = [values[step // 10] if step % 10 == 0 else None for step in range(21)]
    write_run(root, "ppo", seed, curves, overrides=[f"reward.name=embedded-{proxy}"], folder=f"ppo-{proxy}")


def test_the_table_has_each_proxys_gains_and_the_judges_highest(tmp_path: Path) -> None:
    for proxy in PROXIES:
        write(tmp_path, proxy, 0, [0.25, 0.75, 0.5] if proxy == "proxy" else [0.25, 0.0, -0.25])
    rows = [line.strip("| ").split(" | ") for line in table(by_proxy(tmp_path), FIGURES).splitlines()]
    cells = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert list(cells) == list(PROXIES.values())
    first, last = cells["three layers"], cells["one layer"]
    assert (float(first["judge at 10"]), float(first["judge at 20"])) == (0.5, 0.25)
    assert (float(first["judge, highest"]), first["its step"], first["its KL"]) == (0.5, "10", "4.0")
    assert (float(last["judge, highest"]), last["its step"], last["its KL"]) == (0.0, "0", "0.0")
    assert (float(last["judge at 20"].replace("−", "-")), float(last["KL at 20"])) == (-0.5, 9.0)


def test_proxies_are_compared_on_the_same_seeds_or_not_at_all(tmp_path: Path) -> None:
    for proxy in ("proxy", "proxy-2"):
        write(tmp_path, proxy, 0, [0.0, 0.0, 0.0])
    with pytest.raises(BadResource, match="'proxy-1': \\[\\]"):
        by_proxy(tmp_path)
    write(tmp_path, "proxy-1", 1, [0.0, 0.0, 0.0])
    with pytest.raises(BadResource, match="these seeds"):
        by_proxy(tmp_path)


def test_the_kept_runs_are_nine_of_ppo_as_it_stands_and_differ_in_the_proxy_alone() -> None:
    groups = by_proxy(KEPT)
    assert [run.seed for found in groups.values() for run in found] == [0, 1, 2] * 3
    assert len(runs.find(KEPT)) == 9
    for proxy, found in groups.items():
        asked = config.resolve("ppo", overrides=[f"reward.name=embedded-{proxy}"])
        now = config.digest(config.departures(asked))
        assert {overview.pack(run).settings for run in found} == {now}, "make proxies: ppo is another experiment now"


def test_the_page_is_that_of_the_kept_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
    figures = json.loads((ROOT / WORLD).read_text(encoding="utf-8"))["figures"]
    assert insert(page, proxies_page.MARK, table(by_proxy(KEPT), figures)) == page, "make proxies"
    (drawn,) = plot(by_proxy(KEPT), tmp_path / "proxies.png")
    assert drawn.stat().st_size > 10_000
