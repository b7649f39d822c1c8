"""Saves models and checkpoints as TRL's users expect them, makes the model card, and uploads to the hub on request."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from peft import PeftModel

from safebench.errors import BadResource, MissingResource, UsageError
from safebench.models.libraries import naming
from safebench.recording import checkpoints
from safebench.trl.models import title

STATE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def save_model(folder: str | Path, model: Any, processing_class: Any, args: Any) -> None:
    """Write the adapter or the model, the tokenizer and ``training_args.bin``, as transformers' Trainer does.

    For a model with adapters, only the active adapter is written, not the copy that serves as the reference.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with naming(f"{title('model', model)}, saved to {folder}", "Make room, or name another folder as output_dir."):
        if isinstance(model, PeftModel):
            model.save_pretrained(folder, selected_adapters=list(model.active_adapters))
        else:
            model.save_pretrained(folder)
        processing_class.save_pretrained(folder)
    torch.save(args, Path(folder) / "training_args.bin")


def folder_of(output_dir: str | Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``."""
    return Path(output_dir) / f"checkpoint-{step}"


def all_folders(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints' folders, oldest first."""
    root = Path(output_dir)
    found = [(int(match[1]), path) for path in root.glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def save_state(folder: Path, step: int, trainer_state: Any, state: Mapping[str, Any]) -> None:
    """Write ``trainer_state.json``, then all that the next step depends on as ``step-<n>.pt``, wholly or not at all."""
    trainer_state.save_to_json(str(folder / STATE))
    checkpoints.save(folder, step, state)


def find_checkpoint(output_dir: str | Path, wanted: str | Path | bool) -> Path:
    """Return the checkpoint to resume from: the named one or, for True, the newest whole one under ``output_dir``."""
    if wanted is not True:
        folder = Path(str(wanted))
        if not folder.is_dir():
            raise MissingResource(f"there is no checkpoint {folder}", "Name a folder checkpoint-<step>.")
        return folder
    for folder in reversed(all_folders(output_dir)):
        steps = checkpoints.steps(folder)
        if steps and checkpoints.damage(checkpoints.path_of(folder, steps[-1])) is None:
            return folder
    raise MissingResource(
        f"there is no whole checkpoint under {output_dir}", "Call train() without resume_from_checkpoint."
    )


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state that ``save_state`` wrote beside ``trainer_state.json``."""
    steps = checkpoints.steps(folder)
    if not steps:
        raise BadResource(
            f"{folder} has a model, but no state to go on from",
            "It was saved with save_only_model=True, or by another trainer: load the model, and train anew.",
        )
    return checkpoints.load(checkpoints.path_of(folder, steps[-1]))[1]


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond ``limit``, but neither the newest nor the best one."""
    if not limit or limit < 1:
        return
    folders = all_folders(output_dir)
    kept = {folders[-1]} | {folder for folder in folders if best is not None and folder == Path(best)}
    for folder in folders:
        if len(all_folders(output_dir)) <= max(limit, len(kept)):
            return
        if folder not in kept:
            shutil.rmtree(folder)


def card(
    name: str, base: str | None, dataset: str | None, tags: Sequence[str], trainer: str, settings: Sequence[str]
) -> ModelCard:
    """Return a model card with the base model, the data set, the trainer and the settings."""
    data = ModelCardData(
        base_model=base or None,
        datasets=dataset,
        library_name="transformers",
        model_name=name,
        tags=list(dict.fromkeys([*tags, "safebench", "generated_from_trainer"])),
    )
    origin = f"[{base}](https://huggingface.co/{base})" if base and not Path(base).exists() else base or "a local model"
    lines = "\n".join(f"- {line}" for line in settings)
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
        f"Trained from {origin} with safebench's `{trainer}` (proximal policy optimisation from a reward)"
        f"{f' on {dataset}' if dataset else ''}.\n\n## Settings\n\n{lines}\n"
    )
    return ModelCard(text)


def upload(
    folder: str | Path,
    repo: str,
    *,
    message: str,
    token: str | None,
    private: bool | None,
    revision: str | None,
    wait: bool,
    leave_out: Sequence[str],
) -> CommitInfo | Any:
    """Create the repository if need be and upload the folder; with ``wait`` False return a future of the upload."""
    hint = "Check hub_model_id and hub_token; all that is uploaded lies in the folder."
    with naming(f"uploading {folder} to {repo}", hint, MissingResource):
        api = HfApi(token=token)
        found = api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(found.repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=found.repo_id,
            folder_path=str(folder),
            commit_message=message,
            revision=revision,
            run_as_future=not wait,  # type: ignore[call-overload]
            ignore_patterns=["_*", *leave_out],
        )


def repository(args: Any) -> str:
    """Return the repository's name: ``hub_model_id``, or the name of the output folder."""
    name = args.hub_model_id or Path(args.output_dir).name
    if not name:
        raise UsageError("no name for the repository", "Set hub_model_id.")
    return str(name)
