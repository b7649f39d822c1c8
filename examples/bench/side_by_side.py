"""TRL's PPOTrainer and ours side by side: time per update, peak memory, and their ratios.

    python examples/bench/side_by_side.py                     # what `make bench` prints
    python examples/bench/side_by_side.py qwen2-50m-short --pairs 5 --own

Each measurement is a process of its own (``arm.py``); the two take turns, and every second pair begins with the other
one, so that what else the machine does falls on both. Medians over the pairs, with the least and the most.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models import SHAPES

HERE = Path(__file__).parent
NAMES = {"trl": "TRL", "ours": "ours", "ours-own": "ours, own critic"}
GOALS = {"qwen2-50m": "goal on this one: at most 0.5 of TRL's time and 0.6 of its memory above loading"}
Figures = dict[str, list[float]]
MEASURES: tuple[tuple[str, str, Callable[[dict[str, Any]], float]], ...] = (
    ("time per update", "s", lambda found: statistics.median(found["seconds"])),
    ("processor time per update", "s", lambda found: statistics.median(found["processor"])),
    ("peak memory above loading", "MiB", lambda found: float(found["above"])),
    ("peak memory", "MiB", lambda found: float(found["peak"])),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 3 where TRL's PPOTrainer is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["embedded", "qwen2-50m"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each")
    parser.add_argument("--threads", type=int, default=1, help="of each measurement")
    parser.add_argument("--own", action="store_true", help="ours with TRL's value model too")
    asked = parser.parse_args(argv)
    unknown = [name for name in asked.names if name not in SHAPES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if not _has_trl():
        print("no TRL with a PPOTrainer is installed here: pip install 'trl==1.12.0'", file=sys.stderr)
        return 3
    arms = ("trl", "ours", "ours-own") if asked.own else ("trl", "ours")
    for name in asked.names:
        print(_table(name, _pairs(name, arms, asked.pairs, asked.threads)), flush=True)
    return 0


def _has_trl() -> bool:
    """Say whether TRL is here, and old enough to have the trainer; without importing it."""
    try:
        major, minor = importlib.metadata.version("trl").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) < (1, 13)


def _pairs(name: str, arms: Sequence[str], pairs: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for pair in range(pairs):
        for arm in arms if pair % 2 == 0 else tuple(reversed(arms)):
            print(f"{name}, {pair + 1} of {pairs}: {NAMES[arm]} …", file=sys.stderr, flush=True)
            found[arm].append(_measured(arm, name, threads))
    return found


def _measured(arm: str, name: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "arm.py"), arm, name, str(threads)]
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{NAMES[arm]} on {name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _table(name: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """Return one table: a row per measure, a column per arm, and each arm of ours over TRL's."""
    shape, first = SHAPES[name], found["trl"][0]
    others = [arm for arm in found if arm != "trl"]
    titles = [NAMES[arm] for arm in found] + [f"{NAMES[arm]} / TRL" for arm in others]
    lines = [
        "",
        f"{name}: {first['parameters'] / 1e6:.1f}M parameters; {shape.batch} replies of {shape.reply_tokens} tokens to "
        f"prompts of {shape.prompt_tokens}, {shape.epochs} epochs, LoRA rank 8",
        f"{'':32}" + "".join(f"{title:>24}" for title in titles),
    ]
    for title, unit, value in MEASURES:
        columns = {arm: [value(one) for one in found[arm]] for arm in found}
        cells = [_span(columns[arm]) for arm in found]
        cells += [_span([a / b for a, b in zip(columns[arm], columns["trl"], strict=True)]) for arm in others]
        lines.append(f"{title + ' [' + unit + ']':32}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join([*lines, *([GOALS[name]] if name in GOALS else [])])


def _span(values: list[float]) -> str:
    """Return the median, and least and most where they differ."""
    digits = 0 if statistics.median(values) >= 100 else 2
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
