"""Samples replies from a trained run, and exports its model as plain weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from peft import PeftModel

from safebench import config
from safebench.config.schema import Settings
from safebench.errors import MissingResource, UsageError
from safebench.models import adapters, probes, seeding
from safebench.models.generation import encode
from safebench.models.generation import sample as sample_replies
from safebench.models.libraries import quiet_libraries
from safebench.models.loading import load_model
from safebench.models.policy import Policy, stop_ids
from safebench.models.prompts import encode_prompt


def sample(
    folder: Path,
    prompt: str,
    *,
    count: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    tokens: int | None = None,
    trust: Collection[str] = (),
) -> list[str]:
    """Return ``count`` replies of the run in ``folder`` to ``prompt``; values not given are the run's settings.

    The model's own code runs only if its name is in ``trust``, whatever the run was started with.
    """
    settings = config.load(folder / "config.yaml")
    policy = _trained(folder, settings, trust)
    texts = [prompt] * count
    encoded = encode(
        texts,
        [encode_prompt(policy.tokenizer, text) for text in texts],
        settings.prompts.max_tokens,
        int(policy.tokenizer.pad_token_id),
        policy.device,
    )
    draws = seeding.uniforms("talk", seed, 0, range(count), tokens or settings.rollout.reply_tokens)
    return sample_replies(policy, encoded, draws, temperature or settings.rollout.temperature).replies


def export(folder: Path, out: Path, *, trust: Collection[str] = ()) -> Path:
    """Write the run's model, with its adapter merged, and its tokenizer to ``out``, for plain transformers."""
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "Name a new folder with --out.")
    settings = config.load(folder / "config.yaml")
    policy = _trained(folder, settings, trust)
    with quiet_libraries():
        model = policy.model.merge_and_unload() if isinstance(policy.model, PeftModel) else policy.model
        model.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    return out


def _trained(folder: Path, settings: Settings, trust: Collection[str]) -> Policy:
    part = "model" if settings.model.lora is None else "adapter"
    if not (folder / part).is_dir():
        raise MissingResource(f"{folder} has no {part}: the run has not finished", "`safebench run` finishes it.")
    with quiet_libraries():
        base, tokenizer = load_model(settings.model, settings.seed, torch.device("cpu"), trust=trust)
        stops = stop_ids(base, tokenizer)
        if settings.model.lora is None:
            model = type(base).from_pretrained(folder / part).eval().requires_grad_(False)
        else:
            place = str(folder / part)
            model = adapters.load(base, place, adapters.weights_of(place))
        return probes.probe(Policy(model, tokenizer, stops), str(folder))
