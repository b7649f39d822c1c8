"""Every causal language model class, tiny and random: what safebench does with it agrees with the model, or is refused.

``python -m tests.support.sweep`` writes the table of what came of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import logging

from tests.support.sweep import EDGE, examine, log_probs
from tests.support.tiny_models import MODEL_TYPES, PAD, UNBUILDABLE, tiny_config, tiny_model

REFUSED = {
    "cpmant": "no causal language model",
    "doge": "token by token",
    "prophetnet": "more than a product",
    "reformer": "random",
    "rwkv": "training mode",
    "xlm": "no causal language model",
    "xlnet": "no causal language model",
}
"""What is refused, and a part of the reason."""
BARE = ("cpmant", "ctrl", "gpt_neox_japanese", "jetmoe", "openai-gpt", "reformer", "xlm", "xlnet")
"""Of these, transformers has no gradient checkpointing; with that of two others a pass fails."""
NO_RECOMPUTING = (*BARE, "blt", "git")
"""Of these, gradient checkpointing is refused, with a hint to switch it off."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep answers of earlier probes out, and transformers' hints about odd configurations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_agrees_or_is_refused(model_type: str) -> None:
    verdict = examine(model_type)
    assert verdict.faults == []
    if model_type in UNBUILDABLE:
        assert verdict.says == "not built"
        return
    told = any("gradient checkpointing refused" in notice for notice in verdict.notices)
    assert told == (model_type in NO_RECOMPUTING), verdict.notices
    assert verdict.says == ("refused" if model_type in REFUSED else "agrees"), verdict.reason
    if verdict.says == "refused":
        assert REFUSED[model_type] in verdict.reason
        assert verdict.hint
        assert verdict.exit_code in (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(UNBUILDABLE)))
def test_tiny_models_are_small_and_say_something(model_type: str) -> None:
    """Fewer than two million parameters, logits that are finite and far from flat, and any dropout at 0.1."""
    model = tiny_model(model_type)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    with torch.no_grad():
        said = log_probs(model, torch.arange(10, 22))
    assert bool(said.isfinite().all())
    assert float(said.std()) > 0.5
    drops = [value for name, value in vars(tiny_config(model_type)).items() if "dropout" in name and value is not None]
    assert all(value in (0.1, 0.0) for value in drops)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name, why in REFUSED.items() if "causal" in why])
def test_what_is_refused_as_not_causal_reads_what_follows(model_type: str) -> None:
    model, row = tiny_model(model_type), torch.arange(10, 22)
    other = torch.cat([row[:-1], row[:1]])
    with torch.no_grad():
        assert float((log_probs(model, row) - log_probs(model, other))[:-1].abs().max()) > 0.1


ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ENCODERS.split())
def test_an_encoder_is_refused_as_not_causal(model_type: str) -> None:
    """As most of their checkpoints are: AutoModelForCausalLM loads them all the same."""
    verdict = examine(model_type, tiny_model(model_type, is_decoder=False))
    assert verdict.says == "refused"
    assert "no causal language model" in verdict.reason
    assert "is_decoder" in str(verdict.hint)


@pytest.mark.slow
def test_gradients_that_padding_makes_infinite_are_refused() -> None:
    """Gemma3n takes a root at the pad token's embedding, which is 0 before anything is trained."""
    base = tiny_model("gemma3n_text")
    with torch.no_grad():
        base.get_input_embeddings().weight[PAD] = 0.0
    verdict = examine("gemma3n_text", base)
    assert verdict.says == "refused"
    assert "gradient" in verdict.reason


@pytest.mark.slow
def test_what_doge_says_of_a_token_depends_on_how_many_follow() -> None:
    model, row = tiny_model("doge"), torch.arange(10, 22)
    with torch.no_grad():
        assert float((log_probs(model, row)[:9] - log_probs(model, row[:9])).abs().max()) > 0.1


@pytest.mark.slow
def test_what_reformer_says_is_drawn_anew() -> None:
    model, row = tiny_model("reformer"), torch.arange(10, 22)
    with torch.no_grad():
        assert float((log_probs(model, row) - log_probs(model, row)).abs().max()) > 0.1


# That the sweep itself sees what it is for: each of these is broken on purpose.


def test_a_plain_model_agrees() -> None:
    verdict = examine("llama")
    assert (verdict.says, verdict.faults) == ("agrees", [])
    assert verdict.gaps["sampling"] <= EDGE
    assert verdict.adapters == 14
    assert verdict.dead == ()


BROKEN: dict[str, dict[str, Any]] = {
    "two passes": {
        "safebench.models.assemble.no_dropout": lambda base: None,
        "safebench.models.policy._at_rest": lambda module, function, *inputs: function(*inputs),
    },
    "logits": {"safebench.rl.kl.OutputLayer._formed": lambda self, product: 1.1 * product},
    "sampling": {"safebench.models.generation._draw": lambda logits, uniform, temperature: logits.argmin(-1)},
    "reference": {"safebench.models.policy.Policy.as_reference": contextlib.nullcontext},
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_sweep_sees(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes, which would refuse the model before, are off."""
    monkeypatch.setattr("safebench.models.probes.probe", lambda policy, name: policy)
    monkeypatch.setattr("tests.support.sweep.probe_length", lambda policy, name, tokens: policy)
    for place, instead in BROKEN[what].items():
        monkeypatch.setattr(place, instead)
    verdict = examine("opt")
    assert verdict.says == "DIFFERS"
    assert any(fault.startswith(what) for fault in verdict.faults)
