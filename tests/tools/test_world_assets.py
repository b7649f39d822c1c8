"""The embedded world as shipped: its files, its sizes, and that its models do what the manifest says."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safebench import registry
from safebench.models.prompts import Prompt
from safebench.models.rewards import load_reward
from safebench.scoring.pairs import GENERIC, OPENERS, Pair, over_foreign, over_spoiled

WORLD = Path(__file__).parents[2] / "safebench" / "world" / "embedded"
PAGE = Path(__file__).parents[2] / "docs" / "world.md"
PROXIES = ("proxy", "proxy-2", "proxy-1", "proxy-body")
REWARDS = ("judge", *PROXIES)


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((WORLD / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str]]:
    lines = (WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def people(prompts) -> list[Pair]:
    """Held-out turns with a person's reply of at least four words."""
    rows = [row for row in prompts if row["split"] == "heldout" and len(row["human"].split()) >= 4]
    return [Pair("", row["prompt"], row["human"]) for row in rows[:128]]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD / "policy")


@pytest.fixture(scope="module")
def rewards():
    return {name: load_reward(f"embedded-{name}", torch.device("cpu")) for name in REWARDS}


def scores(reward, exchanges: list[tuple[str, str]]) -> torch.Tensor:
    return reward.score([Prompt(turn) for turn, _ in exchanges], [reply for _, reply in exchanges])


def right(reward, pairs) -> float:
    """Share of the pairs put in the right order."""
    better = scores(reward, [(pair.better.turn, pair.better.reply) for pair in pairs])
    worse = scores(reward, [(pair.worse.turn, pair.worse.reply) for pair in pairs])
    return float((better > worse).float().mean())


def test_every_file_is_the_one_that_was_built(manifest):
    found = {
        path.relative_to(WORLD).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in WORLD.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == {path: entry["sha256"] for path, entry in manifest["files"].items()}


def test_the_world_is_small(manifest):
    sizes = {path: (WORLD / path).stat().st_size for path in manifest["files"]}
    assert sizes == {path: entry["bytes"] for path, entry in manifest["files"].items()}
    assert sum(sizes.values()) < 18_000_000


def test_page_and_manifest_agree(manifest):
    from tools.world.page import render

    assert PAGE.read_text(encoding="utf-8") == render(manifest)


def test_the_catalogue_has_every_reward():
    assert {entry.target for entry in registry.REWARDS if entry.kind == "embedded"} == set(REWARDS)


def test_pad_and_end_tokens_differ(tokenizer):
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|end|>"


@pytest.mark.parametrize("text", ["how are you?", "i'm 19, you?", "haha :) ok...", "naïve café", "日本 🙂", "a  b"])
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_folder_reads_its_own_tokenizer(tokenizer):
    # A folder of model type qwen2 would be given Qwen2Tokenizer, whose rules are others.
    assert len(tokenizer) == tokenizer.vocab_size == 4096


def test_most_tokens_are_whole_words(tokenizer, prompts):
    said = [row["human"] for row in prompts if row["split"] == "heldout"]
    words = sum(len(text.split()) for text in said)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said)
    # Marks are tokens of their own.
    assert tokens < 1.35 * words


def test_tokenizer_lower_cases_and_straightens_quotes(tokenizer):
    ids = tokenizer("It\u2019s FINE", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "it's fine"


def test_template(tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == "<|user|>hi<|bot|>"
    messages.append({"role": "assistant", "content": "hello"})
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>hi<|bot|>hello<|end|>"


def test_prompts_are_short_and_each_is_there_once(prompts, tokenizer):
    assert {row["split"] for row in prompts} == {"train", "heldout"}
    assert sum(row["split"] == "train" for row in prompts) == 6000
    assert sum(row["split"] == "heldout" for row in prompts) == 512
    turns = [" ".join(row["prompt"].lower().split()) for row in prompts]
    assert len(set(turns)) == len(turns)
    for row in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert 5 <= len(ids) <= 24, row


def test_a_plain_load_computes_in_float32(rewards):
    policy = AutoModelForCausalLM.from_pretrained(WORLD / "policy")
    for model in (policy, *(reward.model for reward in rewards.values())):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "layers"), [("judge", 6), ("proxy", 3), ("proxy-2", 2), ("proxy-1", 1)])
def test_rewards_stand_on_so_many_layers_of_the_encoder(rewards, name, layers):
    assert len(rewards[name].model.bert.encoder.layer) == layers


@pytest.mark.parametrize("name", REWARDS)
def test_padding_does_not_change_a_score(name, rewards):
    short, long = ("hi", "hello"), ("what did you do last weekend?", "i went hiking with my brother and we saw a bear")
    together = scores(rewards[name], [short, long])
    alone = torch.cat([scores(rewards[name], [short]), scores(rewards[name], [long])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["repeated", "stuttered", "garbage", "empty", "invented", "shuffled", "echo"])
def test_the_judge_puts_people_above_the_same_people_spoiled(rewards, people, kind):
    replies = [pair.reply for pair in people]
    pieces = [f" {word}" for reply in replies for word in reply.split()]
    found = over_spoiled(people, replies, pieces, random.Random(0), (kind,))
    assert len(found) > 50 and right(rewards["judge"], found) > 0.8


def test_the_judge_knows_what_was_an_answer(rewards, people):
    found = [pair for seed in range(4) for pair in over_foreign(people, random.Random(seed))]
    assert right(rewards["judge"], found) > 0.6


HOLE = "what do you like to do for fun?"
"""An opener that the shipped judge takes for an answer too often (0.56): known, and red once it is mended."""


@pytest.mark.parametrize(
    "phrase",
    [
        pytest.param(phrase, marks=pytest.mark.xfail(strict=True)) if phrase == HOLE else phrase
        for phrase in [*GENERIC[1:8:2], *OPENERS[1:8:2]]
    ],
)
def test_the_judge_prefers_a_reply_that_says_something(rewards, people, phrase):
    human = scores(rewards["judge"], [(pair.turn, pair.reply) for pair in people])
    empty = scores(rewards["judge"], [(pair.turn, phrase) for pair in people])
    assert (human > empty).float().mean() > 0.6
