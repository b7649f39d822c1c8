"""What TRL 1.12.0's PPOTrainer gets wrong over a whole run: its end, its checkpoints, its data; and ours right."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safebench.errors import SafebenchError
from tests.support.parity_trl import parts
from tests.support.trl_defects import OURS, TRL, Check, Count, Kind, both, copies, make, prompts, train


def it_stops_when_a_callback_says_so(kind: Kind, folder: Path) -> None:
    """``control.should_training_stop`` after the first of three batches."""
    count = Count(stop=1)
    train(kind, make(kind, folder, callbacks=[count], steps=3))
    assert count.steps == 1, f"{count.steps} steps"


def weights_survive_a_reward_that_is_no_number(kind: Kind, folder: Path) -> None:
    """The reward model gives NaN; that may well be an error, but not in the weights."""
    made = parts()
    with torch.no_grad():
        made.reward.score.weight.fill_(float("nan"))
    with contextlib.suppress(SafebenchError):
        train(kind, make(kind, folder, made))
    broken = [name for name, p in made.policy.named_parameters() if not bool(p.isfinite().all())]
    assert not broken, f"{len(broken)} tensors are no numbers"


class Bounded:
    """A data loader that refuses to be read through again and again."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.passes = loader, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        assert self.passes < 10, f"{self.passes} passes over {len(self.loader.dataset)} rows without a batch"
        return iter(self.loader)


def a_small_data_set_is_enough(kind: Kind, folder: Path) -> None:
    """Three prompts, and batches of eight."""
    count = Count()
    trainer = make(kind, folder, dataset=prompts(3), callbacks=[count], steps=2)
    if kind == TRL:
        trainer.dataloader = Bounded(trainer.dataloader)
    train(kind, trainer)
    assert count.steps == 2


@dataclass
class Resumed:
    """A run of four batches with a checkpoint after the second, and one that should go on from there."""

    whole: dict[str, Tensor]
    """Of policy and value model, by name, as the first run left them."""
    second: dict[str, Tensor]
    steps: int
    """Of the second run."""
    saved: list[Tensor]
    """Every tensor in the checkpoint that lies at the end of the first run."""


@functools.cache
def resumed(kind: Kind) -> Resumed:
    """Train, and train again with ``args.resume_from_checkpoint``."""
    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(name), parts()
        train(kind, make(kind, folder, made, steps=4, save_strategy="steps", save_steps=2))
        again, count = parts(), Count()
        middle = str(folder / "checkpoint-2")
        train(kind, make(kind, folder, again, steps=4, callbacks=[count], resume_from_checkpoint=middle))
        whole, second = ({**copies(m.policy), **copies(m.value)} for m in (made, again))
        return Resumed(whole, second, count.steps, tensors(folder / "checkpoint-4"))


def tensors(folder: Path) -> list[Tensor]:
    """Return every tensor in every file of a folder."""
    found: list[Tensor] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            found += load_file(path).values()
        elif path.suffix in (".pt", ".bin", ".pth"):
            found += within(torch.load(path, weights_only=False))
    return found


def within(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from within(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from within(value)


def a_resumed_run_makes_what_was_left(kind: Kind, folder: Path) -> None:
    """``args.resume_from_checkpoint``: of four batches two were made."""
    found = resumed(kind)
    assert found.steps == 2, f"{found.steps} steps"


def a_resumed_run_ends_as_if_it_had_not_stopped(kind: Kind, folder: Path) -> None:
    """``train(resume_from_checkpoint=…)``: bit for bit."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        train(kind, make(kind, place, steps=4, save_strategy="steps", save_steps=2))
        again = parts()
        train(kind, make(kind, place, again, steps=4), resume_from_checkpoint=str(place / "checkpoint-2"))
        found = {**copies(again.policy), **copies(again.value)}
    whole = resumed(kind).whole
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], value) for key, value in whole.items())


def the_critic_is_in_the_checkpoint(kind: Kind, folder: Path) -> None:
    """Body and head of the value model, as the run left them."""
    found, start = resumed(kind), copies(parts().value)
    for key in ("score.weight", "model.layers.1.mlp.down_proj.weight"):
        assert not torch.equal(start[key], found.whole[key]), "it was trained"
        assert any(torch.equal(tensor, found.whole[key]) for tensor in found.saved), f"{key} is not in it"


CHECKS: dict[Check, tuple[type[Exception], str]] = {
    it_stops_when_a_callback_says_so: (AssertionError, "3 steps"),
    weights_survive_a_reward_that_is_no_number: (AssertionError, r"\d\d tensors are no numbers"),
    a_small_data_set_is_enough: (AssertionError, "10 passes over 3 rows without a batch"),
    a_resumed_run_makes_what_was_left: (AssertionError, "4 steps"),
    a_resumed_run_ends_as_if_it_had_not_stopped: (TypeError, "unexpected keyword argument 'resume_from_checkpoint'"),
    the_critic_is_in_the_checkpoint: (AssertionError, "score.weight is not in it"),
}


test_trl_gets_it_wrong, test_ours_gets_it_right = both(CHECKS)


def test_ours_says_which_reward_is_no_number(tmp_path: Path) -> None:
    made = parts()
    with torch.no_grad():
        made.reward.score.weight.fill_(float("nan"))
    with pytest.raises(SafebenchError, match=r"reward_model \(.*\) gives nan"):
        train(OURS, make(OURS, tmp_path, made))
