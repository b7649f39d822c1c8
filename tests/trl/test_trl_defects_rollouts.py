"""What TRL 1.12.0's PPOTrainer gets wrong in sampled replies and their statistics, and ours right."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.support.parity_trl import LORA, Parts, favour, left_padding, parts
from tests.support.tiny import END, qwen2_config
from tests.support.trl_defects import (
    OURS,
    ROWS,
    TRL,
    Check,
    Kind,
    before_each_step,
    both,
    copies,
    make,
    prompts,
    quiet,
    train,
)

A, STOP = 5, 7


def scripted(logits: dict[int, float]) -> Parts:
    """Models whose policy gives these tokens all of the probability; the reward is 0."""
    made = parts()
    with torch.no_grad():
        made.policy.lm_head.weight.zero_()
        made.reward.score.weight.zero_()
    favour(made.policy, {token: 100 * logit for token, logit in logits.items()})
    return made


def pad_is_end() -> Any:
    """A tokenizer without a pad token of its own."""
    tokenizer = left_padding()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def first(kind: Kind, folder: Path, made: Parts, **arguments: Any) -> dict[str, float]:
    """Return the log entry of a single batch."""
    return train(kind, make(kind, folder, made, **arguments))[0]


def penalised(kind: Kind, folder: Path) -> dict[str, float]:
    """Return the log of a policy whose generation config asks for a penalty on repetitions."""
    made = parts()
    made.policy.generation_config.repetition_penalty = 1.5
    return first(kind, folder, made)


def a_repetition_penalty_leaves_the_kl_alone(kind: Kind, folder: Path) -> None:
    """Old log-probabilities are the policy's, whatever its generation config says."""
    log = penalised(kind, folder)
    assert abs(log["objective/kl"]) < 1e-4, f"KL {log['objective/kl']:.2f} before any update"


def a_repetition_penalty_leaves_the_ratio_alone(kind: Kind, folder: Path) -> None:
    """So the ratio is 1 before any update."""
    log = penalised(kind, folder)
    assert abs(log["val/ratio"] - 1) < 1e-5, f"ratio {log['val/ratio']:.2f} before any update"


def attention_dropout_is_off(kind: Kind, folder: Path) -> None:
    """The model declares it; policy and reference are one before the first update."""
    made = parts()
    made.policy = type(made.policy)(qwen2_config(tie_word_embeddings=False, attention_dropout=0.5)).eval()
    made.policy.load_state_dict(parts().policy.state_dict())
    log = first(kind, folder, made)
    assert abs(log["objective/kl"]) < 1e-4, f"KL {log['objective/kl']:.2f} before any update"


def a_reply_that_stops_is_not_penalised(kind: Kind, folder: Path) -> None:
    """``missing_eos_penalty`` with ``stop_token_id``: every reply ends with that token, which is not EOS."""
    log = first(kind, folder, scripted({STOP: 1}), stop_token=None, stop_token_id=STOP, missing_eos_penalty=5.0)
    assert log["objective/scores"] == 0.0, f"scored {log['objective/scores']}"


def the_end_token_is_learned_where_it_pads_too(kind: Kind, folder: Path) -> None:
    """Replies of one token, the end or another one at even odds: -log p is ln 2 for every one of them."""
    log = first(kind, folder, scripted({END: 1, A: 1}), tokenizer=pad_is_end(), response_length=1)
    share = log["objective/entropy"] / math.log(2)
    assert share == pytest.approx(1.0, abs=1e-5), f"{share:.3f} of the tokens counted"


def replies_may_all_be_empty(kind: Kind, folder: Path) -> None:
    """Every reply ends at once, and the end token pads."""
    made = scripted({END: 1})
    first(kind, folder, made, tokenizer=pad_is_end())
    assert all(bool(p.isfinite().all()) for p in made.policy.parameters())


def a_trained_adapter_is_its_own_reference(kind: Kind, folder: Path) -> None:
    """The policy comes as a PeftModel with an adapter from supervised training, and no reference."""
    made = parts()
    with quiet(TRL):
        made.policy = get_peft_model(made.policy, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in made.policy.named_parameters():
            if "lora_B" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    log = first(kind, folder, made)
    assert abs(log["objective/kl"]) < 1e-4, f"KL {log['objective/kl']:.2f} before any update"


CHECKS: dict[Check, tuple[type[Exception], str]] = {
    a_repetition_penalty_leaves_the_kl_alone: (AssertionError, r"KL -?(0\.[1-9]|[1-9]).* before any update"),
    a_repetition_penalty_leaves_the_ratio_alone: (AssertionError, r"ratio (?!1\.00).* before any update"),
    attention_dropout_is_off: (AssertionError, r"KL -?(0\.[1-9]|[1-9]).* before any update"),
    a_reply_that_stops_is_not_penalised: (AssertionError, r"scored -5\.0"),
    the_end_token_is_learned_where_it_pads_too: (AssertionError, r"0\.\d+ of the tokens counted"),
    replies_may_all_be_empty: (ValueError, "The sum of the mask is zero"),
    a_trained_adapter_is_its_own_reference: (AssertionError, r"KL -?(0\.[1-9]|[1-9]).* before any update"),
}


test_trl_gets_it_wrong, test_ours_gets_it_right = both(CHECKS)


@functools.cache
def statistics(kind: Kind) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is logged of two epochs over one batch, and the same by definition over the replies' tokens."""
    made, length = parts(), 3
    batches: list[tuple[Tensor, Tensor]] = []
    weights: list[dict[str, Tensor]] = []

    def look(module: Any, inputs: Any, more: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            batches.append((more["input_ids"], more["attention_mask"]))

    made.policy.model.register_forward_pre_hook(look, with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(kind, Path(folder), made, num_ppo_epochs=2, learning_rate=1e-2, dataset=prompts(length=length))
        with before_each_step(lambda: weights.append(copies(made.policy))):
            log = train(kind, trainer)[0]
    ids, attention = batches[0]
    policies = [parts().policy for _ in weights]
    for policy, state in zip(policies, weights, strict=True):
        policy.load_state_dict(state)
    before, after = (_of_tokens(policy, ids, attention.long(), length) for policy in policies)
    log_ratio = after[0] - before[0]
    assert len(before[0]) < ROWS * (ids.shape[1] - length), "there is padding"
    return log, {
        "policy/approxkl_avg": float((log_ratio**2).mean() / 2) / 2,
        "val/ratio": (1 + float(log_ratio.exp().mean())) / 2,
        "first entropy": float(before[1].mean()),
        "second entropy": float(after[1].mean()),
    }


@torch.no_grad()
def _of_tokens(policy: Any, ids: Tensor, attention: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of each reply token."""
    places = (attention.cumsum(-1) - 1).clamp(min=0)
    log_p = policy(input_ids=ids, attention_mask=attention, position_ids=places).logits.log_softmax(-1)[:, :-1]
    kept = attention[:, length:].bool()
    chosen = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, length - 1 :]
    return chosen[kept], -(log_p.exp() * log_p).sum(-1)[:, length - 1 :][kept]


@pytest.mark.parametrize("key", ["policy/approxkl_avg", "val/ratio"])
def test_statistics_are_of_the_replies_tokens_in_ours_and_of_padding_too_in_trl(key: str) -> None:
    logged, by_definition = statistics(OURS)
    assert logged[key] == pytest.approx(by_definition[key], rel=1e-4)
    logged, by_definition = statistics(TRL)
    off = abs(logged[key] - by_definition[key]) / abs(by_definition[key] - (key == "val/ratio"))
    assert off > 0.1, "padding has a ratio of 1"


def test_the_entropy_is_of_the_replies_tokens_in_ours_and_of_padding_too_in_trl() -> None:
    """Ours is that of the sampling policy, TRL's the mean over both epochs."""
    logged, truth = statistics(OURS)
    assert logged["policy/entropy_avg"] == pytest.approx(truth["first entropy"], rel=1e-4)
    logged, truth = statistics(TRL)
    mean = (truth["first entropy"] + truth["second entropy"]) / 2
    assert abs(logged["policy/entropy_avg"] - mean) > 0.01 * mean
