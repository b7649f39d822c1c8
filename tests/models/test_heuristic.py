"""The reward that SAFE's release falls back to: by hand, by name, and never in another's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safebench import registry
from safebench.errors import MissingResource
from safebench.models.heuristic import safe_heuristic, score
from safebench.models.rewards import load_reward

TWENTY = " ".join(f"w{i}" for i in range(20))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("no", 0.3),
        ("no No NO no", 0.3 / 4),
        ("sure", 0.35),
        ("Sure sure", 0.15 + 0.05),
        ("there, unsure", 0.3 + 0.1),  # inside words too
        (TWENTY, 0.3),
        (f"{TWENTY} more", 0.6),
        (" ".join(f"w{i}" for i in range(199)), 0.6),
        (" ".join(f"w{i}" for i in range(200)), 0.3),
        (f"{TWENTY} help sure here", 0.75),
        ("fun " * 21, 0.3 + 0.3 / 21),
    ],
)
def test_by_hand(text: str, expected: float) -> None:
    assert score(text) == pytest.approx(expected, rel=1e-12)


def test_the_prompts_words_count_too() -> None:
    reward = load_reward("safe-heuristic", torch.device("cpu"))
    assert reward.score([TWENTY, "no"], ["help", "yes"]).tolist() == pytest.approx([0.65, 0.3])
    assert list(safe_heuristic(["how are you?"], ["fine"])) == [0.3]
    assert registry.find("rewards", "safe-heuristic").kind == "function"


def test_it_takes_no_other_rewards_place(tmp_path: Path) -> None:
    with pytest.raises(MissingResource):
        load_reward(str(tmp_path / "nowhere") + "/", torch.device("cpu"))
