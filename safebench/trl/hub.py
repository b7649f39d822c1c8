"""The model card, and uploading to the hub, which happens only when the user asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData

from safebench.errors import MissingResource, UsageError
from safebench.world.loading import naming


def card(
    name: str, base: str | None, dataset: str | None, tags: Sequence[str], trainer: str, settings: Sequence[str]
) -> ModelCard:
    """Return a model card: what was trained from what, by which trainer, with which settings."""
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
    """Create the repository if need be and upload the folder; with ``wait`` False return what tells its progress."""
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
    """Return the name of the repository: ``hub_model_id``, or that of the output folder."""
    name = args.hub_model_id or Path(args.output_dir).name
    if not name:
        raise UsageError("no name for the repository", "Set hub_model_id.")
    return str(name)
