"""Compares what two checkouts compute: ``python tools/equality.py OLD NEW``.

Each checkout makes the same short runs; their files must be equal except for times, memory, paths, commits and
identities. Then each prints tables, claims, pages and lists of the first checkout's runs; these must be equal to the
byte.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

RUNS = [
    "ppo", "safe", "safe-published", "safe-official", "ppo-official", "safe-predictive", "safe-momentum", "trl-ppo",
    "grpo",
]  # fmt: skip
SEEDS = "0-1"
MEASURED = ("time/", "speed/", "memory/")
"""Beginnings of the names of metrics.csv columns that differ between any two runs."""
PAIR = ["ppo@smoke", "safe@smoke"]
PRINTED = [
    *(["compare", *PAIR, "--seeds", SEEDS, "--format", fmt] for fmt in ("md", "csv", "json", "latex")),
    ["compare", *(f"{name}@smoke" for name in RUNS), "--seeds", SEEDS, "--brief", "--format", "csv"],
    *(["claims", "--preset", "smoke", "--seeds", SEEDS, "--format", fmt] for fmt in ("md", "csv", "json")),
    ["report", *PAIR, "--sensitivity"],
    ["alarms"],
    ["list"],
    ["show", "results/embedded/safe@smoke/seed-0", "--explain"],
    ["diff", "results/embedded/ppo@smoke/seed-0", "results/embedded/safe@smoke/seed-0"],
    ["report", *PAIR, "--seeds", SEEDS, "--out", "report.html"],
    ["keep", *PAIR, "--out", "kept.csv"],
]
WRITTEN = ("report.html", "kept.csv")
DROP_IN = ["examples/ppo.py", "--total_episodes", "96", "--response_length", "8"]


def call(checkout: Path, words: list[str], folder: Path) -> str:
    """Run a command of a checkout in a folder; return what it printed, also if it failed."""
    fixed = {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment = os.environ | fixed
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    return f"{done.stdout}\n[exit code {done.returncode}]\n" + (done.stderr if done.returncode else "")


def make_runs(checkout: Path, folder: Path) -> None:
    """Make the short runs, and one run of the drop-in."""
    folder.mkdir(parents=True)
    words = ["-m", "safebench", "run", *(f"{name}@smoke" for name in RUNS), "--seeds", SEEDS, "--jobs", "2"]
    (folder / "run.txt").write_text(call(checkout, words, folder), encoding="utf-8")
    words = [str(checkout / DROP_IN[0]), *DROP_IN[1:]]
    (folder / "drop-in.txt").write_text(call(checkout, words, folder), encoding="utf-8")


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the path, and the text or hash, of what must be equal in the files that runs left."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "metrics.csv":
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            yield name, "\n".join(str([v for k, v in row.items() if not k.startswith(MEASURED)]) for row in rows)
        elif path.name in ("samples.jsonl", "events.jsonl", "config.yaml"):
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".safetensors":
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "drop-in.txt":
            times = r"'(?:(?:time|speed|memory)/\w+|eps|train_\w+)': (?:'[^']*'|\d+)"
            text = re.sub(times, "…", path.read_text(encoding="utf-8"))
            yield name, re.sub(r"\d+\.\d+ ?s\b|(?<![\w'])/\S*", "…", text)


def printed(checkout: Path, runs: Path, folder: Path) -> dict[str, str]:
    """Return what a checkout prints and writes for given runs."""
    folder.mkdir()
    (folder / "results").symlink_to(runs / "results")
    found = {" ".join(words): call(checkout, ["-m", "safebench", *words], folder) for words in PRINTED}
    return found | {name: (folder / name).read_text(encoding="utf-8") for name in WRITTEN if (folder / name).exists()}


def differences(one: dict[str, str], two: dict[str, str]) -> list[str]:
    """Return the names under which two sets of texts differ, each with its first differing line."""
    found = []
    for name in sorted(one.keys() | two.keys()):
        a, b = one.get(name), two.get(name)
        if a == b:
            continue
        if a is None or b is None:
            found.append(f"{name}: only in {'OLD' if b is None else 'NEW'}")
            continue
        lines = [(x, y) for x, y in zip(a.splitlines(), b.splitlines(), strict=False) if x != y]
        x, y = lines[0] if lines else ("", f"{len(a.splitlines())} and {len(b.splitlines())} lines")
        found.append(f"{name}: {len(lines)} lines differ, first\n  OLD {x[:300]}\n  NEW {y[:300]}")
    return found


def main(old: str, new: str) -> int:
    """Compare; print a line per difference and a summary; return exit code 1 if anything differs."""
    checkouts = {"old": Path(old).resolve(), "new": Path(new).resolve()}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for name, checkout in checkouts.items():
            make_runs(checkout, work / name)
        made = {name: dict(contents(work / name)) for name in checkouts}
        told = {name: printed(checkout, work / "old", work / f"printed-{name}") for name, checkout in checkouts.items()}
    found = differences(made["old"], made["new"]) + differences(told["old"], told["new"])
    print("\n".join(found))
    failed = [name for name, text in told["old"].items() if "[exit code 0]" not in text and name not in WRITTEN]
    print(json.dumps({"files": len(made["old"]), "printed": len(told["old"]), "differ": len(found), "failed": failed}))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
