"""Estimates a run's updates, tokens, memory and disk by arithmetic, without loading anything.

The memory is that of the tensors that exist at once in the stage that needs most (sampling, measuring or
updating), plus a constant for Python and its libraries. On CPU the estimate was 9 % above the measured peak for
both the embedded world and Qwen2.5-0.5B in bfloat16. All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safebench import registry
from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.errors import MissingResource
from safebench.registry import Architecture

Device = Literal["cpu", "cuda"]

MIB = 1024**2
GIB = 1024**3

LIBRARIES: dict[Device, int] = {"cpu": 500 * MIB, "cuda": 700 * MIB}
"""Python with torch, transformers and peft; on CUDA, the device's context and kernels."""

VOCABULARY_TOKENS, VOCABULARY_LOGITS = 1024, 2**24
"""Most reply tokens whose logits exist at once, and most logits of such a chunk (``rl.kl.chunk_of``)."""
SAMPLED_PROBABILITIES = 2**21
"""Number of probabilities that sampling sums at once (``models.generation``)."""
VOCABULARY_COPIES = 6
"""Float32 arrays of a chunk of logits at once: log-probabilities of policy and reference, and what gradients need."""
REWARD_ROWS = 64
"""Rows that a reward model scores at once."""
ROW_BYTES, SAMPLE_BYTES, TRACKER_BYTES = 900, 600, 4000
"""Bytes of one row of metrics.csv, one record of samples.jsonl, and one step in a tracker's own files."""


@dataclass(frozen=True)
class Estimate:
    """What a run needs. Sizes are in bytes; numbers of parameters are None if the dimensions are not known here."""

    updates: int
    """Optimizer steps."""
    tokens: int
    """Reply tokens sampled for training, at most."""
    parameters: int | None
    trainable: int | None
    memory: dict[str, int]
    """Bytes by use, in the stage that needs most."""
    disk: dict[str, int]
    notes: tuple[str, ...]

    @property
    def total_memory(self) -> int | None:
        """Sum of the parts; None if one of them is not known."""
        return None if self.parameters is None else sum(self.memory.values())

    @property
    def total_disk(self) -> int:
        """Sum of the parts that the run folder takes, downloads not counted."""
        return sum(size for name, size in self.disk.items() if name != "downloads")


def estimate(settings: Settings, device: Device = "cpu") -> Estimate:
    """Return what a run with these settings needs on a device of that kind."""
    notes: list[str] = []
    entry = registry.find("models", settings.model.name)
    if entry.packaged is not None and not settings.model.random_weights:
        notes.append(f"the weights of {entry.name} are under {entry.packaged.terms}")
    architecture = dimensions(entry)
    update = settings.update
    updates = update.steps * update.epochs * update.minibatches
    tokens = update.steps * settings.rollout.batch * settings.rollout.reply_tokens
    rewards = dict(_rewards(settings, device, notes))
    if settings.evaluation.audits:
        rewards["audits"] = 4 * registry.encoder_parameters(registry.ENCODER_LAYERS)
    if _foreign(settings):
        notes.append(f"{settings.algorithm} is another library's trainer: its memory is a rough guess")
    if architecture is None:
        notes.append(f"the dimensions of {settings.model.name} are not known without downloading it")
        return Estimate(updates, tokens, None, None, rewards, _disk(settings, 0, 0), tuple(notes))
    parameters = registry.parameters(architecture)
    adapter, critic = adapter_parameters(settings, architecture), critic_parameters(settings, architecture)
    memory = {
        "libraries": LIBRARIES[device],
        "policy": parameters * _width(settings),
        "adapter, gradients and optimizer": 16 * adapter,
        "critic, gradients and optimizer": critic * (16 + (4 if settings.critic.target_decay is not None else 0)),
        **rewards,
        **_fullest(settings, architecture, adapter + critic),
    }
    disk = _disk(settings, adapter, critic)
    return Estimate(updates, tokens, parameters, adapter + critic, memory, disk, tuple(notes))


def dimensions(entry: registry.Entry) -> Architecture | None:
    """Return a model's dimensions: the catalogue's, or those of a local copy's config.json; None if unknown."""
    if entry.architecture:
        return entry.architecture
    folder = Path(entry.location) if entry.kind in ("directory", "embedded") else registry.local_copy(entry.location)
    if folder is None or not (folder / "config.json").is_file():
        return None
    content: Any = yaml_text.read((folder / "config.json").read_text(encoding="utf-8"))
    known = isinstance(content, dict) and content.get("model_type") in ("qwen2", "qwen3", "llama", "gemma3_text")
    if known and content["model_type"] == "gemma3_text":
        content.setdefault("tie_word_embeddings", True)
    return content if known else None


def adapter_parameters(settings: Settings, architecture: Architecture) -> int:
    """Return how many parameters are trained: LoRA's rank times (input + output) of each target, or all."""
    lora = settings.model.lora
    if lora is None:
        return int(registry.parameters(architecture))
    wide = sum(sum(sides) for name, sides in registry.projections(architecture).items() if name in lora.targets)
    return int(lora.rank * wide * architecture["num_hidden_layers"])


def critic_parameters(settings: Settings, architecture: Architecture) -> int:
    """Return the number of parameters of the value heads, and of the critic's own body where it has one."""
    critic, hidden = settings.critic, int(architecture["hidden_size"])
    narrow = hidden // 4
    one = hidden * narrow + narrow + narrow + 1 if critic.head == "mlp" else hidden + 1
    heads = (2 if critic.heads == "double" else 1) * one + (2 * hidden if critic.layer_norm else 0)
    return heads + (registry.parameters(architecture, head=False) if critic.body == "separate" else 0)


def _width(settings: Settings) -> int:
    return 2 if settings.model.dtype == "bfloat16" else 4


def _fullest(settings: Settings, architecture: Architecture, trainable: int) -> dict[str, int]:
    """Return the name and size of the stage that needs most in addition to the weights."""
    stages = {
        "sampling": _sampling(settings, architecture),
        "measuring": _measuring(settings, architecture),
        "updating": _updating(settings, architecture, trainable),
    }
    name = max(stages, key=lambda stage: stages[stage])
    return {f"{name} (the fullest stage)": stages[name]}


def _foreign(settings: Settings) -> bool:
    """Return whether the algorithm is another library's trainer."""
    return registry.find("algorithms", settings.algorithm).kind == "trainer"


def _length(settings: Settings) -> int:
    return settings.prompts.max_tokens + settings.rollout.reply_tokens


def _sampling(settings: Settings, architecture: Architecture) -> int:
    """Return the bytes of keys and values of all positions, the prompts' activations, and one position's logits twice.

    For some rows, sums in double precision are added.
    """
    rows = settings.rollout.chunk or settings.rollout.batch
    _, keys = registry.attention_widths(architecture)
    cache = rows * _length(settings) * architecture["num_hidden_layers"] * 2 * keys * _width(settings)
    prompt = rows * settings.prompts.max_tokens * _layer_width(architecture) * _width(settings)
    vocabulary = architecture["vocab_size"]
    summed = min(rows * vocabulary, max(SAMPLED_PROBABILITIES, vocabulary))
    return int(cache + prompt + 8 * rows * vocabulary + 24 * summed)


def _measuring(settings: Settings, architecture: Architecture) -> int:
    """Return the bytes of one layer's activations of a chunk, one vocabulary chunk, and the batch's hidden states."""
    rows, batch = settings.rollout.chunk or settings.rollout.batch, settings.rollout.batch
    layer = rows * _length(settings) * _layer_width(architecture) * _width(settings)
    return int(layer + _logits(settings, architecture, rows) + _states(settings, architecture, batch))


def _updating(settings: Settings, architecture: Architecture, trainable: int) -> int:
    """Return the bytes of a micro-batch's activations, one chunk of the vocabulary, hidden states, and gradients.

    There is one gradient per loss term.
    """
    batch = settings.rollout.batch
    rows = settings.update.microbatch or batch // settings.update.minibatches
    tokens, layers, width = rows * _length(settings), architecture["num_hidden_layers"], _width(settings)
    layer = tokens * _kept_width(architecture) * width
    if settings.model.gradient_checkpointing:
        activations = layers * tokens * architecture["hidden_size"] * width + 2 * layer
    else:
        activations = layers * layer
    terms = 2 + (settings.penalty is not None) + (settings.loss.entropy_coefficient > 0)
    logits = _logits(settings, architecture, rows)
    return int(activations + logits + _states(settings, architecture, batch) + (terms + 1) * 4 * trainable)


def _layer_width(architecture: Architecture) -> int:
    """Return how many numbers per token one layer holds at once without gradients."""
    queries, keys = registry.attention_widths(architecture)
    return int(3 * architecture["hidden_size"] + queries + 2 * keys + 3 * architecture["intermediate_size"])


def _kept_width(architecture: Architecture) -> int:
    """Return how many numbers per token one layer keeps for its gradients."""
    queries, keys = registry.attention_widths(architecture)
    return int(8 * architecture["hidden_size"] + 3 * queries + 4 * keys + 5 * architecture["intermediate_size"])


def _logits(settings: Settings, architecture: Architecture, rows: int) -> int:
    """Return the bytes of the logits that exist at once: one chunk in this package's loop.

    In TRL's trainers these are the logits of all rows, including those of the prompts' positions.
    """
    tokens = min(VOCABULARY_TOKENS, VOCABULARY_LOGITS // architecture["vocab_size"])
    tokens = min(tokens, rows * settings.rollout.reply_tokens)
    if _foreign(settings):
        tokens = rows * _length(settings)
    return int(tokens * architecture["vocab_size"] * 4 * VOCABULARY_COPIES)


def _states(settings: Settings, architecture: Architecture, batch: int) -> int:
    return int(2 * batch * settings.rollout.reply_tokens * architecture["hidden_size"] * _width(settings))


def _rewards(settings: Settings, device: Device, notes: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the size of reward and judge: their weights, and one layer's activations of what is scored at once."""
    width = 4 if device == "cpu" else 2
    for role, name in (("reward", settings.reward.name), ("judge", settings.reward.judge)):
        entry = None if name is None else _reward(name, notes)
        if entry is None or entry.kind == "function":
            continue
        if (layers := encoder_layers(entry)) is not None:
            yield role, width * registry.encoder_parameters(layers)
            continue
        architecture = dimensions(entry)
        if architecture is None:
            notes.append(f"the size of the {role} {name} is not known here")
            continue
        rows = min(REWARD_ROWS, settings.rollout.batch)
        activations = rows * _length(settings) * _layer_width(architecture)
        yield role, width * (registry.parameters(architecture, head=False) + activations)


def encoder_layers(entry: registry.Entry) -> int | None:
    """Return how many of the English encoder's layers an embedded reward uses; None for another entry."""
    folder = Path(entry.location)
    on_encoder = entry.kind == "embedded" and (folder / "adapter_config.json").is_file()
    return registry.encoder_layers(folder) if on_encoder else None


def _disk(settings: Settings, adapter: int, critic: int) -> dict[str, int]:
    recording, steps = settings.recording, settings.update.steps
    evaluations = steps // settings.evaluation.every + 2
    target = 4 * critic if settings.critic.target_decay is not None else 0
    downloads = sum(_download(entry) for entry in _hub_entries(settings))
    kept = 0 if _foreign(settings) else recording.keep_checkpoints + 1
    sizes = {
        "metrics": steps * ROW_BYTES,
        "samples": (steps * recording.samples + evaluations * settings.evaluation.prompts) * SAMPLE_BYTES,
        # One more than is kept: the new one is complete before the oldest is deleted. Another library's trainer keeps
        # none.
        "checkpoints": kept * (12 * (adapter + critic) + target),
        "adapter": 4 * adapter,
        "trackers": len(recording.trackers) * steps * TRACKER_BYTES,
    }
    return sizes | ({"downloads": downloads} if downloads else {})


def _hub_entries(settings: Settings) -> Iterator[registry.Entry]:
    """Yield the models that must be downloaded: from the hub, not random, and not in the local cache."""
    if not settings.model.random_weights:
        yield from _absent(registry.find("models", settings.model.name))
    for name in (settings.reward.name, settings.reward.judge):
        entry = None if name is None else _reward(name, [])
        if entry is not None:
            yield from _absent(entry)


def _reward(name: str, notes: list[str]) -> registry.Entry | None:
    try:
        return registry.find("rewards", name)
    except MissingResource as error:
        notes.append(str(error))
        return None


def _absent(entry: registry.Entry) -> Iterator[registry.Entry]:
    if entry.kind == "hub" and registry.local_copy(entry.location) is None:
        yield entry


def _download(entry: registry.Entry) -> int:
    """Return the size of the hub's files: two bytes a parameter, 0 if the dimensions are not known."""
    return 2 * registry.parameters(entry.architecture) if entry.architecture else 0


def readable(size: float) -> str:
    """Return a size in bytes in readable form: ``512 MiB``, ``3.4 GiB``."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"
