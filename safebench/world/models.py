"""Load the language model that a policy starts from: embedded, local, from the hub, or random weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from safebench import catalog
from safebench import settings as s
from safebench.errors import BadResource, UsageError
from safebench.world import noise
from safebench.world.loading import loading


def load_model(model: s.Model, seed: int, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and its tokenizer, with a pad token.

    Without hub access and without a local copy the error names the model and the way to give a directory.
    """
    dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
    source = catalog.model_source(model.name)
    if model.random_weights:
        return _random(source, dtype, seed, device)
    with loading(f"model {model.name}", source.location):
        tokenizer = AutoTokenizer.from_pretrained(source.location)
        base = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype)
    return base.to(device), with_pad(tokenizer)


def _random(
    source: catalog.Entry, dtype: torch.dtype, seed: int, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the named architecture at full size with random weights and the embedded tokenizer.

    The embedded tokenizer's ids are a part of any larger vocabulary, so nothing is downloaded.
    """
    config = dict(source.architecture)
    if not config:
        raise UsageError(
            f"--random-weights needs the dimensions of {source.name}, and the catalogue has none",
            "Use a model that `safebench models` lists with its size.",
        )
    tokenizer = AutoTokenizer.from_pretrained(str(catalog.WORLD / "policy"))
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=noise.generator("weights", seed))))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(config | ids)))
    finally:
        torch.set_default_dtype(before)
    return base.to(device), with_pad(tokenizer)


def with_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer without pad token its end token for padding; masks come from lengths, not from ids."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadResource("the tokenizer has neither pad nor end token", "Set pad_token in tokenizer_config.json.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
