"""Attack a reward: train policies on it with PPO, and keep their late replies as the worse ones of preferences.

A pilot is a plain ``safebench run ppo``, on turns for which a person's reply is known.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safebench.scoring.pairs import Exchange, Pair, Preference

KIND = "attacked"
STEPS = 80
LEARNING_RATE = 3e-3
LATE = 0.5
"""Share of the steps, counted from the end, whose replies are kept."""
HELD_OUT = 512


def write_prompts(pairs: Sequence[Pair], path: Path) -> None:
    """Write the turns of ``pairs``, each once, as prompts: the first ``HELD_OUT``, or half, for evaluations."""
    turns = list(dict.fromkeys(pair.turn for pair in pairs))
    heldout = min(HELD_OUT, len(turns) // 2)
    rows = ({"split": "heldout" if number < heldout else "train", "prompt": turn} for number, turn in enumerate(turns))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run_pilot(
    reward: Path, seed: int, policy: Path, prompts: Path, results: Path, steps: int = STEPS, batch: int | None = None
) -> None:
    """Train a policy on a reward; a finished run is left unchanged, an interrupted run continues.

    ``batch`` replaces the experiment's number of replies per update.
    """
    words = [
        *("run", "ppo", "--seeds", str(seed), "--steps", str(steps), "--results", str(results)),
        *("--model", str(policy), "--reward", str(reward), "--prompts", str(prompts)),
        *("--preset", "default", "--set", f"reward.judge={reward}", "--set", "recording.samples=32"),
        *("--set", f"update.learning_rate={LEARNING_RATE}", "--set", "evaluation.every=80"),
        *("--set", "evaluation.prompts=32", "--set", "evaluation.audits=false"),
    ]
    words += [] if batch is None else ["--set", f"rollout.batch={batch}"]
    subprocess.run([sys.executable, "-m", "safebench", *words], check=True)


def said(folders: Sequence[Path]) -> list[Exchange]:
    """Return the replies of the pilots of these runs at any step, each once, in order."""
    rows = (row for folder in folders for row in _rows(folder))
    return list(dict.fromkeys(Exchange(row["prompt"].strip(), row["reply"]) for row in rows))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def attacks(folders: Sequence[Path], pairs: Sequence[Pair], seed: int) -> list[Preference]:
    """Return preferences for people's replies over the pilots' later ones to the same turns, shuffled, each once."""
    given = {pair.turn.strip(): pair.reply for pair in reversed(pairs)}
    found: dict[Exchange, Preference] = {}
    for folder in folders:
        rows = _rows(folder)
        first = LATE * max(row["step"] for row in rows)
        for row in rows:
            turn = row["prompt"].strip()
            if row["step"] >= first and turn in given and row["reply"].strip().lower() != given[turn].strip().lower():
                worse = Exchange(turn, row["reply"])
                found[worse] = Preference(KIND, Exchange(turn, given[turn]), worse)
    return random.Random(seed).sample(list(found.values()), len(found))
