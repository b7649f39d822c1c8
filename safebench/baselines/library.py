"""Imports TRL (no other module of this package does) and silences it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants

from safebench.errors import without_ppo, without_trainer, without_trl

_TALKATIVE = ("trl", "transformers", "accelerate", "peft")


def ppo(arm: str) -> tuple[Any, Any]:
    """Return TRL's ``PPOConfig`` and ``PPOTrainer``.

    Raises ``MissingResource`` without TRL, or with a release from 1.13.0 on, which has no PPO.
    """
    version = _version(arm)
    try:
        with _unheard():
            from trl.experimental import ppo as module
    except ImportError as fault:
        if not str(fault.name).startswith("trl"):
            raise
        raise without_ppo(arm, version) from fault
    return module.PPOConfig, module.PPOTrainer


def group(arm: str, name: str) -> tuple[Any, Any]:
    """Return TRL's config and trainer of ``name`` ("GRPO", "RLOO"); raise ``MissingResource`` if they are missing."""
    version = _version(arm)
    import trl

    with _unheard():
        found = [getattr(trl, f"{name}{part}", None) for part in ("Config", "Trainer")]
    if None in found:
        raise without_trainer(arm, f"{name}Trainer", version)
    return found[0], found[1]


def _version(arm: str) -> str:
    try:
        with _unheard():
            import trl
    except ModuleNotFoundError as fault:
        if fault.name != "trl":
            raise
        raise without_trl(arm) from fault
    return str(trl.__version__)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def silence() -> Iterator[contextlib.ExitStack]:
    """Within this context, suppress TRL's telemetry, its warnings and its logging.

    Printed output is discarded until the yielded stack is closed. The caller closes it when training has begun: from
    then on TRL prints nothing, and the output of others is shown.
    """
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    try:
        # TRL's constructors send a ping unless this is set. The hub's client reads the environment only on import.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _unheard(), contextlib.ExitStack() as unprinted:
            unprinted.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield unprinted
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
