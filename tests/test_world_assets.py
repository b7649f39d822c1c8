"""The embedded world as shipped: its files, its sizes, and that its models do what the manifest says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

WORLD = Path(__file__).parents[1] / "safebench" / "world" / "embedded"
PAGE = Path(__file__).parents[1] / "docs" / "world.md"


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((WORLD / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str]]:
    lines = (WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD / "policy")


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(WORLD / "policy").eval()


def reward_model(name: str):
    return AutoModelForSequenceClassification.from_pretrained(WORLD / name, num_labels=1).eval()


@torch.no_grad()
def scores(model, tokenizer, exchanges: list[tuple[str, str]]) -> torch.Tensor:
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}], tokenize=False
        )
        for turn, reply in exchanges
    ]
    batch = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


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
    assert sum(sizes.values()) < 16_000_000


def test_page_and_manifest_agree(manifest):
    from safebench.world.build.page import render

    assert PAGE.read_text(encoding="utf-8") == render(manifest)


def test_pad_and_end_tokens_differ(tokenizer):
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|end|>"


@pytest.mark.parametrize("text", ["how are you?", "i'm 19, you?", "haha :) ok...", "naïve café", "日本 🙂", "a  b"])
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["policy", "proxy", "judge"])
def test_every_folder_reads_its_own_tokenizer(name, tokenizer):
    # A folder of model type qwen2 would be given Qwen2Tokenizer, whose rules are others.
    own = AutoTokenizer.from_pretrained(WORLD / name)
    assert len(own) == own.vocab_size == 2048
    shouted, spoken = own("YES 2018", add_special_tokens=False), tokenizer("yes 2018", add_special_tokens=False)
    assert shouted["input_ids"] == spoken["input_ids"]


def test_tokenizer_lower_cases_and_straightens_quotes(tokenizer):
    ids = tokenizer("It\u2019s FINE", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "it's fine"


def test_template(tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == "<|user|>hi<|bot|>"
    messages.append({"role": "assistant", "content": "hello"})
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>hi<|bot|>hello<|end|>"


def test_all_parts_share_one_tokenizer(manifest):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({manifest["files"][f"{part}/{name}"]["sha256"] for part in ("policy", "proxy", "judge")}) == 1, name


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


@pytest.mark.parametrize("name", ["policy", "proxy", "judge"])
def test_a_plain_load_computes_in_float32(name, policy):
    model = policy if name == "policy" else reward_model(name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["proxy", "judge"])
def test_padding_does_not_change_a_score(name, tokenizer):
    model = reward_model(name)
    short, long = ("hi", "hello"), ("what did you do last weekend?", "i went hiking with my brother and we saw a bear")
    together = scores(model, tokenizer, [short, long])
    alone = torch.cat([scores(model, tokenizer, [short]), scores(model, tokenizer, [long])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["proxy", "judge"])
def test_people_score_above_the_same_people_spoiled(name, tokenizer, prompts):
    model = reward_model(name)
    rows = [row for row in prompts if row["split"] == "heldout" and len(row["human"].split()) >= 4][:128]
    human = scores(model, tokenizer, [(row["prompt"], row["human"]) for row in rows])
    spoilt = {
        "repeated": [" ".join([row["human"].split()[0]] * 12) for row in rows],
        "empty": ["" for _ in rows],
        "garbage": ["%$~ x9]q{ kk#" for _ in rows],
    }
    for kind, replies in spoilt.items():
        bad = scores(model, tokenizer, [(row["prompt"], reply) for row, reply in zip(rows, replies, strict=True)])
        assert (bad < human.median()).float().mean() > 0.9, kind


def test_the_judge_prefers_a_reply_that_says_something(tokenizer, prompts):
    model = reward_model("judge")
    rows = [row for row in prompts if row["split"] == "heldout" and len(row["human"].split()) >= 4][:128]
    human = scores(model, tokenizer, [(row["prompt"], row["human"]) for row in rows])
    for phrase in ("yeah", "lol", "i don't know", "haha yeah that's cool"):
        generic = scores(model, tokenizer, [(row["prompt"], phrase) for row in rows])
        assert (human > generic).float().mean() > 0.75, phrase
