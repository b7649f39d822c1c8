"""Audits of replies: by hand, and against planted policies that have fallen apart, which judge and audits condemn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from safebench import config
from safebench.models.assemble import assemble
from safebench.models.audits import known_share, relevance
from safebench.training.distributed import Processes
from safebench.training.evaluate import evaluate

KNOWN = frozenset({"i", "like", "it", "don", "t", "you're"})


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        (["I like it!", "i LIKE it"], 1.0),
        (["i like blurbs"], 2 / 3),
        (["I don\u2019t"], 1.0),  # of known parts
        (["you're"], 1.0),
        (["i like 12 of :) ..."], 2 / 3),  # numbers and short marks are no words, "of" is none of the known
        (["%$~!! i"], 1 / 2),
        (["ilikeit"], 0.0),
        (["", "  "], 0.0),
    ],
)
def test_words_are_counted(replies, share):
    assert known_share(replies, KNOWN) == pytest.approx(share)


def test_relevance_by_hand():
    turns = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Each reply is its own turn: cosine 1 with it, 0 with the other.
    assert relevance(turns, turns) == pytest.approx(1.0)
    assert relevance(turns, turns.flip(0)) == pytest.approx(-1.0)
    same = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    assert relevance(turns, same) == pytest.approx(0.0)
    assert relevance(turns[:1], turns[:1]) is None


class _Constant(nn.Module):
    """Gives every position the same state."""

    def __init__(self, state: torch.Tensor) -> None:
        super().__init__()
        self.state = state

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.state.expand_as(hidden)


@pytest.fixture(scope="module")
def planted():
    """Evaluate the embedded policy as it is, one that says anything, and one that says one word."""
    settings = config.resolve("ppo", overrides=["model.lora=null", "evaluation.prompts=32"])
    processes = Processes(settings.compute)
    world = assemble(settings, processes.device)
    model = world.policy.model
    healthy, norm = evaluate(settings, world, processes), model.model.norm
    embedding = model.get_input_embeddings().weight
    (word,) = world.policy.tokenizer("yeah", add_special_tokens=False)["input_ids"]
    # The state whose logits come nearest to the word's one and 0 for all others.
    only = torch.linalg.pinv(embedding.detach())[:, word]
    found = {"healthy": healthy.columns}
    for name, state in {"gibberish": torch.zeros_like(only), "repeating": 1e4 * only}.items():
        model.model.norm = _Constant(state.detach())
        found[name] = evaluate(settings, world, processes).columns
    model.model.norm = norm
    return found, healthy.judge_std


def test_the_healthy_policy_passes_the_audits(planted):
    found, _ = planted
    assert found["healthy"]["eval/known_words"] > 0.97
    assert found["healthy"]["eval/distinct"] > 0.9
    assert math.isfinite(found["healthy"]["eval/first_perplexity"])


@pytest.mark.parametrize("name", ["gibberish", "repeating"])
def test_the_judge_condemns_a_policy_that_fell_apart(planted, name):
    found, spread = planted
    assert found[name]["eval/judge"] < found["healthy"]["eval/judge"] - spread


def test_the_audits_condemn_gibberish(planted):
    found, _ = planted
    assert found["gibberish"]["eval/known_words"] < found["healthy"]["eval/known_words"] - 0.02
    assert found["gibberish"]["eval/first_perplexity"] > 10 * found["healthy"]["eval/first_perplexity"]


def test_the_audits_condemn_a_policy_that_says_one_word(planted):
    found, _ = planted
    assert found["repeating"]["eval/distinct"] < 0.1 and found["repeating"]["eval/distinct_2"] < 0.01
    # One reply to everything is as close to its own turn as to the others, whatever it is.
    assert found["repeating"]["eval/relevance"] == pytest.approx(0.0, abs=1e-6)
    assert found["repeating"]["eval/first_perplexity"] > 10 * found["healthy"]["eval/first_perplexity"]
