"""Replies to held-out prompts: measured for the log, and shown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas
from rich.console import Console
from rich.table import Table

from safebench.settings import Settings
from safebench.trainers.evaluate import Evaluation, evaluate
from safebench.trainers.processes import Processes
from safebench.trl.data import Rows, read_prompts
from safebench.world import noise
from safebench.world.assemble import World
from safebench.world.rewards import score
from safebench.world.rollout import encode, sample

NEARLY_GREEDY = 0.01
"""Temperature of the replies that are shown, as in TRL."""


def measure(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> dict[str, float]:
    """Return reward, exact KL, entropy, length and variety of the replies to ``rows``, by their names in our schema.

    Sampled at temperature 1 with noise that is the same at every step; KL and entropy are nats per token.
    """
    found = _evaluate(settings, world, processes, rows, chunk)
    return {key.removeprefix("eval/"): value for key, value in found.columns.items() if value is not None}


def spread(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> float:
    """Return sigma_0, the standard deviation of the present policy's rewards on ``rows``; 1 where it is 0."""
    return _evaluate(settings, world, processes, rows, chunk).reward_std or 1.0


def _evaluate(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> Evaluation:
    rollout = settings.rollout.model_copy(update={"chunk": chunk})
    update = settings.update.model_copy(update={"microbatch": chunk})
    settings = settings.model_copy(update={"rollout": rollout, "update": update})
    return evaluate(settings, dataclasses.replace(world, prompts=read_prompts(rows, rows)), processes, chunk)


def complete(
    settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int, limit: int | None
) -> pandas.DataFrame:
    """Return prompts, nearly greedy replies and their scores, of the first ``limit`` rows or of all."""
    policy = world.policy
    count = rows.size if limit is None else min(limit, rows.size)
    share = range(processes.rank, count, processes.count)
    found: list[dict[str, Any]] = []
    for start in range(0, len(share), chunk):
        part = share[start : start + chunk]
        prompts = encode(
            [rows.text(i) for i in part],
            [rows.tokens(i) for i in part],
            settings.prompts.max_tokens,
            int(policy.tokenizer.pad_token_id),
            policy.device,
        )
        draws = noise.uniforms("completions", settings.seed, 0, part, settings.rollout.reply_tokens)
        rollout = sample(policy, prompts, draws, NEARLY_GREEDY)
        scores = score(world.reward, rollout).tolist()
        for row, prompt, reply, value in zip(part, rollout.prompts, rollout.replies, scores, strict=True):
            found.append({"row": row, "query": str(prompt), "model response": reply, "score": value})
    ordered = sorted(processes.gather(found), key=lambda item: int(item["row"]))
    return pandas.DataFrame(ordered, columns=["query", "model response", "score"])


def show(frame: pandas.DataFrame, count: int = 5) -> None:
    """Print the first replies as a table."""
    table = Table(show_lines=True)
    for column in frame.columns:
        table.add_column(str(column))
    for _, row in frame.head(count).iterrows():
        table.add_row(*(str(value) for value in row))
    Console().print(table)
