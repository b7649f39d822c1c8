"""Prompts that cannot be replied to are refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safebench.errors import BadResource
from safebench.world.prompts import load_prompts
from tests.tiny import tiny_settings


def test_blank_prompts_are_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    texts = [f"prompt {i}" for i in range(20)]
    path.write_text("\n".join(json.dumps({"prompt": t}) for t in [*texts[:4], " ", *texts[4:], ""]), encoding="utf-8")
    with pytest.raises(BadResource, match=r"2 of the 22 prompts .* are blank, the first is number 5") as fault:
        load_prompts(tiny_settings(prompts={"name": str(path)}))
    assert fault.value.hint is not None


def test_others_are_split_into_training_and_held_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(20)), encoding="utf-8")
    prompts = load_prompts(tiny_settings(prompts={"name": str(path)}))
    assert len(prompts.heldout) == 2
    assert sorted([*prompts.train, *prompts.heldout]) == sorted(f"prompt {i}" for i in range(20))
