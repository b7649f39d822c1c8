"""Draws many replies of the initial policy to each held-out prompt and scores them: the record behind best of n."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from safebench import config
from safebench.analysis.frontier import COLUMNS, FOLDER, MUST_MATCH
from safebench.config.schema import Settings
from safebench.errors import UsageError
from safebench.models import seeding
from safebench.models.assemble import World, assemble
from safebench.models.generation import encode, sample
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import encode_prompt
from safebench.recording import manifest
from safebench.recording.files import Appender, FolderLock, make_folder, now, write_atomic
from safebench.training.distributed import Processes

Progress = Callable[[int, int], None]
"""Called with the number of replies drawn and scored so far, and the total."""

DRAWS = 64
TOGETHER = 4
"""Prompts whose replies are sampled at once. The draws depend on it, because another grouping rounds differently."""


def record_folder(settings: Settings, root: Path, draws: int = DRAWS) -> Path:
    """Return <root>/<model>/best-of-n/<hash of what the draws depend on>."""
    text = json.dumps(_matter(settings, draws), sort_keys=True)
    return root / config.model_folder(settings.model.name) / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:8]


def sample_best_of_n(
    settings: Settings, root: Path, *, draws: int = DRAWS, progress: Progress | None = None
) -> Path:
    """Draw ``draws`` replies of the initial policy to each held-out prompt, at temperature 1, and score them.

    The noise of a reply depends only on its prompt and draw, not on the run's seed. Writes ``scores.csv`` (a row per
    reply) and ``manifest.json`` (hashes like a run's, and the settings that matter) and returns their folder. A
    repeated call continues after an interruption, and leaves a finished record of the same files unchanged. Raises
    ``UsageError`` if the folder holds a record of other files.
    """
    if draws < 1:
        raise UsageError(f"{draws} draws", "Give at least 1; powers of two use them all.")
    folder = record_folder(settings, root, draws)
    if _described(folder).get("complete") and _described(folder).get("hashes") == manifest.hashes_of(settings):
        return folder
    make_folder(folder)
    with FolderLock(folder), quiet_libraries():
        processes = Processes(settings.compute)
        world = assemble(settings, processes.device)
        made = _begin(folder, settings, world, draws, processes.device)
        if not made["complete"]:
            _draw_all(folder / "scores.csv", settings, world, draws, progress)
            manifest.write(folder, made | {"complete": True, "ended": now()})
    return folder


def _matter(settings: Settings, draws: int) -> dict[str, Any]:
    """Return the settings that the draws and their scores depend on."""
    flat = settings.model_dump(mode="json")
    others = ("model.name", "model.random_weights", "reward.name", "reward.judge", "prompts.name", "prompts.column")
    keys = (*MUST_MATCH, *others, "rollout.chunk")
    matter = {key: flat[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
    seed = {"seed": settings.seed} if settings.model.random_weights else {}
    labels = {f"reward.{key}": found for key in ("label", "judge_label") if (found := flat["reward"][key]) is not None}
    return {**matter, **labels, **seed, "draws": draws, "temperature": 1.0, "together": TOGETHER}


def _described(folder: Path) -> dict[str, Any]:
    return manifest.read(folder) if (folder / manifest.FILE).exists() else {}


def _begin(folder: Path, settings: Settings, world: World, draws: int, device: torch.device) -> dict[str, Any]:
    """Return the record's manifest: that of an interrupted call, or a new one, written before the first draw."""
    files, there = manifest.hashes_of(settings), _described(folder)
    if there and there.get("hashes") != files:
        names = ", ".join(key for key in files if there.get("hashes", {}).get(key) != files[key])
        raise UsageError(
            f"{folder} was made with other files ({names})", "Move it away, then call the same command again."
        )
    if there:
        return there
    made = {
        "complete": False,
        "prompts": len(world.prompts.heldout),
        "draws": draws,
        "settings": _matter(settings, draws),
        "notices": list(world.notices),
        "vocabulary": world.policy.vocabulary,
        "started": now(),
        "command": shlex.join(_command(settings, draws)),
        "hashes": files,
        "versions": manifest.versions(),
        "git": manifest.checkout(),
        "hardware": manifest.hardware(str(device)),
    }
    manifest.write(folder, made)
    return made


def _command(settings: Settings, draws: int) -> list[str]:
    """Return the command line that makes this record: the preset, and the changes to the experiment as shipped."""
    _, _, preset = settings.experiment.partition("@")
    words = ["safebench", "report", "ppo", "--best-of-n", str(draws), *(["--preset", preset] if preset else [])]
    return words + config.command(settings)[len(["safebench", "run", "EXPERIMENT", "--seeds", "N"]) :]


def _draw_all(path: Path, settings: Settings, world: World, draws: int, progress: Progress | None) -> None:
    """Draw and score one group of prompts after another; a group is on the disk before the next begins."""
    prompts = world.prompts.heldout
    groups = [range(i, min(i + TOGETHER, len(prompts))) for i in range(0, len(prompts), TOGETHER)]
    done = _keep_whole(path, groups, draws)
    lines = Appender(path)
    try:
        for group in groups[done:]:
            for row in _drawn(settings, world, group, draws):
                lines.write(row)
            lines.sync()
            if progress is not None:
                progress(group.stop * draws, len(prompts) * draws)
    finally:
        lines.close()


def _keep_whole(path: Path, groups: list[range], draws: int) -> int:
    """Cut the file after the last whole group, and return how many groups it then holds."""
    header = ",".join(COLUMNS)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows = lines[1:] if lines[:1] == [header] else []
    done = sum(group.stop * draws <= len(rows) for group in groups)
    kept = rows[: groups[done - 1].stop * draws] if done else []
    write_atomic(path, "".join(f"{line}\n" for line in [header, *kept]).encode())
    return done


def _drawn(settings: Settings, world: World, group: range, draws: int) -> list[str]:
    """Return the lines of a group of prompts, with ``draws`` replies to each."""
    policy, tokens = world.policy, settings.rollout.reply_tokens
    prompts = [world.prompts.heldout[prompt] for prompt in group for _ in range(draws)]
    encoded = encode(
        prompts,
        [encode_prompt(policy.tokenizer, text) for text in prompts],
        settings.prompts.max_tokens,
        int(policy.tokenizer.pad_token_id),
        policy.device,
    )
    uniform = torch.cat([seeding.uniforms("best-of-n", 0, prompt, range(draws), tokens) for prompt in group])
    with policy.as_reference():
        rollout = sample(policy, encoded, uniform, 1.0, settings.rollout.chunk)
    proxy = world.reward.score(prompts, rollout.replies).tolist()
    judge = world.judge.score(prompts, rollout.replies).tolist() if world.judge else [None] * len(prompts)
    keys = [(prompt, draw) for prompt in group for draw in range(draws)]
    columns = zip(keys, proxy, judge, rollout.mask.sum(-1).tolist(), strict=True)
    return [f"{p},{d},{x!r},{'' if y is None else repr(y)},{n}" for (p, d), x, y, n in columns]
