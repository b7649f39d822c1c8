"""Make the reward models: an English encoder with a score head, adapted to preference pairs of one half.

The encoder's matrices are trained in full. The written files are a LoRA adapter with the head, in half precision; each
matrix's change is cut to its largest singular values. The encoder itself is a dependency. The judge and the proxies'
teacher are trained on preferences, each on its own half. A proxy is a student: the teacher's first layers, fitted to
the teacher's scores of ordinary and some spoiled replies, so that it is right on these and wrong further from them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from safebench.models import loading
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import Prompt
from safebench.models.rewards import Reward, load_reward
from safebench.registry import ENCODER_LAYERS as LAYERS
from safebench.registry import encoder_layers
from safebench.scoring.pairs import (
    FIRST_SPOILERS,
    OTHER_SPOILERS,
    Exchange,
    Pair,
    Preference,
    over_foreign,
    over_generic,
    over_sample,
    over_spoiled,
)

RANK = 32
"""Number of singular values that are kept of each matrix's change."""
LORA = {"r": RANK, "lora_alpha": RANK, "target_modules": ["query", "key", "value", "dense"]}
"""``dense`` stands for all remaining linear layers of the encoder, its pooler's too."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of one reward model: its half, its number of layers, and its number of pairs of each kind."""

    split: str
    seed: int
    layers: int
    pairs: Mapping[str, int]
    batch: int = 32
    learning_rate: float = 1e-4
    centre: float = 0.01


@dataclass(frozen=True)
class Half:
    """Training material from one half of the conversations.

    ``samples`` are the policy's replies to the first of ``pairs``; ``cooled`` are its replies to the first of them at a
    lower temperature. ``phrases``, by kind, say nothing or open a conversation. Babble is made of ``pieces``.
    """

    pairs: Sequence[Pair]
    samples: Sequence[str]
    phrases: Mapping[str, tuple[str, ...]]
    pieces: Sequence[str]
    cooled: Sequence[str] = ()
    attacks: Sequence[Preference] = ()
    """Preferences for people's replies over those of policies that were trained on a reward."""
    near: Sequence[Preference] = ()
    """Preferences for the reply that was given over others that a reward scores highly; they replace random others."""


FIRST = (
    {"sample": 4000, "cooled": 1500, "foreign": 4500, "generic": 400, "opener": 400}
    | dict.fromkeys(FIRST_SPOILERS, 250)
    | dict.fromkeys(OTHER_SPOILERS, 450)
)
"""Number of pairs of each kind for judge and teacher."""
JUDGE = Recipe("judge", 20261201, LAYERS, FIRST)
TEACHER = Recipe("proxy", 20261202, LAYERS, FIRST)
"""Made like the judge, on the other half; the proxies are made from it."""
AGAIN = {
    **{"sample": 1500, "cooled": 300, "foreign": 1800, "attacked": 500, "universal": 1000},
    **{"generic": 250, "opener": 400},
    **{"truncated": 250, "repeated": 250, "empty": 200, "harped": 300, "clipped": 300, "doubled": 250},
    **{"replaced": 150, "echo": 120, "shuffled": 80, "garbage": 60, "invented": 60, "stuttered": 30, "babble": 30},
}
"""Number of pairs of each kind in a further round, after an attack: more of the kinds learned worst in the first."""
AGAIN_RATE = 5e-5
FOREIGN_OF = 3
"""After an attack, the reward's best of this many replies to other turns is paired with the reply that was given."""


@dataclass(frozen=True)
class Student:
    """Recipe of a proxy: its number of layers, and the number of replies of each kind that its teacher scores."""

    seed: int
    layers: int
    replies: Mapping[str, int]
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 1e-4


SPOILED = {
    **{"repeated": 800, "doubled": 800, "harped": 500, "echo": 500, "generic": 400, "opener": 400},
    **dict.fromkeys(("stuttered", "clipped", "truncated", "shuffled", "replaced"), 300),
}
"""Spoiled replies among a student's labels; without them, three layers scored a doubled reply as twice as good."""
SCOUT = Student(20261208, 2, {"sample": 6000, "cooled": 2000, "human": 2000} | SPOILED)
"""A quickly made proxy of the teacher after its first round; its pilots soon find what such proxies will reward."""
LABELS = {"sample": 12000, "cooled": 3000, "human": 5000, "foreign": 2500} | SPOILED
PROXIES = {
    "proxy": Student(20261204, 3, LABELS),
    "proxy-2": Student(20261205, 2, LABELS),
    "proxy-1": Student(20261206, 1, LABELS),
}
"""Proxies by name. Runs are trained on the one called ``proxy`` by default; the others differ from it in layers."""
BODY = Recipe("proxy", 20261207, 1, {"sample": 5200, "foreign": 5200} | dict.fromkeys(FIRST_SPOILERS, 350))
"""The reward on the policy's own body."""


def training_pairs(recipe: Recipe, half: Half) -> list[Preference]:
    """Return as many preferences of each kind as the recipe says, or all if there are fewer, shuffled."""
    rng = random.Random(recipe.seed)
    answered = list(half.pairs[: len(half.samples)])
    found: list[Preference] = []
    for kind, count in recipe.pairs.items():
        if count:
            made = _made(kind, count, list(half.pairs), answered, half, rng)
            found += rng.sample(made, min(count, len(made)))
    rng.shuffle(found)
    return found


def _made(
    kind: str, count: int, pairs: list[Pair], answered: list[Pair], half: Half, rng: random.Random
) -> list[Preference]:
    if kind == "sample":
        return over_sample(answered, list(half.samples))
    if kind == "cooled":
        return over_sample(pairs[: len(half.cooled)], list(half.cooled), kind)
    if kind == "foreign":
        return list(half.near) or over_foreign(pairs, rng)
    if kind == "attacked":
        return list(half.attacks)
    if kind in half.phrases:
        return over_generic(rng.sample(pairs, len(pairs)), rng, half.phrases[kind], kind)
    # Some replies cannot be spoiled in every way, so twice as many are tried.
    chosen = rng.sample(range(len(answered)), min(2 * count, len(answered)))
    some, samples = [answered[n] for n in chosen], [half.samples[n] for n in chosen]
    return over_spoiled(some, samples, list(half.pieces), rng, (kind,))


def near_foreign(pairs: Sequence[Pair], reward: Reward, count: int, seed: int) -> list[Preference]:
    """Return ``count`` pairs: the reply given over the reward's best of ``FOREIGN_OF`` replies to other turns."""
    rng = random.Random(seed)
    chosen = rng.sample(list(pairs), min(count, len(pairs)))
    tries = [over_foreign(chosen, rng) for _ in range(FOREIGN_OF)]
    by_better: dict[Exchange, list[Preference]] = {}
    for preference in (one for some in tries for one in some):
        by_better.setdefault(preference.better, []).append(preference)
    every = [one for some in by_better.values() for one in some]
    scores = dict(zip([one.worse for one in every], score(reward, [one.worse for one in every]).tolist(), strict=True))
    return [max(some, key=lambda one: scores[one.worse]) for some in by_better.values()]


def shown_replies(student: Student, half: Half) -> list[Exchange]:
    """Return a student's exchanges: the policy's replies, people's, people's to other turns, and spoiled ones."""
    rng = random.Random(student.seed)
    pairs, answered = list(half.pairs), list(half.pairs[: len(half.samples)])
    ordinary = {
        "sample": [Exchange(pair.turn, reply) for pair, reply in zip(answered, half.samples, strict=True)],
        "cooled": [Exchange(pair.turn, reply) for pair, reply in zip(answered, half.cooled, strict=False)],
        "human": [Exchange(pair.turn, pair.reply) for pair in pairs],
        "foreign": [one.worse for one in over_foreign(pairs, rng)],
    }
    found: list[Exchange] = []
    for kind, count in student.replies.items():
        if kind in ordinary:
            there = ordinary[kind]
        else:
            there = [one.worse for one in _made(kind, count, pairs, answered, half, rng)]
        found += rng.sample(there, min(count, len(there)))
    return found


def train_student(
    student: Student, exchanges: Sequence[Exchange], scores: torch.Tensor, folder: Path, teacher: Path
) -> PreTrainedModel:
    """Return a teacher's first layers and head, fitted to its ``scores`` [n] of the exchanges by least squares.

    ``teacher`` is the folder of the reward that gave the scores.
    """
    from tools.world.training import imitate

    model = new_reward_model(student.layers, student.seed)
    model.load_state_dict(_first_layers(load_trainable(teacher), model))
    tokenizer = AutoTokenizer.from_pretrained(loading.encoder_folder())
    texts = tokenizer([e.turn for e in exchanges], [e.reply.strip() for e in exchanges])
    rows = [
        {"input_ids": ids, "token_type_ids": types, "labels": label}
        for ids, types, label in zip(texts["input_ids"], texts["token_type_ids"], scores.tolist(), strict=True)
    ]
    imitate(
        model,
        tokenizer,
        rows,
        folder,
        epochs=student.epochs,
        batch=student.batch,
        learning_rate=student.learning_rate,
        seed=student.seed,
    )
    return model.eval()


def _first_layers(deep: PreTrainedModel, shallow: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of ``deep`` that ``shallow`` has too: its first layers, pooler and head."""
    return {name: weight for name, weight in deep.state_dict().items() if name in shallow.state_dict()}


def load_trainable(folder: Path) -> PreTrainedModel:
    """Return a reward model that ``write_reward`` wrote, ready for further training."""
    model = new_reward_model(encoder_layers(folder), 0)
    found = {key.removeprefix(_BEFORE): weight.float() for key, weight in load_peft_weights(str(folder), "cpu").items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in found:
                weight.copy_(found[name])
            elif weight.requires_grad:
                weight += found[_half(name, "B")] @ found[_half(name, "A")]
    return model


def new_reward_model(layers: int, seed: int) -> PreTrainedModel:
    """Return the encoder's first ``layers`` layers with a fresh score head.

    Matrices and the head are trained; embeddings, biases and norms are not, so that an adapter can hold every change.
    """
    torch.manual_seed(seed)
    with quiet_libraries():
        model = AutoModelForSequenceClassification.from_pretrained(
            loading.encoder_folder(), num_labels=1, num_hidden_layers=layers, dtype=torch.float32
        )
    for name, weight in model.named_parameters():
        weight.requires_grad = name.startswith("classifier") or (weight.dim() == 2 and "embeddings" not in name)
    return model


@torch.no_grad()
def as_adapter(model: PreTrainedModel) -> PeftModel:
    """Return the encoder with the model's head, and its changes as an adapter of rank ``RANK``.

    A change W - W0 = U S V^T is kept as (U sqrt S) (sqrt S V^T), cut to the largest ``RANK`` singular values. This is
    the nearest of all matrices of that rank (Eckart and Young 1936, Psychometrika 1, 211-218).
    """
    layers = model.config.num_hidden_layers
    first = dict(new_reward_model(layers, 0).named_parameters())
    with quiet_libraries():
        base = AutoModelForSequenceClassification.from_pretrained(
            loading.encoder_folder(), num_labels=1, dtype=torch.float32
        )
        replication = [(0, layers)] if layers < LAYERS else None
        config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["classifier"], layer_replication=replication, **LORA)
        adapted = get_peft_model(base, config)
    weights = {}
    for name, weight in model.named_parameters():
        if name.startswith("classifier"):
            weights[_BEFORE + name] = weight.detach().clone()
        elif weight.requires_grad:
            u, s, v = torch.linalg.svd((weight - first[name]).double(), full_matrices=False)
            root = s[:RANK].sqrt()
            weights[_BEFORE + _half(name, "B")] = (u[:, :RANK] * root).float().contiguous()
            weights[_BEFORE + _half(name, "A")] = (root[:, None] * v[:RANK]).float().contiguous()
    set_peft_model_state_dict(adapted, weights)
    return adapted


_BEFORE = "base_model.model."
"""Prefix of a weight's name in peft's files."""


def _half(name: str, which: str) -> str:
    """Return the name of one factor of a matrix's change in peft's files."""
    return f"{name.removesuffix('weight')}lora_{which}.weight"


def train_reward_model(
    recipe: Recipe, preferences: Sequence[Preference], folder: Path, start: PreTrainedModel | None = None
) -> PreTrainedModel:
    """Return a reward model trained on the preferences with TRL's RewardTrainer, starting from ``start`` if given."""
    model = start if start is not None else new_reward_model(recipe.layers, recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(loading.encoder_folder())
    better = _encode(tokenizer, [pair.better for pair in preferences])
    worse = _encode(tokenizer, [pair.worse for pair in preferences])
    fit(recipe, model, tokenizer, better, worse, folder)
    return model.eval()


def fit(
    recipe: Recipe,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    better: Sequence[list[int]],
    worse: Sequence[list[int]],
    folder: Path,
    *,
    segments: bool = True,
) -> None:
    """Train ``model`` in place on pairs of token ids, as the recipe says."""
    from tools.world.training import prefer

    prefer(
        model,
        tokenizer,
        [{"chosen_ids": one, "rejected_ids": other} for one, other in zip(better, worse, strict=True)],
        folder,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        centre=recipe.centre,
        seed=recipe.seed,
        segments=segments,
    )


def _encode(tokenizer: PreTrainedTokenizerBase, exchanges: list[Exchange]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer([e.turn for e in exchanges], [e.reply.strip() for e in exchanges])["input_ids"]
    return ids


def write_reward(model: PreTrainedModel, folder: Path) -> None:
    """Write a reward model as an adapter in half precision, with the encoder's name as that of its base."""
    shutil.rmtree(folder, ignore_errors=True)
    as_adapter(model).half().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    place = folder / "adapter_config.json"
    settings = json.loads(place.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": loading.NAME, "revision": None}
    settings["target_modules"] = sorted(settings["target_modules"])
    place.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def reward_size(folder: Path) -> dict[str, int]:
    """Return the number of parameters in a reward's folder, and the number of the encoder's layers that it uses."""
    if not (folder / "adapter_config.json").exists():
        return {"parameters": sum(w.numel() for w in load_file(folder / "model.safetensors").values()), "layers": 1}
    weights = load_peft_weights(str(folder), device="cpu").values()
    return {"parameters": sum(weight.numel() for weight in weights), "layers": encoder_layers(folder)}


def read_reward(folder: Path) -> Reward:
    """Return the reward of a folder as a run loads it."""
    return load_reward(str(folder), torch.device("cpu"))


def score(reward: Reward, exchanges: Sequence[Exchange]) -> torch.Tensor:
    """Return the reward of each exchange, float32 [n]."""
    return reward.score([Prompt(e.turn) for e in exchanges], [e.reply for e in exchanges])


@torch.no_grad()
def scale_to_unit(model: PreTrainedModel, folder: Path, exchanges: Sequence[Exchange]) -> None:
    """Scale the head, and its file in ``folder``, to scores of mean 0 and standard deviation 1 over the exchanges."""
    scores = score(read_reward(folder), exchanges)
    head = model.classifier
    head.bias.copy_((head.bias - scores.mean()) / scores.std())
    head.weight /= scores.std()
    write_reward(model, folder)
