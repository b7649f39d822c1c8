"""docs/algorithms.md: its algorithm is what it says, and the loop and the command line take it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from safebench import config
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from tests.support.tiny import share_of_a, tiny_policy, tiny_settings, tiny_world

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's file in a folder that Python looks in; its name for ``arm``."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "clip_higher.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (name,) = re.findall(r"--set algorithm=(\S+)", PAGE)
    yield name
    sys.modules.pop("clip_higher", None)


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) < 40


def test_the_clip_is_wider_above(named: str) -> None:
    settings = tiny_settings(named)
    algorithm = Loop(settings, tiny_world(tiny_policy(), share_of_a), Processes(settings.compute)).algorithm
    ratio, advantages = torch.tensor([1.5, 1.25, 0.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, 1.0])
    found = algorithm.surrogate(ratio, advantages)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, torch.tensor([-1.28, -1.25, 0.8, -0.5]))


def test_the_loop_runs_it(named: str) -> None:
    settings = tiny_settings(named)
    loop = Loop(settings, tiny_world(tiny_policy(moved=0.3), share_of_a), Processes(settings.compute))
    before = [p.detach().clone() for p in loop.updater.policy_parameters]
    row, _ = loop.step()
    assert row["loss/policy"] is not None and row["loss/penalty"] is None
    assert any(not torch.equal(p, old) for p, old in zip(loop.updater.policy_parameters, before, strict=True))


def test_the_command_line_takes_it(named: str) -> None:
    assert config.resolve("ppo", overrides=[f"algorithm={named}"]).algorithm == named
