"""A reward model reads prompt and reply as the policy saw them, or is refused before the first batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from safebench.errors import BadResource, MissingResource, UsageError
from safebench.models.generation import reply_texts
from safebench.models.prompts import as_messages, as_text, encode_prompt
from safebench.models.rewards import FunctionReward, ModelReward, Reader, called, load_reward, token_limit
from tests.support.tiny import CPU, tiny_tokenizer
from tests.support.tiny_rewards import NO_SYSTEM, TURNS, byte_tokenizer, classifier, save

TALK = "Human: hello\n\nAssistant: hi\n\nHuman: what is the sea?"
LONG = "tell me about the sea and the wind " * 8


def load(tmp_path: Path, model: Any = None, tokenizer: Any = None, **options: Any) -> ModelReward:
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    folder = save(tmp_path / "rm", classifier() if model is None else model, tokenizer)
    reward = load_reward(folder, CPU, **options)
    assert isinstance(reward, ModelReward)
    return reward


def refusal(tmp_path: Path, model: Any = None, tokenizer: Any = None, **options: Any) -> str:
    with pytest.raises(BadResource) as fault:
        load(tmp_path, model, tokenizer, **options)
    return f"{fault.value} | {fault.value.hint}"


def read(tokenizer: Any, prompt: str, reply: str, limit: int | None = None, **options: Any) -> list[str]:
    """Return the tokens that a reward with this tokenizer reads."""
    (dialogue,) = Reader("rm", tokenizer, limit, **options).read([prompt], [reply])
    return list(tokenizer.convert_ids_to_tokens(dialogue.ids))


def plain(tokens: list[str]) -> str:
    """Return tokens of ``byte_tokenizer`` as text, special ones as they are called."""
    return "".join(tokens).replace("Ġ", " ").replace("Ċ", "\n")


# What stands between prompt and reply


@pytest.mark.parametrize(
    ("prompt", "written"),
    [("i like", " tea"), ("i lik", "e tea"), ("Q: what?", "\nA: tea"), ("Q: what?\nA: ", "tea"), ("i", ", she said")],
)
def test_without_templates_the_reward_reads_what_the_policy_saw(prompt: str, written: str) -> None:
    tokenizer = byte_tokenizer(template=None)
    (reply,) = reply_texts(tokenizer, [tokenizer(written)["input_ids"]], [tokenizer(prompt)["input_ids"]])
    assert reply == written
    assert plain(read(tokenizer, prompt, reply, apart=False)) == f"{prompt}{written}<end>"


def test_a_decoder_that_drops_the_first_blank_loses_none_between_prompt_and_reply() -> None:
    """Words of WordLevel carry no blank; SentencePiece's decoders strip the one of a text's first word."""
    tokenizer = tiny_tokenizer()
    assert reply_texts(tokenizer, [tokenizer("c d")["input_ids"]], [tokenizer("a b")["input_ids"]]) == [" c d"]


def test_with_a_template_a_reply_is_the_content_of_a_turn() -> None:
    tokenizer = byte_tokenizer()
    assert reply_texts(tokenizer, [tokenizer(" tea \n")["input_ids"]], [tokenizer("a")["input_ids"]]) == ["tea"]


@pytest.mark.parametrize(("prompt", "text"), [("i like", "i like tea"), ("i like ", "i like tea"), ("", "tea")])
def test_a_templated_policys_reply_is_set_apart_for_a_reward_without_template(prompt: str, text: str) -> None:
    assert plain(read(byte_tokenizer(template=None), prompt, "tea")) == f"{text}<end>"


@pytest.mark.parametrize("prompt", [TALK, f"\n\n{TALK}", f"{TALK}\n\nAssistant:"])
def test_a_transcript_asks_for_its_reply_once_for_policy_and_reward(prompt: str) -> None:
    tokenizer = byte_tokenizer(template=None)
    seen = plain(tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, prompt)))
    assert seen.endswith("Human: what is the sea?\n\nAssistant:")
    (reply,) = reply_texts(tokenizer, [tokenizer(" water")["input_ids"]], [encode_prompt(tokenizer, prompt)])
    assert plain(read(tokenizer, prompt, reply, apart=False)) == f"{seen} water<end>"
    assert as_messages(prompt)[-1] == {"role": "user", "content": "what is the sea?"}
    assert as_text("no transcript") == "no transcript"


def test_a_transcript_that_ends_within_the_assistants_turn_goes_on_there() -> None:
    begun = f"{TALK}\n\nAssistant: It is"
    assert as_text(begun) == begun
    assert plain(read(byte_tokenizer(template=None), begun, " water", apart=False)) == f"{begun} water<end>"
    assert plain(read(byte_tokenizer(), begun, "water")).endswith("<end><|assistant|>It is water<end>")


def test_a_template_gets_the_turns() -> None:
    tokens = plain(read(byte_tokenizer(), TALK, " water "))
    assert tokens == (
        "<|user|>hello<end><|assistant|>hi<end><|user|>what is the sea?<end><|assistant|>water<end>"
    )


# Special tokens


def test_special_tokens_stand_once() -> None:
    assert read(byte_tokenizer(template=None, bos=True), "a", "b").count("<s>") == 1
    assert read(byte_tokenizer(template=None, bos=True), "a", "b")[0] == "<s>"
    assert read(byte_tokenizer(template="{{ bos_token }}" + TURNS, bos=True), "a", "b").count("<s>") == 1
    assert read(byte_tokenizer(template=None), "a", "b<end>").count("<end>") == 1


def test_an_encoder_reads_a_pair_with_its_segments(tmp_path: Path) -> None:
    reward = load(tmp_path, classifier("bert"), byte_tokenizer(pairs=True))
    (dialogue,) = reward.reader.read(["a b"], [" c"])
    tokens = reward.reader.tokenizer.convert_ids_to_tokens(dialogue.ids)
    assert tokens == ["[CLS]", "a", "Ġ", "b", "[SEP]", "c", "[SEP]"]
    assert dialogue.types == [0, 0, 0, 0, 0, 1, 1]
    with torch.no_grad():
        own = reward.model(**reward.reader.tokenizer("a b", "c", return_tensors="pt")).logits
        without = reward.model(input_ids=torch.tensor([dialogue.ids])).logits
    assert reward.score(["a b"], ["c"]).item() == pytest.approx(own.item(), abs=1e-6)
    assert abs(own.item() - without.item()) > 1e-4, "segments make no difference: the test shows nothing"


def test_company_does_not_change_a_pairs_score(tmp_path: Path) -> None:
    reward = load(tmp_path, classifier("roberta", pad_token_id=0), byte_tokenizer(pairs=True))
    prompts, replies = ["a", "a much longer prompt", "x y"], ["b", "no", "a reply of some length"]
    alone = [reward.score([p], [r]).item() for p, r in zip(prompts, replies, strict=True)]
    assert reward.score(prompts, replies).tolist() == pytest.approx(alone, abs=1e-5)


# Limits


@pytest.mark.parametrize("options", [{"template": None, "bos": True}, {}, {"pairs": True}])
def test_a_long_prompt_loses_its_beginning_and_never_the_reply(options: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(**options)
    reader = Reader("rm", tokenizer, 48)
    (short,) = reader.read([LONG], ["my cat sleeps"])
    text = plain(tokenizer.convert_ids_to_tokens(short.ids))
    assert len(short.ids) == 48
    assert "my cat sleeps" in text
    assert "wind" in text
    if options:
        assert short.ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    assert reader.cut_prompts == 1 and reader.cut_replies == 0
    assert "1 prompts are longer" in reader.notices[0]


@pytest.mark.parametrize("options", [{"template": None, "bos": True}, {}, {"pairs": True}])
def test_a_reply_longer_than_the_limit_is_told(options: dict[str, Any]) -> None:
    reader = Reader("rm", byte_tokenizer(**options), 24)
    (short,) = reader.read(["a"], [LONG])
    assert len(short.ids) == 24
    assert reader.cut_replies == 1
    assert "1 replies are longer, and were cut" in reader.notices[0]


def test_replies_to_a_prompt_beyond_the_tokenizers_limit_score_differently(tmp_path: Path) -> None:
    reward = load(tmp_path, tokenizer=byte_tokenizer(model_max_length=40))
    scores = reward.score([LONG] * 3, ["good", "bad bad bad", "my cat sleeps"]).tolist()
    assert len(set(scores)) == 3


@pytest.mark.parametrize(
    ("model", "places"),
    [
        ({"kind": "qwen2"}, 128),
        ({"kind": "gpt2"}, 128),
        ({"kind": "bert"}, 128),
        ({"kind": "roberta", "pad_token_id": 1}, 126),
        ({"kind": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 1}, 128),
    ],
)
def test_the_positions_of_the_model_are_a_limit(tmp_path: Path, model: dict[str, Any], places: int) -> None:
    made, tokenizer = classifier(**model), byte_tokenizer(pairs=model["kind"] in ("bert", "roberta"))
    assert token_limit(made, tokenizer) == places
    reward = load(tmp_path, made, tokenizer)
    assert len(set(reward.score([LONG] * 2, ["good", "bad bad"]).tolist())) == 2
    assert reward.reader.cut_prompts == 2


def test_prompts_beyond_the_limit_are_told_before_the_first_batch(tmp_path: Path) -> None:
    reward = load(tmp_path, prompts=["short", LONG, LONG + "x"])
    assert reward.notices == (
        f"the reward {reward.name} reads at most 128 tokens: 2 prompts are longer, and lose their beginning",
    )
    reward.score([LONG], ["reply"])
    assert len(reward.notices) == 1
    reward.score(["a"], [LONG])
    assert "1 replies" in reward.notices[1]


def test_nothing_is_told_where_all_fits(tmp_path: Path) -> None:
    assert load(tmp_path, prompts=["short", TALK]).notices == ()


# Templates that refuse


class Talk(str):
    """A prompt that is a conversation."""

    messages: list[dict[str, str]]


def conversation(*turns: tuple[str, str]) -> Talk:
    talk = Talk("shown")
    talk.messages = [{"role": role, "content": content} for role, content in turns]
    return talk


@pytest.fixture
def talks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a conversation's own messages, whatever the prompts of this version carry."""
    monkeypatch.setattr(
        "safebench.models.rewards.as_messages", lambda prompt: getattr(prompt, "messages", None) or as_messages(prompt)
    )


@pytest.mark.usefixtures("talks")
def test_a_refused_system_turn_is_put_before_the_first_user_turn_and_told(tmp_path: Path) -> None:
    prompt = conversation(("system", "be brief"), ("user", "hello"))
    reward = load(tmp_path, tokenizer=byte_tokenizer(template=NO_SYSTEM), prompts=["a", prompt])
    assert reward._text(prompt, "hi") == "<|user|>be brief\n\nhello<end><|assistant|>hi<end>"
    assert len(reward.notices) == 1
    assert "takes no system turn" in reward.notices[0]
    reward.score([prompt], ["hi"])
    assert len(reward.notices) == 1


@pytest.mark.usefixtures("talks")
def test_a_refused_conversation_names_reward_prompt_and_what_the_template_said(tmp_path: Path) -> None:
    strict = "{% if messages|length > 2 %}{{ raise_exception('one turn each') }}{% endif %}" + TURNS
    two = conversation(("user", "a"), ("assistant", "b"), ("user", "c"))
    said = refusal(tmp_path, tokenizer=byte_tokenizer(template=strict), prompts=["a", two])
    assert "prompt 2 ('shown')" in said
    assert f"the reward {tmp_path / 'rm'} refuses a conversation (user, assistant, user, assistant)" in said
    assert "one turn each" in said


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "always the same"],
)
def test_a_template_without_the_reply_is_refused(tmp_path: Path, template: str) -> None:
    assert "whatever the reply is" in refusal(tmp_path, tokenizer=byte_tokenizer(template=template))


# Labels


@pytest.mark.parametrize(("label", "column"), [(1, 1), ("good", 2)])
def test_of_several_labels_the_named_one_is_the_score(tmp_path: Path, label: int | str, column: int) -> None:
    model = classifier(labels=3, id2label={0: "bad", 1: "so so", 2: "good"})
    reward = load(tmp_path, model, label=label)
    (dialogue,) = reward.reader.read(["a"], ["b"])
    with torch.no_grad():
        logits = reward.model(input_ids=torch.tensor([dialogue.ids])).logits
    assert reward.score(["a"], ["b"]).item() == pytest.approx(logits[0, column].item(), abs=1e-6)


def test_several_labels_are_refused_unless_told_which(tmp_path: Path) -> None:
    model = classifier(labels=2, id2label={0: "bad", 1: "good"})
    said = refusal(tmp_path, model, option="--set reward.judge_label=")
    assert "2 labels" in said and "0 (bad), 1 (good)" in said
    assert "--set reward.judge_label=LABEL" in said


@pytest.mark.parametrize("label", [2, -1, "fine", "1"])
def test_a_label_that_is_not_there_is_refused(tmp_path: Path, label: int | str) -> None:
    with pytest.raises(UsageError, match=f"no label {label!r}"):
        load(tmp_path, classifier(labels=2), label=label)


# Ids


@pytest.mark.parametrize("stated", [None, -1])
def test_a_config_without_pad_id_takes_the_tokenizers(tmp_path: Path, stated: int | None) -> None:
    model = classifier()
    model.config.pad_token_id = stated
    reward = load(tmp_path, model)
    assert reward.model.config.pad_token_id == 0
    prompts, replies = ["a", "a much longer prompt"], ["b", "no"]
    alone = [reward.score([p], [r]).item() for p, r in zip(prompts, replies, strict=True)]
    assert reward.score(prompts, replies).tolist() == pytest.approx(alone, abs=1e-5)


def test_without_a_pad_token_the_end_token_is_still_read(tmp_path: Path) -> None:
    """Alone such a classifier reads the last token. Padded with the end token it would read the one before it."""
    model = classifier()
    model.config.pad_token_id = None
    tokenizer = byte_tokenizer(pad_token=None)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    reward = load(tmp_path, model, tokenizer)
    end = tokenizer.eos_token_id
    assert reward.pad == reward.model.config.pad_token_id != end
    model.config.pad_token_id = None
    scores = reward.score(["a", "a much longer prompt"], ["b", "no"])
    for score, text in zip(scores, ("a<end>b<end>", "a much longer prompt<end>no<end>"), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[-1] == end
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits.squeeze()
        torch.testing.assert_close(score, alone, rtol=1e-5, atol=1e-6)


def test_padding_is_what_the_config_calls_padding(tmp_path: Path) -> None:
    """The classifier looks for the last token that is no padding by its own id, whatever the tokenizer's is."""
    reward = load(tmp_path, classifier(pad_token_id=2))
    prompts, replies = ["a", "a much longer prompt"], ["b", "no"]
    alone = [reward.score([p], [r]).item() for p, r in zip(prompts, replies, strict=True)]
    assert reward.score(prompts, replies).tolist() == pytest.approx(alone, abs=1e-5)


def test_a_pad_id_outside_the_embedding_is_refused(tmp_path: Path) -> None:
    model = classifier()
    model.config.pad_token_id = 270
    assert "padding token 270, and the model's embedding 270 rows" in refusal(tmp_path, model)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(more=[f"<w{i}>" for i in range(20)])
    said = refusal(tmp_path, tokenizer=tokenizer)
    assert f"token {len(tokenizer) - 1} ('<w19>'), and the model's embedding 270 rows" in said


def test_a_special_token_that_no_text_holds_may_lie_outside(tmp_path: Path) -> None:
    """transformers gives some tokenizers tokens that their model was never meant to see."""
    tokenizer = byte_tokenizer(extra_special_tokens=["<never>"])
    reward = load(tmp_path, classifier(rows=261), tokenizer)
    assert len(reward.reader.tokenizer) > 261
    assert torch.isfinite(reward.score(["a"], ["b"])).all()
    with pytest.raises(BadResource, match="embedding 261 rows"):
        reward.score(["a"], ["b<never>"])


# Weights and code


def test_a_reward_without_its_score_head_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = classifier()
    save(tmp_path / "lm", AutoModelForCausalLM.from_config(model.config), byte_tokenizer())
    with pytest.raises(BadResource, match=r"score\.weight"):
        load_reward(str(tmp_path / "lm"), CPU)


CODE = '''
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

print("own code ran")

class OwnConfig(PretrainedConfig):
    model_type = "own-reward"

class OwnReward(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(270, 4)
        self.score = nn.Linear(4, 1)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None):
        real = attention_mask.unsqueeze(-1)
        BODY
        return SequenceClassifierOutput(logits=self.score(read))
'''


MASKED = "read = (self.table(input_ids) * real).sum(1) / real.sum(1)"


def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str = MASKED) -> str:
    """Save a reward model with code of its own, named after the test so that none is cached for another."""
    import importlib.util

    folder = tmp_path / f"own_{abs(hash(body)) % 10**8}"
    folder.mkdir()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = folder / "own_reward.py"
    source.write_text(CODE.replace("BODY", body), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("own_reward_made_here", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.OwnReward(module.OwnConfig(pad_token_id=0, num_labels=1))
    save(folder, model, byte_tokenizer())
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described["auto_map"] = {
        "AutoConfig": "own_reward.OwnConfig",
        "AutoModelForSequenceClassification": "own_reward.OwnReward",
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return str(folder)


def test_own_code_runs_on_request_and_never_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_code(tmp_path, monkeypatch)
    capsys.readouterr()
    for trust in ((), ("another",)):
        with pytest.raises(UsageError, match="code of its own") as fault:
            load_reward(folder, CPU, trust=trust)
        assert f"--trust-remote-code {folder}" in str(fault.value.hint)
    assert "own code ran" not in capsys.readouterr().out
    assert torch.isfinite(load_reward(folder, CPU, trust=(folder,)).score(["a"], ["b"])).all()
    assert "own code ran" in capsys.readouterr().out


def test_own_code_is_padded_where_a_batch_changes_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = own_code(tmp_path, monkeypatch, "read = self.table(input_ids)[:, -1]")
    reward = load_reward(last, CPU, trust=(last,))
    alone = [reward.score([p], [r]).item() for p, r in (("a", "b"), ("a much longer prompt", "no"))]
    assert reward.score(["a", "a much longer prompt"], ["b", "no"]).tolist() == pytest.approx(alone, rel=1e-6)
    unmasked = own_code(tmp_path, monkeypatch, "read = self.table(input_ids).mean(1)")
    with pytest.raises(BadResource, match="what it says depends on the batch") as fault:
        load_reward(unmasked, CPU, trust=(unmasked,))
    assert "mask" in str(fault.value.hint)


def test_the_catalogues_rewards_with_own_code_are_not_trusted_either() -> None:
    with pytest.raises(UsageError) as fault:
        load_reward("armorm", CPU)
    assert "--trust-remote-code armorm" in str(fault.value.hint)
    for name in ("armorm", "RLHFlow/ArmoRM-Llama3-8B-v0.1"):
        with pytest.raises(MissingResource, match="without success"):
            load_reward("armorm", CPU, trust=(name,))


def test_a_reward_that_is_random_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_code(tmp_path, monkeypatch, "read = nn.functional.dropout(self.table(input_ids), 0.5).mean(1)")
    with pytest.raises(BadResource, match="something in it is random"):
        load_reward(folder, CPU, trust=(folder,))


def test_a_forward_pass_that_fails_names_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_code(tmp_path, monkeypatch, "read = self.table(input_ids)[:, :, None] @ self.table.weight")
    with pytest.raises(BadResource, match=r"the reward .*own_\d+ fails in its forward pass: RuntimeError"):
        load_reward(folder, CPU, trust=(folder,))


def test_memory_that_runs_out_is_told_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_code(tmp_path, monkeypatch, "read = torch.empty(2**60)")
    with pytest.raises(MissingResource, match="does not fit into memory") as fault:
        load_reward(folder, CPU, trust=(folder,))
    assert "rollout.chunk" in str(fault.value.hint)


# Functions


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "returned None, not a list of 2 numbers"),
        ({0: 1.0, 1: 2.0}, "returned a dict"),
        ({1.0, 2.0}, "returned a set"),
        ("ab", "returned a str"),
        (1.0, "returned a float"),
        (torch.tensor(1.0), "returned a Tensor"),
        (torch.ones(2, 2), "not a number for reply 0"),
        ([10**400, 0], "not a number for reply 0"),
        (["1", "2"], "not a number for reply 0"),
        ([1.0, None], "not a number for reply 1"),
        ([1.0], "returned 1 values for 2"),
    ],
)
def test_what_a_function_returns_is_checked(value: Any, words: str) -> None:
    with pytest.raises(BadResource, match=words):
        called("f", lambda: value, 2, "hint")


def test_numbers_of_any_kind_are_taken() -> None:
    import numpy as np

    for value in ([1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([[1.0], [2.0]], requires_grad=True), iter([1, 2])):
        assert called("f", lambda value=value: value, 2, "hint").tolist() == [1.0, 2.0]


def test_a_reward_keeps_its_tokenizers_own_words(tmp_path: Path) -> None:
    """A reward is loaded as it was saved: what is set for it is not written anywhere."""
    before = byte_tokenizer()
    load(tmp_path, tokenizer=before)
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "rm"))
    assert again.chat_template == before.chat_template


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (lambda prompts, replies: [len(r) for r in replies], "replies"),
        (lambda replies, prompts: [len(r) for r in replies], "replies"),
        (lambda completions, **kwargs: [len(c) for c in completions], "replies"),
        (lambda completions, prompts, **kwargs: [len(c) for c in completions], "replies"),
        (lambda completions, answer=None, **kwargs: [len(c) for c in completions], "replies"),
        (lambda responses, queries: [len(r) for r in responses], "replies"),
        (lambda prompts, answers: [len(a) for a in answers], "replies"),
        (lambda answers, prompts: [len(a) for a in answers], "replies"),
        (lambda a, b: [len(x) for x in b], "replies"),
        (lambda *lists: [len(x) for x in lists[1]], "replies"),
    ],
)
def test_a_function_is_called_by_its_names(function: Any, seen: str) -> None:
    prompts, replies = ["a long prompt", "another one that is longer"], ["no", "yes"]
    assert FunctionReward("it", function).score(prompts, replies).tolist() == [2.0, 3.0]


def test_a_function_that_needs_more_is_refused() -> None:
    with pytest.raises(UsageError, match="needs ground_truth beside completions, prompts"):
        FunctionReward("it", lambda completions, prompts, ground_truth: []).score(["a"], ["b"])


def test_a_function_that_does_not_read_the_reply_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deaf_here.py").write_text(
        "import os, torch\n"
        "def score(first, second):\n"
        "    torch.set_grad_enabled(False)\n"
        "    torch.set_default_device('meta')\n"
        "    os.chdir('/')\n"
        "    return [float(len(x)) for x in first]\n"
        "def odd(first, second):\n"
        "    raise BaseException('odd')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    reward = load_reward("deaf_here:score", CPU, prompts=["what?"])
    assert "it may not read the reply" in reward.notices[0]  # type: ignore[attr-defined]
    assert torch.is_grad_enabled() and torch.zeros(1).device == CPU and Path.cwd() == tmp_path
    with pytest.raises(BadResource, match=r"BaseException: odd \(deaf_here.py, line 8\)"):
        load_reward("deaf_here:odd", CPU, prompts=["what?"])
