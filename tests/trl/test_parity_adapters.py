"""Adapters of unusual reach: log-probabilities that we make from hidden states are those of the model's own logits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from safebench.errors import UsageError
from safebench.models.generation import Rollout, sample
from safebench.models.policy import Policy
from safebench.training.measure import measure
from tests.support.parity_trl import parts
from tests.support.tiny import END, draws, encoded, tiny_tokenizer


def adapted(reference: str | None = None, **reach: Any) -> Policy:
    """Return a policy whose adapter has left its beginnings wherever it reaches."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by the attribute's old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        made = LoraConfig(r=4, task_type="CAUSAL_LM", **reach)
        model = get_peft_model(parts().policy, made)
        if reference is not None:
            model.add_adapter(reference, made)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return Policy(model.eval(), tiny_tokenizer(), (END,), reference)


@torch.no_grad()
def by_logits(policy: Policy, rollout: Rollout) -> Tensor:
    """Return the log-probability of each token by the model's own forward pass, [B, R], zero outside the reply."""
    places = (rollout.attention.cumsum(-1) - 1).clamp(min=0)
    out = policy.model(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=places)
    log_p = out.logits.log_softmax(-1)[:, -rollout.mask.shape[1] - 1 : -1]
    return torch.where(rollout.mask, log_p.gather(-1, rollout.tokens[..., None]).squeeze(-1), 0.0)


REACHES: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
]


@pytest.mark.parametrize("reference", [None, "other"])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_policy_and_reference_are_the_models_own(reach: dict[str, Any], reference: str | None) -> None:
    policy = adapted(reference, **reach)
    rollout = sample(policy, encoded(policy), draws(8, 6), 1.0)
    measured = measure(policy, rollout, 1.0)
    assert torch.allclose(measured.log_probs, by_logits(policy, rollout), atol=1e-5)
    if reference is None:
        with policy.model.disable_adapter():
            own = by_logits(policy, rollout)
    else:
        policy.model.set_adapter(reference)
        own = by_logits(policy, rollout)
    assert torch.allclose(measured.reference_log_probs, own, atol=1e-5)
    assert not torch.allclose(own, measured.log_probs, atol=1e-2), "policy and reference differ"


def test_an_adapter_on_the_output_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="output layer"):
        adapted(target_modules=["q_proj", "lm_head"])
