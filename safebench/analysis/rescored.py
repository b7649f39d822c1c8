"""Read scores of saved replies by another reward, and measure how far a reward can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from safebench import config
from safebench.errors import BadResource, MissingResource

if TYPE_CHECKING:
    from safebench.analysis.runs import Run
import math

from safebench.analysis import statistics
from safebench.analysis.frontier import Array, Record, expected_best
from safebench.analysis.statistics import Estimate, Values

FOLDER = "rescored"
"""Folder in a run that holds ``<slug>.jsonl``, ``<slug>.csv`` and ``<slug>.json`` of each reward."""

HELD_OUT = "heldout"


@dataclass(frozen=True)
class Scores:
    """One reward's scores of a run's held-out replies: by step, then by row."""

    reward: str
    manifest: Mapping[str, Any]
    heldout: Mapping[int, Mapping[int, float]]

    @property
    def common(self) -> frozenset[int]:
        """Rows that are kept in every evaluation."""
        return common_rows(self.heldout)


@dataclass(frozen=True)
class Judged:
    """Groups of runs as scored by ``reward``, all over the same ``rows`` of up to ``of`` held-out replies.

    ``again`` is False if ``reward`` was the runs' own judge; the figures are then those that the runs measured.
    """

    reward: str
    groups: dict[str, list[Run]]
    rows: int
    of: int
    again: bool = True

    @property
    def full(self) -> bool:
        """Whether the rows are the whole held-out set."""
        return self.rows == self.of

    @property
    def note(self) -> str:
        """The line to print with every table of these runs; a warning if not ``full``."""
        if not self.again:
            return f"judge: {self.reward}, as the runs measured it"
        if self.full:
            return f"judge: {self.reward}, all {self.rows} held-out replies of every evaluation, scored again"
        return (
            f"judge: {self.reward}, on only {self.rows} of up to {self.of} held-out replies of every evaluation: "
            "the others were not kept in all of them"
        )


def slug(reward: str) -> str:
    """Return the name of a reward's files: its own name if that is valid, else a safe one made unique by a hash."""
    name = config.safe_name(reward.replace("/", "--"))
    return name if name == reward else f"{name}-{hashlib.sha256(reward.encode()).hexdigest()[:4]}"


def common_rows(steps: Mapping[int, Mapping[int, Any]]) -> frozenset[int]:
    """Return the rows that every step has; empty if there are no steps."""
    return frozenset.intersection(*map(frozenset, steps.values())) if steps else frozenset()


def read(folder: Path, reward: str) -> Scores:
    """Return what ``safebench rescore`` wrote for ``reward`` into the run ``folder``.

    Raises ``MissingResource`` with the command if there are no scores, ``BadResource`` if they are damaged or the run
    has continued since.
    """
    hint = f"`safebench rescore {folder} --reward {reward}` makes it."
    place = folder / FOLDER
    described = place / f"{slug(reward)}.json"
    if not described.is_file():
        raise MissingResource(f"{folder} was not scored by {reward}", hint)
    try:
        manifest = json.loads(described.read_text(encoding="utf-8"))
        lines = (place / f"{slug(reward)}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        heldout: dict[int, dict[int, float]] = {}
        for record in records:
            if record["split"] == HELD_OUT:
                heldout.setdefault(int(record["step"]), {})[int(record["row"])] = float(record["score"])
        size, whole = int(manifest["samples"]["bytes"]), len(records) == manifest["replies"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadResource(f"the scores of {reward} in {place} are damaged: {error}", hint) from error
    if not whole:
        raise BadResource(f"the scores of {reward} in {place} are not whole", hint)
    samples = folder / "samples.jsonl"
    if samples.exists() and samples.stat().st_size != size:
        raise BadResource(f"{folder} has gone on since {reward} scored it", hint)
    return Scores(reward, manifest, heldout)


def judged_by(run: Run, reward: str, rows: frozenset[int] | None = None) -> Run:
    """Return ``run`` as if ``reward`` had been its judge, with changed eval/judge, judge_sigma0, settings and hashes.

    The scores are over ``rows`` of the held-out replies, by default those that every evaluation of the run has kept.
    ``judge_sigma0`` is their standard deviation (n - 1) at step 0; without an evaluation there, it is unknown. If there
    are fewer rows than an evaluation has kept, ``evaluation.prompts`` in the settings is their number: such a run can
    be compared neither with a run judged on more replies nor with best of n. Use ``judged`` for runs that are to be
    compared. Raises as ``read`` does, and ``BadResource`` if an evaluation kept none of these replies.
    """
    scores = read(run.folder, reward)
    chosen = _checked(run, scores, rows)
    means = {step: fmean(by_row[row] for row in chosen) for step, by_row in scores.heldout.items()}
    first = scores.heldout.get(0)
    steps = [int(float(cell)) for cell in run.cells.get("step", ())]
    part = len(chosen) < max(map(len, scores.heldout.values()))
    changed: dict[str, dict[str, Any]] = {"reward": {"judge": reward}}
    changed |= {"evaluation": {"prompts": len(chosen)}} if part else {}
    return replace(
        run,
        settings={**run.settings, **{key: {**run.settings.get(key, {}), **new} for key, new in changed.items()}},
        manifest={
            **run.manifest,
            "judge_sigma0": None if first is None else stdev(first[row] for row in chosen),
            "hashes": {**run.manifest.get("hashes", {}), "judge": scores.manifest.get("hash")},
            "rescored": {"reward": reward, "rows": len(chosen)},
        },
        columns={**run.columns, "eval/judge": tuple(repr(means[s]) if s in means else "" for s in steps)},
    )


def judged(groups: Mapping[str, Sequence[Run]], reward: str) -> Judged:
    """Return all runs as judged by ``reward``, over the rows that every evaluation of every run has kept.

    If ``reward`` is the judge of all runs, they are returned unchanged.
    """
    runs = [run for group in groups.values() for run in group]
    of = max((int(run.settings.get("evaluation", {}).get("prompts", 0)) for run in runs), default=0)
    if all(run.settings.get("reward", {}).get("judge") == reward for run in runs):
        return Judged(reward, {arm: list(group) for arm, group in groups.items()}, of, of, again=False)
    rows = frozenset.intersection(*(read(run.folder, reward).common for run in runs))
    seen = {arm: [judged_by(run, reward, rows) for run in group] for arm, group in groups.items()}
    return Judged(reward, seen, len(rows), of)


def _checked(run: Run, scores: Scores, rows: frozenset[int] | None) -> list[int]:
    """Return the rows in order; every evaluation in metrics.csv must have kept each of them."""
    evaluated = run.column("step")[np.isfinite(run.column("eval/reward"))].astype(int).tolist()
    if missing := [step for step in evaluated if step not in scores.heldout]:
        raise BadResource(
            f"{run.folder} kept no held-out replies at step {', '.join(map(str, missing))}",
            "What was not kept cannot be judged again: make the run anew.",
        )
    chosen = scores.common if rows is None else rows & scores.common
    if len(chosen) < 2:
        raise BadResource(
            f"{run.folder} kept {len(chosen)} held-out replies that all evaluations have; at least 2 are needed",
            "What was not kept cannot be judged again: make the run anew.",
        )
    return sorted(chosen)


KINDS = {
    "sample": "the policy's",
    "foreign": "one given to another turn",
    "generic": '"yeah" and the like',
    "opener": '"how about yourself?" and the like',
    "invented": "itself with made-up words",
    "replaced": "itself with half its words replaced",
    "shuffled": "its own words in another order",
    "repeated": "itself with a word or phrase repeated",
    "harped": "itself with one word in place of others",
    "clipped": "a word or two of it",
    "doubled": "itself said twice",
    "stuttered": "one syllable or mark over and over",
    "echo": "the turn said back",
    "truncated": "itself cut off",
    "babble": "words and pieces of words",
    "garbage": "random bytes or letters",
    "empty": "nothing, or a mark",
}
"""Kinds of replies that a person's reply should be preferred to, by name."""
LIFTED = 16
"""The n of the best of n that is compared with a random reply."""


@dataclass(frozen=True)
class Order:
    """Pairs of one kind. ``right`` is the share in the right order, exact interval; ``tied`` pairs count as wrong."""

    kind: str
    right: Estimate
    tied: int


def order(kind: str, better: Values, worse: Values) -> Order:
    """Return in how many pairs the score in ``better`` [n] is above that in ``worse`` [n]."""
    first, second = statistics.array(better), statistics.array(worse)
    right = statistics.clopper_pearson(int((first > second).sum()), first.size)
    return Order(kind, right, int((first == second).sum()))


def within_prompts(first: Array, second: Array) -> Estimate:
    """Return Pearson's r of two rewards over the replies to one prompt, mean over prompts with a t-interval.

    Both are [prompts, draws]. A prompt has no r and is left out of n if either reward gives all its replies the same
    score.
    """
    found = [
        float(np.corrcoef(one, other)[0, 1])
        for one, other in zip(first, second, strict=True)
        if np.ptp(one) > 0 and np.ptp(other) > 0
    ]
    return statistics.mean(found)


def lift(record: Record, n: int = LIFTED) -> Estimate | None:
    """Return the judge's score of the best of n by the reward, minus that of a random reply.

    The unit is the judge's spread over all replies. The value is the mean over prompts with a t-interval. It is None if
    there are no judge scores, if the judge gave all replies the same score, or if there are fewer than n draws.
    """
    if record.judge is None or record.draws < n or not np.ptp(record.judge) > 0:
        return None
    gain = expected_best(record.proxy, record.judge, n) - record.judge.mean(axis=1)
    return statistics.mean((gain / record.judge.std(ddof=1)).tolist())


def verdict(gained: Estimate | None) -> str:
    """Return in words what a lift means for training on the reward."""
    if gained is None or not math.isfinite(gained.low):
        return "not shown"
    if gained.low > 0:
        return "its best replies are better by the judge"
    if gained.high < 0:
        return "its best replies are worse by the judge, and training on it leads there"
    return "not shown that its best replies are better or worse by the judge"
