"""Reward and value models of the drop-in: what TRL's trainer reads is read, adapters or not; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from safebench.errors import BadResource, UsageError
from safebench.trl.parts import ClassifierReward
from tests.support.drop_in import arguments, classifier, lora, policy_model, same, trainer, weights
from tests.support.tiny import PROMPTS, VOCABULARY, tiny_policy, tiny_rollout

# peft 0.21 asks transformers 5.23 by the attribute's old name, in every adapter that a test makes.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def scored_lora(model: nn.Module, **more: Any) -> PeftModel:
    """An adapter far from nothing, of one seed; peft trains the head of this kind of task whole."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        made: PeftModel = get_peft_model(
            model,  # type: ignore[arg-type]
            LoraConfig(r=2, target_modules=["v_proj"], task_type="SEQ_CLS", init_lora_weights=False, **more),
        )
    return made


def without_task(model: nn.Module) -> PeftModel:
    """An adapter whose configuration says nothing of a head: it stays frozen."""
    made: PeftModel = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))  # type: ignore[arg-type]
    return made


def on_score(model: nn.Module) -> PeftModel:
    """The head itself has an adapter."""
    targets = ["v_proj", "score"]
    made: PeftModel = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))  # type: ignore[arg-type]
    return made


def by_transformers(model: Any, head: bool = True) -> Any:
    """The adapter is put into the model itself."""
    model.add_adapter(
        LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["score"] if head else None, init_lora_weights=False)
    )
    return model


def loaded(folder: Path, **more: Any) -> PeftModel:
    """An adapter and head that were saved."""
    scored_lora(classifier()).save_pretrained(folder)
    return PeftModel.from_pretrained(classifier(), folder, **more)


MAKERS: dict[str, Any] = {
    "peft": scored_lora,
    "peft without task": without_task,
    "peft on score": on_score,
    "transformers": by_transformers,
    "transformers, frozen head": lambda model: by_transformers(model, head=False),
}


class Wrapped(nn.Module):
    """A classifier of the user's own, as TRL's trainer reads it."""

    base_model_prefix = "backbone"

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 1))


class ByMethod(nn.Module):
    """The same, whose ``score`` is a method."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = policy_model().model
        self.head = nn.Linear(16, 1)

    def score(self, states: Tensor) -> Tensor:
        """Return one number per state."""
        found: Tensor = self.head(states)
        return found


OWN: dict[str, Any] = {
    "layers": lambda: Wrapped(policy_model().model),
    "language model as body": lambda: Wrapped(policy_model()),
    "method": ByMethod,
}


@pytest.mark.parametrize("how", MAKERS)
def test_a_reward_models_adapter_acts(how: str) -> None:
    policy = tiny_policy()
    batch = tiny_rollout(policy, PROMPTS)
    model = MAKERS[how](classifier())
    found = ClassifierReward(model, policy, 3).score_rollout(batch)
    assert not torch.allclose(found, ClassifierReward(classifier(), policy, 3).score_rollout(batch))
    for row in range(len(PROMPTS)):
        real = batch.ids[row][batch.attention[row].bool()]
        with torch.no_grad():
            expected = model(input_ids=real[None]).logits.squeeze()
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("safe", [False, True])
def test_of_a_value_model_what_requires_gradients_is_trained(how: str, safe: bool, tmp_path: Path) -> None:
    value = MAKERS[how](classifier())
    wanted = {name for name, p in value.named_parameters() if p.requires_grad}
    before = weights(value)
    made = trainer(tmp_path, value_model=value, reward_model=MAKERS[how](classifier(8)), safe=safe)
    made.train()
    after = weights(value)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # SAFE's critic has heads of its own.
    assert moved == {name for name in wanted if "score" not in name or not safe}
    assert {name for name, p in value.named_parameters() if p.requires_grad} == wanted
    assert made.model.value_model is value


def test_a_frozen_body_leaves_the_score_to_train(tmp_path: Path) -> None:
    value = classifier()
    value.model.requires_grad_(False)
    before = weights(value)
    trainer(tmp_path, value_model=value).train()
    assert [name for name, p in weights(value).items() if not torch.equal(p, before[name])] == ["score.weight"]


def test_a_saved_adapter_trains_where_it_was_loaded_to_be_trained(tmp_path: Path) -> None:
    value = loaded(tmp_path / "saved", is_trainable=True)
    before = weights(value)
    trainer(tmp_path, value_model=value, reward_model=loaded(tmp_path / "saved")).train()
    assert not same(before, weights(value))
    with pytest.raises(UsageError, match=r"no weight of value_model \(Qwen2.* in a Peft.*trainable") as fault:
        trainer(tmp_path, value_model=loaded(tmp_path / "saved"))
    assert "is_trainable=True" in str(fault.value.hint)


def test_the_trained_score_is_the_value_models_own_at_every_step(tmp_path: Path) -> None:
    value = scored_lora(classifier())
    made = trainer(tmp_path, value_model=value)
    own = {id(p) for p in value.parameters() if p.requires_grad}
    assert {id(p) for p in made._critic.parameters()} == own
    held = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert own <= held


def test_a_run_with_an_adapted_value_model_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2}
    values = [scored_lora(classifier()) for _ in range(2)]
    whole, resumed = (trainer(tmp_path, value_model=value, config=config) for value in values)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(values[0]), weights(values[1]))
    assert same(weights(whole.model), weights(resumed.model))


@pytest.mark.parametrize("how", OWN)
def test_a_classifier_of_ones_own_is_read_as_trl_reads_it(how: str, tmp_path: Path) -> None:
    policy, model = tiny_policy(), OWN[how]()
    batch = tiny_rollout(policy, PROMPTS)
    found = ClassifierReward(model, policy, 3).score_rollout(batch)
    real = batch.ids[0][batch.attention[0].bool()]
    with torch.no_grad():
        out = model.backbone(input_ids=real[None], output_hidden_states=True, use_cache=False)
        expected = model.score(out.hidden_states[-1])[0, -1, 0]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    value = OWN[how]()
    before = weights(value)
    trainer(tmp_path, value_model=value).train()
    moved = {name.split(".")[0] for name, p in weights(value).items() if not torch.equal(p, before[name])}
    assert moved == {"backbone", "head" if how == "method" else "score"}


def test_reward_and_value_may_not_share_what_is_trained(tmp_path: Path) -> None:
    reward = classifier()
    value = scored_lora(reward)
    before = weights(reward)
    with pytest.warns(UserWarning, match="share weights that are trained"):
        made = trainer(tmp_path, reward_model=reward, value_model=value)
    made.train()
    assert same(before, weights(reward))
    assert made.model.value_model is made.value_model is not value


def sharing(policy: Any) -> Any:
    """A classifier on the policy's own body."""
    made = classifier()
    made.model = policy.model
    return made


@pytest.mark.parametrize("role", ["reward_model", "value_model"])
def test_nothing_may_share_the_policys_trained_weights(role: str, tmp_path: Path) -> None:
    policy = policy_model()
    with pytest.raises(UsageError, match=rf"{role} .* shares \d+ of the policy's trained weights"):
        trainer(tmp_path, model=policy, **{role: sharing(policy)})


def test_the_base_of_an_adapted_policy_is_no_reference(tmp_path: Path) -> None:
    base = policy_model()
    with pytest.raises(UsageError, match=r"ref_model .* shares 8 of the policy's trained weights"):
        trainer(tmp_path, model=get_peft_model(base, lora()), ref_model=base)


SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert() -> Any:
    return BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=16, num_labels=1))


def roberta() -> Any:
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, intermediate_size=16, num_labels=1))


class Head(nn.Module):
    """A language model with a value head, in the form of TRL's own."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model, self.v_head = policy_model(), nn.Linear(16, 1)


REFUSED: dict[str, tuple[Any, str]] = {
    "bert": (bert, r"\(BertForSequenceClassification\) has no `score`.* `classifier` \(Linear\)"),
    "roberta": (roberta, r"has no `score`.* `classifier` \(RobertaClassificationHead\)"),
    "bert with an adapter": (
        lambda: get_peft_model(bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS")),
        r"\(BertForSequenceClassification in a PeftModelForSequenceClassification\) has no `score`",
    ),
    "value head": (Head, r"\(Head\) has no body under its `base_model_prefix`"),
    "language model": (policy_model, r"\(Qwen2ForCausalLM\) has no `score`"),
    "two labels": (lambda: scored_lora(classifier(labels=2)), "gives 2 scores"),
    "learned prompts": (
        lambda: get_peft_model(classifier(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)),
        r"\(Qwen2ForSequenceClassification in .*\) learns prompts",
    ),
    "damaged": (lambda: damaged(classifier()), "gives nan for three plain tokens"),
    "another number": (lambda: Doubled(classifier().config), "scores three tokens .*, and `score` of its last state"),
}


def damaged(model: Any) -> Any:
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    return model


class Doubled(type(classifier())):  # type: ignore[misc]
    """A classifier that makes more of its score than its head says."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        out = super().forward(*inputs, **named)
        out.logits = 2 * out.logits + 1
        return out


@pytest.mark.parametrize("role", ["reward_model", "value_model"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_trl_cannot_read_is_refused_with_a_reason_and_a_way_out(name: str, role: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises((BadResource, UsageError), match=message) as fault:
        trainer(tmp_path, **{role: make()})
    assert str(fault.value).startswith(role)
    if name not in ("damaged", "learned prompts"):
        ways = {"reward_model": "a function of texts", "value_model": "value_model=None"}
        assert ways[role] in str(fault.value.hint)


def test_what_a_model_raises_names_the_model(tmp_path: Path) -> None:
    model = Wrapped(policy_model().model)
    model.score = nn.Linear(8, 1)  # type: ignore[assignment]
    with pytest.raises(BadResource, match=r"`score` of reward_model \(Wrapped\): RuntimeError"):
        trainer(tmp_path, reward_model=model)
    # Learned positions end at eight, three prompts' tokens before the reply is whole.
    short = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=1)
    )
    made = trainer(tmp_path, reward_model=short)
    with pytest.raises(
        BadResource, match=r"the forward pass of reward_model \(GPT2ForSequenceClassification\): IndexEr"
    ):
        made.train()


@pytest.mark.parametrize("role", ["model", "ref_model", "reward_model", "value_model"])
def test_a_model_on_several_devices_is_refused(role: str, tmp_path: Path) -> None:
    model: Any = policy_model() if role in ("model", "ref_model") else classifier()
    head = "lm_head" if role in ("model", "ref_model") else "score"
    model.config.tie_word_embeddings = False
    spread = dispatch_model(model, {"model": "cpu", head: "disk"}, offload_dir=tmp_path / "offload", main_device="cpu")
    with pytest.raises(UsageError, match=rf"{role} .* is spread over cpu, disk") as fault:
        trainer(tmp_path, **{role: spread})
    assert "device_map" in str(fault.value.hint)


def test_quantised_weights_are_trained_with_an_adapter_only(tmp_path: Path) -> None:
    """By transformers' own flag; there is no quantisation that every machine has."""
    model = policy_model()
    model.is_quantized = True
    with pytest.raises(UsageError, match=r"model .* is quantised: its weights cannot be trained"):
        trainer(tmp_path, model=model)
    trainer(tmp_path, model=model, peft_config=lora()).train()


def test_a_function_needs_no_adapter(tmp_path: Path) -> None:
    """The way out that a pooled classifier is shown: a function of texts with the model's own tokenizer."""
    model, args = bert().eval(), arguments(tmp_path, total_episodes=4)

    def reward(prompts: list[str], replies: list[str]) -> list[float]:
        ids = torch.tensor([[2 + len(reply) % 50, 3] for reply in replies])
        with torch.no_grad():
            return model(input_ids=ids).logits.flatten().tolist()

    trainer(tmp_path, args=args, reward_model=reward).train()
