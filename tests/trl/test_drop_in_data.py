"""What the drop-in reads prompts from, and what scores its replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import DataCollatorWithPadding

from safebench.errors import BadResource, UsageError
from safebench.models.generation import Rollout
from safebench.models.rewards import score
from safebench.trl.data import Rows, read_prompts
from safebench.trl.parts import ClassifierReward, make_reward
from tests.support.drop_in import CHAT, classifier, policy_model, same, trainer, weights
from tests.support.tiny import PROMPTS, tiny_policy, tiny_rollout, tiny_tokenizer
from tests.support.trl_defects import TRL, make

TALK = [{"role": "user", "content": "b c"}]
IDS = {word: tiny_tokenizer()(word)["input_ids"][0] for word in "abcdefuz"}


def chatting() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def ids(*words: str) -> list[int]:
    return [IDS[word] for word in words]


@pytest.mark.parametrize(
    ("row", "expected", "text"),
    [
        ({"input_ids": ids("a", "b")}, ids("a", "b"), "a b"),
        ({"input_ids": [0, 0, *ids("a")]}, ids("a"), "a"),
        ({"input_ids": [0, *ids("a")], "attention_mask": [1, 1]}, [0, *ids("a")], "a"),
        ({"input_ids": torch.tensor(ids("a", "b"))}, ids("a", "b"), "a b"),
        ({"input_ids": ids("a"), "query": "z"}, ids("a"), "z"),
        ({"prompt": "a b"}, ids("a", "b"), "a b"),
        ({"query": "a b"}, ids("a", "b"), "a b"),
        ({"text": "a b"}, ids("a", "b"), "a b"),
        ({"prompt": TALK}, ids("u", "b", "c", "a"), "b c"),
        ({"messages": TALK}, ids("u", "b", "c", "a"), "b c"),
        ({"messages": [*TALK, {"role": "assistant", "content": "z"}]}, ids("u", "b", "c", "a"), "b c"),
        ({"messages": np.array(TALK, dtype=object)}, ids("u", "b", "c", "a"), "b c"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "b c"}]}]}, ids("u", "b", "c", "a"), "b c"),
    ],
)
def test_rows_in_all_their_forms(row: dict[str, Any], expected: list[int], text: str) -> None:
    rows = Rows("data", [row], chatting())
    assert (rows.tokens(0), rows.text(0)) == (expected, text)


def test_a_prompt_that_ends_with_the_assistant_is_continued() -> None:
    rows = Rows("data", [{"prompt": [*TALK, {"role": "assistant", "content": "z"}]}], chatting())
    assert rows.tokens(0) == ids("u", "b", "c", "a", "z")


def test_a_data_sets_own_types_and_order_are_kept() -> None:
    rows = Rows("data", Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]), tiny_tokenizer())
    prompts = read_prompts(rows, rows)
    assert list(prompts.train) == ["a", "b"]
    assert prompts.ids("heldout", 1, tiny_tokenizer()) == ids("b")
    assert len(rows.first(1).texts()) == 1


def test_a_collator_makes_the_ids() -> None:
    def backwards(features: list[dict[str, Any]]) -> dict[str, Any]:
        return {"input_ids": [[0, *reversed(feature["input_ids"])] for feature in features]}

    rows = Rows("data", [{"input_ids": ids("a", "b")}], tiny_tokenizer(), backwards)
    assert rows.tokens(0) == ids("b", "a")


def test_transformers_own_collator_changes_nothing() -> None:
    tokenizer = tiny_tokenizer()
    rows = Rows("data", [{"input_ids": ids("a", "b")}], tokenizer, DataCollatorWithPadding(tokenizer))
    assert rows.tokens(0) == ids("a", "b")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "empty"),
        ([{"label": 1}], "no prompt in row 0.*label"),
        ([{"prompt": TALK}], "no chat template"),
        ([{"input_ids": []}], "row 0 of data has no tokens"),
        ([{"prompt": 3}], "row 0 of data holds no prompt: prompt is no text"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], "row 0 of data, message 1.*'image'"),
    ],
)
def test_unfit_data_is_named(dataset: list[Any], message: str) -> None:
    with pytest.raises(BadResource, match=message):
        Rows("data", dataset, tiny_tokenizer()).tokens(0)


def test_a_stream_is_refused() -> None:
    with pytest.raises(UsageError, match="IterableDataset"):
        Rows("data", IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), tiny_tokenizer())


def test_prompts_may_be_fewer_than_a_batch(tmp_path: Path) -> None:
    made = trainer(tmp_path, train_dataset=[{"prompt": "a b"}, {"prompt": "c"}], config={"total_episodes": 8})
    made.train()
    assert made.state.global_step == 2
    assert made.state.epoch == 4.0


def rollout(texts: Any = PROMPTS) -> Rollout:
    return tiny_rollout(tiny_policy(), texts)


def test_a_classifier_reads_the_ids_at_the_last_token_whatever_pads() -> None:
    policy, batch, model = tiny_policy(), rollout(), classifier()
    found = ClassifierReward(model, policy, 3).score_rollout(batch)
    for row in range(len(PROMPTS)):
        real = batch.ids[row][batch.attention[row].bool()]
        with torch.no_grad():
            states = model.model(input_ids=real[None], use_cache=False).last_hidden_state
            expected = model.score(states[0, -1])
        torch.testing.assert_close(found[row], expected.squeeze(), rtol=1e-5, atol=1e-6)


def test_the_last_token_of_a_classifier_is_the_stop_token() -> None:
    policy, batch, model = tiny_policy(), rollout(), classifier()
    assert batch.ended.any()
    before = ClassifierReward(model, policy, 8).score_rollout(batch)
    with torch.no_grad():
        model.get_input_embeddings().weight[list(policy.stop_ids)] += 1.0
    changed = ClassifierReward(model, policy, 8).score_rollout(batch) != before
    assert (changed == batch.ended).all()


def test_a_classifier_of_another_tokenizer_is_refused() -> None:
    model = classifier()
    model.resize_token_embeddings(10)
    with pytest.raises(BadResource, match="knows 10 tokens"):
        ClassifierReward(model, tiny_policy(), 3)


def test_a_classifier_with_several_scores_is_refused() -> None:
    with pytest.raises(BadResource, match="2 scores"):
        ClassifierReward(classifier(labels=2), tiny_policy(), 3)


def test_a_model_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(BadResource, match="has no `score`"):
        make_reward(policy_model(), tiny_policy(), 3)


def called(function: Any, dataset: list[dict[str, Any]], tokenizer: Any = None) -> torch.Tensor:
    """Score replies to a data set's prompts."""
    policy = tiny_policy()
    texts = [Rows("data", dataset, tokenizer or chatting()).text(i) for i in range(len(dataset))]
    batch = tiny_rollout(policy, [str(text) for text in texts])
    object.__setattr__(batch, "prompts", texts)
    return score(make_reward(function, policy, 3), batch)


def test_our_form_of_function_gets_texts_by_place() -> None:
    seen: list[Any] = []

    def length(asked: list[str], replies: list[str]) -> list[float]:
        seen.extend([asked, replies])
        return [float(len(reply)) for reply in replies]

    found = called(length, [{"prompt": "a b"}, {"prompt": "c"}])
    assert seen[0] == ["a b", "c"]
    assert all(type(text) is str for text in seen[0])
    assert found.tolist() == [len(reply) for reply in seen[1]]


def test_trls_form_of_function_gets_columns_by_name() -> None:
    seen: dict[str, Any] = {}

    def reward(completions: list[str], **more: Any) -> list[float]:
        seen.update(more, completions=completions)
        return [1.0] * len(completions)

    called(reward, [{"prompt": "a b", "answer": 3}, {"prompt": "c", "answer": 4}])
    assert seen["prompts"] == ["a b", "c"]
    assert seen["answer"] == [3, 4]
    assert "prompt" not in seen
    decoded = tiny_tokenizer().batch_decode(seen["completion_ids"], skip_special_tokens=True)
    # Without a chat template a reply begins with the blank behind its prompt.
    assert decoded == [reply.strip() + end for reply, end in zip(seen["completions"], ends(decoded, seen), strict=True)]


def ends(decoded: list[str], seen: dict[str, Any]) -> list[str]:
    """What the stop token adds to the text: nothing, or a digit."""
    return [text[len(reply.strip()) :] for text, reply in zip(decoded, seen["completions"], strict=True)]


def test_a_function_gets_only_what_it_names() -> None:
    def reward(completions: list[str], answer: list[int]) -> list[float]:
        return [float(a) for a in answer]

    assert called(reward, [{"prompt": "a", "answer": 3}, {"prompt": "c", "answer": 4}]).tolist() == [3.0, 4.0]


def test_conversations_come_as_messages() -> None:
    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        assert prompts == [TALK]
        assert [set(m) for m in completions[0]] == [{"role", "content"}]
        return [2.0]

    assert called(reward, [{"prompt": TALK}]).tolist() == [2.0]


def test_a_function_of_one_argument_is_refused() -> None:
    with pytest.raises(UsageError, match=r"takes \(text\)"):
        make_reward(lambda text: [0.0], tiny_policy(), 3)


def test_something_that_cannot_score_is_refused() -> None:
    with pytest.raises(UsageError, match="reward_model is a int"):
        make_reward(3, tiny_policy(), 3)


def test_a_named_reward_is_ours() -> None:
    found = make_reward("safe-heuristic", tiny_policy(), 3)
    assert found.score(["a"], ["b c"]).tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "text"])
def test_a_reward_that_is_no_number_ends_the_run_and_moves_no_weight(bad: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path, reward_model=lambda prompts, replies: [0.0] * 3 + [bad])
    before = weights(made.model)
    with pytest.raises(BadResource, match="reward"):
        made.train()
    assert same(weights(made.model), before)


def test_a_function_that_raises_says_so(tmp_path: Path) -> None:
    def broken(prompts: list[str], replies: list[str]) -> list[float]:
        raise KeyError("x")

    with pytest.raises(BadResource, match="broken raised KeyError"):
        trainer(tmp_path, reward_model=broken).train()


def test_a_function_sees_the_trainers_state(tmp_path: Path) -> None:
    steps: list[int] = []

    def reward(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        steps.append(trainer_state.global_step)
        return [0.0] * len(completions)

    trainer(tmp_path, reward_model=reward).train()
    assert steps == [0, 1, 2, 3]


def padded(tokenizer: Any) -> list[dict[str, Any]]:
    """Rows that came padded, without a mask."""
    pad = tokenizer.pad_token_id
    words = ids("a", "b", "c")
    return [
        {"input_ids": [pad, pad, *words]},
        {"input_ids": [*words, pad, pad]},
        {"input_ids": [pad, *words, pad]},
        {"input_ids": words},
    ]


@pytest.mark.parametrize("pad", ["<pad>", "<end>"])
def test_padded_rows_are_read_as_trls_trainer_attends_to_them(pad: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = pad, "left"
    data = Dataset.from_list(padded(tokenizer) * 2)
    theirs = make(TRL, tmp_path / "trl", tokenizer=tokenizer, dataset=data, per_device_train_batch_size=8)
    (batch,) = theirs.get_train_dataloader()
    # The mask that TRL's trainer makes for every pass of policy, value and reward model.
    attended = [row[row != tokenizer.pad_token_id].tolist() for row in batch["input_ids"]]
    assert sorted(map(len, attended)) == [3] * 8
    for collator in (None, DataCollatorWithPadding(tokenizer)):
        ours = trainer(tmp_path / "ours", processing_class=tokenizer, train_dataset=data, data_collator=collator)
        assert list(ours._world.prompts.train_ids or []) == attended == [ids("a", "b", "c")] * 8


def test_within_a_prompt_the_end_token_stays_where_it_pads_too() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<end>"
    end = tokenizer.eos_token_id
    rows = Rows("data", [{"input_ids": [end, *ids("a"), end, *ids("b"), end]}], tokenizer)
    assert rows.tokens(0) == [*ids("a"), end, *ids("b")]
    masked = Rows("data", [{"input_ids": [end, *ids("a"), end], "attention_mask": [0, 1, 1]}], tokenizer)
    assert masked.tokens(0) == [*ids("a"), end]


def test_a_row_of_padding_alone_has_no_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<end>"
    with pytest.raises(BadResource, match="has no tokens"):
        Rows("data", [{"input_ids": [1, 1]}], tokenizer).tokens(0)


SPLITS = {"train": Dataset.from_list([{"prompt": "a"}]), "test": Dataset.from_list([{"prompt": "b"}])}


@pytest.mark.parametrize(
    ("dataset", "message", "hint"),
    [
        (DatasetDict(SPLITS), "a DatasetDict with the splits train, test", 'train_dataset=dataset["train"]'),
        (SPLITS, "a dict with the splits train, test", 'train_dataset=dataset["train"]'),
        (IterableDatasetDict({"valid": IterableDataset.from_generator(list)}), "splits valid", 'dataset["valid"]'),
        ({"input_ids": [[3, 4]], "id": [1]}, "a dict of columns .input_ids, id", "Dataset.from_dict"),
        ("imdb", "train_dataset is a str", 'load_dataset("imdb"'),
        ({}, "splits nothing", "dataset"),
    ],
)
def test_what_is_no_data_set_is_told_with_what_to_write(dataset: Any, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as fault:
        trainer(tmp_path, train_dataset=dataset)
    assert hint in str(fault.value.hint)


def test_splits_are_no_held_out_sets_unless_picked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="DatasetDict with the splits train, test") as fault:
        trainer(tmp_path, eval_dataset=DatasetDict(SPLITS))
    assert 'eval_dataset=dataset["test"]' in str(fault.value.hint)
    assert len(trainer(tmp_path, eval_dataset=SPLITS)._heldout) == 2
    with pytest.raises(UsageError, match=r"eval_dataset\['x'\] is a DatasetDict"):
        trainer(tmp_path, eval_dataset={"x": DatasetDict(SPLITS)})


def test_ids_beyond_the_models_vocabulary_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadResource, match=r"row \d of train_dataset has the token id 64; the model knows 64 tokens"):
        trainer(tmp_path, train_dataset=[{"input_ids": [3, 64]}] * 4)


class Raising:
    """A data set of the user's own, with a fault."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise OSError("the disk is gone")


def test_what_data_set_and_collator_raise_names_them(tmp_path: Path) -> None:
    with pytest.raises(BadResource, match="row 0 of train_dataset: OSError: the disk is gone"):
        trainer(tmp_path, train_dataset=Raising())

    def collator(features: list[dict[str, Any]]) -> dict[str, Any]:
        raise KeyError("labels")

    with pytest.raises(BadResource, match=r"data_collator \(function\) on a row of train_dataset: KeyError: 'labels'"):
        trainer(tmp_path, data_collator=collator).train()


def test_policy_and_reward_read_the_same_column() -> None:
    talk = [{"role": "user", "content": "from the messages"}]
    rows = Rows("data", [{"prompt": "from the prompt", "messages": talk}], chatting())
    assert rows.text(0) == "from the prompt" and rows.text(0).messages is None
    assert rows.tokens(0) == chatting()("from the prompt")["input_ids"]


def test_blank_prompts_and_written_conversations_are_refused() -> None:
    for value, words in (("  ", "blank"), ('[{"role": "user", "content": "a"}]', "written out")):
        with pytest.raises(BadResource, match=f"row 1 of data.*{words}"):
            Rows("data", [{"prompt": "a b"}, {"prompt": value}], chatting()).tokens(1)


def test_functions_are_called_by_their_names_in_any_order() -> None:
    for function in (
        lambda replies, prompts: [float(len(r)) for r in replies],
        lambda answers, prompts: [float(len(a)) for a in answers],
    ):
        swapped = called(function, [{"prompt": "a long prompt here"}, {"prompt": "c"}])
        rows = [{"prompt": "a long prompt here"}, {"prompt": "c"}]
        plain = called(lambda prompts, replies: [float(len(r)) for r in replies], rows)
        assert swapped.tolist() == plain.tolist()
