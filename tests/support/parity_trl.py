"""TRL's own PPOTrainer on tiny random models, and a record of the local variables of its training loop."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification, TrainerCallback

from tests.support.tiny import END, PAD, VOCABULARY, _widen_norms, qwen2_config, tiny_tokenizer

REPLY = 6
STEPS = 5
PROMPT_LENGTHS = (2, 3, 4, 6)
TEMPERATURE = 0.7
PENALTY = 0.8
KL_COEFFICIENT, VALUE_COEFFICIENT = 0.05, 0.1
GAMMA, LAMBDA = 0.99, 0.95
CLIP, VALUE_CLIP = 0.15, 0.25
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
# By TRL's names: what a batch is trained on, [B, R] each, but the scores [B].
LOCALS = ("logprobs", "ref_logprobs", "kl", "rewards", "values", "advantages", "returns", "scores", "padding_mask")


@dataclass(frozen=True)
class Case:
    """One configuration that both trainers run."""

    lora: bool = False
    classifiers: str | None = None
    """Adapters on reward and value model, the heads trained whole ("peft"), or frozen, by ``add_adapter``."""
    batch: int = 12
    minibatches: int = 1
    accumulation: int = 1
    """Micro-batches per batch."""
    estimator: str = "k1"
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None
    stops: bool = True
    """Replies stop at the end token; else they fill their length whatever is in them, as by TRL's defaults."""
    dtype: torch.dtype = torch.float32
    epochs: int = 2
    learning_rate: float = 1e-3
    steps: int = STEPS
    likely: tuple[tuple[int, float], ...] = ((END, 8.0),)
    """Tokens that the policy starts with a preference for, and by how much."""


@dataclass
class Update:
    """What TRL held in its local variables during one batch, and the weights that it ended with."""

    tensors: dict[str, Tensor]
    """By ``LOCALS``."""
    queries: Tensor
    """[B, P], padded on the left."""
    responses: Tensor
    """[B, R], as sampled."""
    raw_scores: Tensor
    """[B]: the reward model's, before any penalty."""
    orders: list[list[int]] = field(default_factory=list)
    """The permutation of each epoch."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    """Policy and value loss of each backward pass, the latter before ``vf_coef``."""
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One training with TRL."""

    case: Case
    start: dict[str, Tensor]
    """The weights that it trains, before it."""
    updates: list[Update]
    logs: list[dict[str, float]]


@dataclass
class Parts:
    """The models that both trainers start from."""

    policy: Qwen2ForCausalLM
    value: Qwen2ForSequenceClassification
    reward: Qwen2ForSequenceClassification


def parts(dtype: torch.dtype = torch.float32, likely: tuple[tuple[int, float], ...] = ((END, 8.0),)) -> Parts:
    """Policy, value model and reward model of one seed; ``likely`` tokens have so much more of a logit, padding less.

    Biases are drawn too, as trained models have them: where they start at zero, the gradient of the key's bias is
    next to nothing, and Adam makes steps of a full learning rate of its rounding.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Qwen2ForCausalLM(qwen2_config(tie_word_embeddings=False))
        value = Qwen2ForSequenceClassification(qwen2_config(num_labels=1))
        reward = Qwen2ForSequenceClassification(qwen2_config(num_labels=1))
        for model in (policy, value, reward):
            for name, p in model.named_parameters():
                if name.endswith("bias"):
                    nn.init.normal_(p, std=0.4)
            model.to(dtype).eval()
            if dtype == torch.float64:
                _widen_norms(model)
    favour(policy, {PAD: -30.0, **dict(likely)})
    return Parts(policy, value, reward)


@torch.no_grad()
def favour(policy: Qwen2ForCausalLM, logits: dict[int, float]) -> None:
    """Add about so much to the logits of some tokens, whatever came before, by a channel that no layer writes to."""
    policy.model.embed_tokens.weight[:, 0] = 4.0
    for layer in policy.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    policy.lm_head.weight[:, 0] = 0.0
    for token, logit in logits.items():
        policy.lm_head.weight[token, 0] = logit


class Recorder(TrainerCallback):
    """Reads the local variables of TRL's ``train`` where it asks for a backward pass; changes nothing it computes."""

    def __init__(self, trainer: Any, get_reward: Any) -> None:
        self.updates: list[Update] = []
        self.trainer, self._get_reward, self._backward = trainer, get_reward, trainer.accelerator.backward
        self._score = torch.empty(0)

    def get_reward(self, model: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Stand for TRL's helper, which scores with reward model and value model alike."""
        logits, scores, lengths = self._get_reward(model, *inputs)
        if model is self.trainer.reward_model:
            self._score = scores.clone()
        return logits, scores, lengths

    def backward(self, loss: Tensor) -> None:
        """Stand for accelerate's method: all that a batch is trained on is there, and the loss."""
        found = sys._getframe(1).f_locals
        if found["minibatch_idx"] == found["gradient_accumulation_idx"] == 0:
            if found["ppo_epoch_idx"] == 0:
                tensors = {name: found[name].clone() for name in LOCALS}
                self.updates.append(Update(tensors, found["queries"], found["responses"], self._score))
            self.updates[-1].orders.append(found["b_inds"].tolist())
        self.updates[-1].losses.append((float(found["pg_loss"]), float(found["vf_loss"])))
        self._backward(loss)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Keep the weights that a batch's updates ended with."""
        self.updates[-1].weights = trained(self.trainer.policy_model, self.trainer.value_model)


def prompts(count: int = 40) -> list[list[int]]:
    """Token ids of prompts of several lengths."""
    lengths = [PROMPT_LENGTHS[row % len(PROMPT_LENGTHS)] for row in range(count)]
    return [[2 + (7 * row + 3 * place) % (VOCABULARY - 2) for place in range(n)] for row, n in enumerate(lengths)]


def run_trl(case: Case, folder: Path) -> Record:
    """Train with TRL's PPOTrainer, in a configuration that avoids its defects, and return what it did."""
    made = parts(case.dtype, case.likely)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

        np.random.seed(4)  # TRL draws the order of mini-batches from it
        trainer = PPOTrainer(args=PPOConfig(**arguments(case, folder)), **objects(case, made))
        start = trained(trainer.policy_model, trainer.value_model)
        recorder = Recorder(trainer, ppo_trainer.get_reward)
        trainer.add_callback(recorder)
        trainer.accelerator.backward = recorder.backward
        with (
            mock.patch.object(ppo_trainer, "get_reward", recorder.get_reward),
            mock.patch.object(ppo_trainer, "gc"),  # most of a tiny run's time
            mock.patch.object(ppo_trainer, "empty_cache"),
        ):
            trainer.train()
    logs = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    return Record(case, start, recorder.updates, logs)


def plain(folder: Path) -> dict[str, Any]:
    """Return what both trainers are told of the machine: the CPU, float32, no reports, no checkpoints, every log."""
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_sample_generations": 0,
    }


def arguments(case: Case, folder: Path) -> dict[str, Any]:
    """Return the configuration, by TRL's names, that avoids its defects."""
    return {
        **plain(folder),
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "seed": 3,
        "per_device_train_batch_size": case.batch // case.accumulation,
        "gradient_accumulation_steps": case.accumulation,
        "num_mini_batches": case.minibatches,
        "num_ppo_epochs": case.epochs,
        "total_episodes": case.batch * case.steps,
        "response_length": REPLY,
        "temperature": TEMPERATURE,
        "stop_token": "eos" if case.stops else None,
        "learning_rate": case.learning_rate,
        "kl_coef": KL_COEFFICIENT,
        "vf_coef": VALUE_COEFFICIENT,
        "cliprange": CLIP,
        "cliprange_value": VALUE_CLIP,
        "gamma": GAMMA,
        "lam": LAMBDA,
        "kl_estimator": case.estimator,
        "whiten_rewards": case.whiten_rewards,
        "missing_eos_penalty": case.missing_eos_penalty,
    }


def objects(case: Case, made: Parts) -> dict[str, Any]:
    """Return the trainer's other arguments."""
    return {
        "processing_class": left_padding(),
        "model": made.policy,
        "ref_model": None,
        "reward_model": with_adapter(made.reward, case.classifiers),
        "value_model": with_adapter(made.value, case.classifiers),
        "train_dataset": Dataset.from_list([{"input_ids": ids} for ids in prompts()]),
        "peft_config": LoraConfig(**LORA, task_type="CAUSAL_LM") if case.lora else None,
    }


def with_adapter(model: Qwen2ForSequenceClassification, how: str | None) -> Any:
    """Return a classifier with an adapter that is far from nothing, of one seed."""
    if how is None:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if how == "peft":
            return get_peft_model(model, LoraConfig(**LORA, task_type="SEQ_CLS", init_lora_weights=False))
        model.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    return model


def trained(policy: nn.Module, value: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what both models train, by name."""
    return {
        f"{prefix}.{name}": p.detach().clone()
        for prefix, model in (("policy", policy), ("value", value))
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def left_padding() -> Any:
    """Return the tokenizer as TRL wants it."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer
