"""What scripts ask of a trainer beside training: every public attribute of TRL's, there or named with what to use."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Qwen2ForCausalLM, TrainerCallback

from safebench.errors import UsageError
from safebench.models.libraries import quiet_libraries
from safebench.trl import PPOConfig, PPOTrainer
from safebench.trl.trainer import ABSENT
from tests.support.drop_in import BATCH, adapted, classifier, lora, policy_model, quietly, rows, same, trainer, weights
from tests.support.tiny import PAD, PROMPTS, tiny_tokenizer
from tests.support.trl_defects import TRL, make


def test_every_public_attribute_of_trls_trainer_is_there_or_named(tmp_path: Path) -> None:
    theirs = make(TRL, tmp_path / "trl", num_sample_generations=2)
    names = {name for name in {*dir(theirs), *vars(theirs)} if not name.startswith("_")}
    assert {"log_metrics", "stop_token_id", "create_optimizer", "sample_generations_freq"} <= names
    ours = trainer(tmp_path / "ours", eval_dataset=rows(2), config={"num_sample_generations": 2})
    there = {name for name in names if hasattr(ours, name)}
    assert names - there == names & set(ABSENT)
    assert not {name for name in ABSENT if hasattr(ours, name)}
    for name in there:
        if not callable(getattr(theirs, name)) and isinstance(getattr(theirs, name), bool | int | str | type(None)):
            same_kind = isinstance(getattr(ours, name), bool) == isinstance(getattr(theirs, name), bool)
            assert same_kind and not callable(getattr(ours, name)), name


@pytest.mark.parametrize("name", ABSENT)
def test_reading_what_is_absent_says_what_to_use(name: str, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=re.escape(ABSENT[name])):
        getattr(PPOTrainer.__new__(PPOTrainer), name)


def test_other_names_are_absent_without_advice(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    with pytest.raises(AttributeError, match=r"PPOTrainer has no attribute 'nonsense'$"):
        made.nonsense  # noqa: B018


def test_overriding_what_is_never_called_is_told() -> None:
    with pytest.warns(UserWarning, match=r"Mine defines what is never called: create_optimizer \(pass optimizers="):

        class Mine(PPOTrainer):
            def create_optimizer(self) -> None:
                """Make one."""

    class Other(PPOTrainer):
        def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
            """Log."""


def test_setting_what_nothing_would_read_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    values = {"dataloader": [], "stop_token_id": 3, "compute_loss": len, "reward_model": len, "model": policy_model()}
    for name, value in values.items():
        with pytest.raises(UsageError, match=f"setting {name} of a trainer does nothing"):
            setattr(made, name, value)
    made.model = made.model.policy
    made.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    made.note = 3
    made.train()


def test_sizes_and_names_are_those_of_the_run(tmp_path: Path) -> None:
    config = {"gradient_accumulation_steps": 2, "num_mini_batches": 2, "num_sample_generations": 2, "max_steps": 5}
    made = trainer(tmp_path, peft_config=lora(), eval_dataset=rows(2), config=config)
    assert (made.train_dataset_len, made.local_dataloader_batch_size) == (16, 8)
    assert made.get_total_train_batch_size(made.args) == 8
    assert made.stop_token_id == 1
    assert made.is_peft_model and made.model_adapter_name is None
    assert made.sample_generations_freq == 2
    assert made.get_learning_rates() == [group["lr"] for group in made.optimizer.param_groups]
    trained = [p for p in made.model.parameters() if p.requires_grad]
    assert made.get_num_trainable_parameters() == sum(p.numel() for p in trained)
    for p in trained:
        assert any(p is other for other in made.get_optimizer_group(p)["params"])
    assert made.get_optimizer_group(torch.nn.Parameter(torch.zeros(1))) is None
    assert len(made.get_optimizer_group()) == len(made.optimizer.param_groups)
    decayed = made.get_decay_parameter_names(policy_model())
    assert "model.layers.0.mlp.up_proj.weight" in decayed
    assert not [name for name in decayed if "norm" in name or "bias" in name]
    assert made.get_tp_size() == made.get_cp_size() == made.get_sp_size() == 1
    assert trainer(tmp_path, config={"stop_token": None}).stop_token_id is None
    assert trainer(tmp_path, config={"stop_token": None, "stop_token_id": 9}).stop_token_id == 9


def test_the_train_loader_gives_the_batches_that_are_trained_on(tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"total_episodes": 16})
    loader = made.get_train_dataloader()
    batches = list(loader)
    assert (len(loader), loader.batch_size, made.num_examples(loader)) == (4, BATCH, 16)
    seen: list[torch.Tensor] = []
    draw = made._loop._sample

    def spy() -> Any:
        rollout = draw()
        width = rollout.ids.shape[1] - rollout.mask.shape[1]
        seen.append(rollout.ids[:, :width])
        return rollout

    made._loop._sample = spy  # type: ignore[method-assign]
    made.train()
    for batch, ids in zip(batches, seen, strict=True):
        torch.testing.assert_close(batch["input_ids"], ids, rtol=0, atol=0)
        assert torch.equal(batch["attention_mask"].bool(), ids != PAD)
    assert len(list(made.dataloader)) == 4
    taken, count = made.get_batch_samples(iter(loader), 3, "cpu")
    assert (len(taken), count) == (3, None)


def test_of_fewer_rows_than_a_batch_the_loader_has_the_first(tmp_path: Path) -> None:
    (batch,) = trainer(tmp_path, train_dataset=rows(3)).get_train_dataloader()
    assert len(batch["input_ids"]) == BATCH


def test_the_eval_loader_gives_all_held_out_prompts_in_order(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset=rows(5), config={"per_device_eval_batch_size": 2})
    loader = made.get_eval_dataloader()
    assert [len(batch["input_ids"]) for batch in loader] == [2, 2, 1]
    found = [ids[ids != PAD].tolist() for batch in loader for ids in batch["input_ids"]]
    assert found == rows(5)["input_ids"]
    assert len(list(made.get_test_dataloader(rows(2)))) == 1
    assert made.eval_dataloader is not None
    assert trainer(tmp_path).eval_dataloader is None
    with pytest.raises(UsageError, match="there are: none"):
        trainer(tmp_path).get_eval_dataloader()


def test_one_of_several_held_out_sets_is_named(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset={"easy": rows(2), "hard": rows(3)})
    assert made.num_examples(made.get_eval_dataloader("hard")) == 3
    assert {key.split("_")[1] for key in made.evaluate("hard")} == {"hard"}
    with pytest.raises(UsageError, match="easy, hard"):
        made.get_eval_dataloader()
    with pytest.raises(UsageError, match="no 'x'; it has easy, hard"):
        made.evaluate("x")


def test_metrics_are_logged_and_saved_as_transformers_does(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset=rows(2))
    metrics = made.train().metrics
    with quietly() as said:
        made.log_metrics("train", metrics)
    assert "***** train metrics *****" in said.getvalue() and "train_loss" in said.getvalue()
    made.save_metrics("train", metrics)
    made.save_metrics("eval", made.evaluate())
    made.save_state()
    assert json.loads((tmp_path / "train_results.json").read_text()) == metrics
    both = json.loads((tmp_path / "all_results.json").read_text())
    assert {"train_loss", "eval_reward"} <= set(both)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 4
    assert made.metrics_format({"train_runtime": 61.0})["train_runtime"].startswith("0:01:01")
    made.end()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 9, 12]])).logits
    return found


def test_the_reference_acts_within_its_context(tmp_path: Path) -> None:
    made = trainer(tmp_path, model=adapted())
    start = logits(made.model.policy)
    made.train()
    trained = logits(made.model.policy)
    with made.null_ref_context():
        torch.testing.assert_close(logits(made.model.policy), start, rtol=0, atol=0)
    torch.testing.assert_close(logits(made.model.policy), trained, rtol=0, atol=0)
    whole = trainer(tmp_path)
    with whole.null_ref_context():
        logits(whole.model.policy)
    assert isinstance(whole.ref_model, Qwen2ForCausalLM)
    assert same(weights(whole.ref_model), weights(policy_model()))


def test_the_model_has_policy_and_value_model_as_trls_has(tmp_path: Path) -> None:
    """TRL's two training tests: the weights before, and those after as the trainer's model has them."""
    for peft_config in (None, lora()):
        policy, value = policy_model(), classifier()
        before = {"policy": weights(policy), "value": weights(value)}
        made = trainer(tmp_path, model=policy, value_model=value, reward_model=classifier(8), peft_config=peft_config)
        made.train()
        moved = [n for n, p in made.model.value_model.named_parameters() if not torch.equal(before["value"][n], p)]
        assert set(moved) == set(before["value"])
        assert not torch.equal(made.model.value_model.get_parameter("score.weight"), before["value"]["score.weight"])
        if peft_config is None:
            assert made.model.policy is policy
            assert any(not torch.equal(before["policy"][n], p) for n, p in made.model.policy.named_parameters())
        else:
            found = [p for n, p in made.model.policy.named_parameters() if "lora" in n.lower() and p.requires_grad]
            assert found and all(p.any() for p in found)
        names = [n for n, _ in made.model.named_parameters()]
        assert {n.split(".")[0] for n in names} == {"policy", "value_model"}


def test_a_critic_on_the_policys_states_is_the_value_model(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    before = weights(made.model.value_model)
    made.train()
    assert before and not same(before, weights(made.model.value_model))
    assert made.value_model is None


def test_for_everything_else_the_model_is_the_policy(tmp_path: Path) -> None:
    made = trainer(tmp_path, peft_config=lora(), value_model=classifier())
    model, policy = made.model, made.policy_model
    assert model.config is policy.config
    assert model.device == policy.device
    assert set(model.peft_config) == {"default"}
    torch.testing.assert_close(logits(model), logits(policy), rtol=0, atol=0)
    ids = torch.tensor([[5, 9, 12]])
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert new.shape == (1, 6)
    model.save_pretrained(tmp_path / "saved")
    with quiet_libraries():
        assert isinstance(PeftModel.from_pretrained(policy_model(), tmp_path / "saved"), PeftModel)
    model.note = "set"
    assert policy.note == "set"
    assert not hasattr(model, "nonsense")
    twin = copy.deepcopy(model)
    assert twin.policy is not policy and twin.value_model is not model.value_model
    assert same(weights(twin), weights(model))
    assert isinstance(pickle.loads(pickle.dumps(trainer(tmp_path).model)).policy, Qwen2ForCausalLM)
    model.train()
    assert model.training and policy.training
    with pytest.raises(AttributeError):
        del model.nonsense


def test_trls_script_runs_with_its_defaults(tmp_path: Path) -> None:
    """The configuration of TRL's own training tests, and the callbacks' view of the model."""

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            assert model.policy.config is model.config

    args = PPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        num_ppo_epochs=2,
        num_train_epochs=1,
        response_length=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    data = [{k: v for k, v in tokenizer(text).items() if k != "token_type_ids"} for text in PROMPTS]
    made = trainer(
        tmp_path,
        args=args,
        processing_class=tokenizer,
        ref_model=policy_model(),
        reward_model=classifier(8),
        value_model=classifier(),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Look()],
    )
    with quietly():
        made.train()
    assert made.state.global_step == 2
