"""Scores the saved replies of runs with another reward, so that old runs can be judged again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from safebench import config, registry
from safebench.analysis.rescored import FOLDER, HELD_OUT, common_rows, slug
from safebench.config.schema import Compute, Settings
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import Messages, Prompt, is_conversation, read_messages
from safebench.models.rewards import ModelReward, Reward, load_reward
from safebench.recording import manifest
from safebench.recording.files import Appender, FolderLock, is_locked, make_folder, now, storing, write_atomic
from safebench.recording.jsonl import format_line
from safebench.training.distributed import Processes


@dataclass(frozen=True)
class Reply:
    """One saved reply: its place in the run, its prompt (with the conversation, if it is one) and its text."""

    step: int
    split: str
    row: int
    prompt: Prompt
    reply: str


def read_replies(path: Path) -> list[Reply]:
    """Return the replies in samples.jsonl, in its order.

    Raises ``MissingResource`` if none were kept. Raises ``BadResource`` if a line is damaged, a reply occurs twice, or
    a held-out row has another prompt than before, because rows of different prompts must not be treated as one row.
    """
    if not path.is_file() or not path.stat().st_size:
        raise MissingResource(
            f"{path} is missing or empty: the run kept no replies", "What was not kept cannot be scored again."
        )
    replies = [
        _reply(path, number, line)
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1)
    ]
    seen: set[tuple[int, str, int]] = set()
    asked: dict[int, tuple[str, str]] = {}
    for number, reply in enumerate(replies, start=1):
        if (key := (reply.step, reply.split, reply.row)) in seen:
            raise BadResource(f"{path}, line {number}: row {reply.row} of step {reply.step} is there twice")
        seen.add(key)
        if reply.split == HELD_OUT and asked.setdefault(reply.row, reply.prompt.same_as) != reply.prompt.same_as:
            raise BadResource(f"{path}, line {number}: held-out row {reply.row} has another prompt than before")
    return replies


def _reply(path: Path, number: int, line: str) -> Reply:
    try:
        record = json.loads(line)
        prompt = Prompt(str(record["prompt"]), _messages(f"{path}, line {number}", record.get("messages")))
        return Reply(int(record["step"]), str(record["split"]), int(record["row"]), prompt, str(record["reply"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadResource(f"{path}, line {number} is damaged: {error}") from error


def _messages(where: str, value: object) -> Messages | None:
    """Return a line's conversation, or None if it has none because its prompt is a text."""
    if value is None:
        return None
    if not is_conversation(value):
        raise BadResource(f"{where} is damaged: messages is no list of messages", "Make the run anew.")
    return read_messages(value, where)


def grouped(replies: Sequence[Reply], batch: int) -> list[list[int]]:
    """Return indices into ``replies`` in groups of at most ``batch``, each scored in one call.

    The replies of one evaluation share groups with no others, as when the run scored them: padding, and with it the
    last digits, is then the same. The training replies of all steps fill groups together, because a step keeps few.
    """
    kinds: dict[int | None, list[int]] = {}
    for index, reply in enumerate(replies):
        kinds.setdefault(reply.step if reply.split == HELD_OUT else None, []).append(index)
    return [kind[i : i + batch] for kind in kinds.values() for i in range(0, len(kind), batch)]


COLUMNS = ("step", "split", "n", "of", "mean", "std", "common_n", "common_mean", "common_std")
"""For one step and split: the number of replies kept, the number there were, and their mean score and standard
deviation (n - 1). For held-out replies also the same figures over the rows that every evaluation has kept; only these
can be compared between steps."""

Group = dict[int, float]


def write(files: Path, replies: Sequence[Reply], scores: Sequence[float], made: Mapping[str, Any]) -> None:
    """Write ``<files>.jsonl``, ``.csv`` and ``.json``, in this order; the last states that the others are whole."""
    described = files.with_name(f"{files.name}.json")
    with storing(described):
        described.unlink(missing_ok=True)
    lines = [
        format_line({"step": reply.step, "split": reply.split, "row": reply.row, "score": score})
        for reply, score in zip(replies, scores, strict=True)
    ]
    write_atomic(files.with_name(f"{files.name}.jsonl"), "".join(f"{line}\n" for line in lines).encode(), durable=True)
    write_atomic(files.with_name(f"{files.name}.csv"), _table(replies, scores, made["of"]).encode(), durable=True)
    write_atomic(described, f"{json.dumps(made, indent=2)}\n".encode(), durable=True)


def extent(replies: Sequence[Reply], settings: Settings) -> dict[str, Any]:
    """Return the number of replies and evaluations, of rows in all evaluations, and of replies that a step had."""
    heldout = _by_step(replies, range(len(replies)), HELD_OUT)
    return {
        "replies": len(replies),
        "evaluations": len(heldout),
        "common": len(common_rows(heldout)),
        "of": {"train": settings.rollout.batch, HELD_OUT: settings.evaluation.prompts},
    }


def _table(replies: Sequence[Reply], scores: Sequence[float], of: Mapping[str, int]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    by_split = {split: _by_step(replies, scores, split) for split in dict.fromkeys(reply.split for reply in replies)}
    common = common_rows(by_split.get(HELD_OUT, {}))
    keys = dict.fromkeys((reply.step, reply.split) for reply in replies)
    for step, split in keys:
        group = by_split[split][step]
        shared = _figures([group[row] for row in sorted(common)]) if split == HELD_OUT else ("", "", "")
        n, mean, std = _figures(list(group.values()))
        writer.writerow((step, split, n, of.get(split, ""), mean, std, *shared))
    return text.getvalue()


def _by_step(replies: Sequence[Reply], values: Sequence[float], split: str) -> dict[int, Group]:
    found: dict[int, Group] = {}
    for reply, value in zip(replies, values, strict=True):
        if reply.split == split:
            found.setdefault(reply.step, {})[reply.row] = value
    return found


def _figures(values: Sequence[float]) -> tuple[str, str, str]:
    """Return count, mean and standard deviation as text; a figure that does not exist is empty."""
    mean = repr(fmean(values)) if values else ""
    return str(len(values)), mean, repr(stdev(values)) if len(values) > 1 else ""


Progress = Callable[[Path, int, int], None]
"""Called with the run's folder, the number of replies scored so far, and the total."""

BATCH = 128
"""Replies given to the reward at once."""


@dataclass(frozen=True)
class Rescored:
    """The result for one run: three files that begin with ``files`` and end in ``.csv``, ``.jsonl`` and ``.json``.

    ``common`` of up to ``of`` held-out rows are in every one of the ``evaluations``; a comparison may use only these.
    ``fresh`` is False if the same reward had scored the same replies before, and nothing was done.
    """

    folder: Path
    reward: str
    files: Path
    replies: int
    evaluations: int
    common: int
    of: int
    fresh: bool
    notices: tuple[str, ...] = ()
    """The reward's notices about the replies that it read."""


def rescore(
    folder: Path,
    reward: str,
    *,
    device: str = "auto",
    batch: int = BATCH,
    force: bool = False,
    progress: Progress | None = None,
    label: int | str | None = None,
    trust: Collection[str] = (),
) -> Rescored:
    """Score every reply saved in the run ``folder`` with ``reward`` and write ``<folder>/rescored/<slug>.*``.

    ``reward`` is a catalogue name, hub id, local directory or ``module:function``. A repeated call continues after an
    interruption. If the same files of the reward have scored the same replies, it does nothing, unless ``force``.
    ``label`` is the output of a classifier with several outputs; ``trust`` names rewards whose own code may run.
    Raises ``MissingResource`` without replies or reward, ``BadResource`` if either is faulty, and ``UsageError`` while
    the run is being written; the files of an earlier reward are then left as they were.
    """
    return rescore_all(
        [folder], reward, device=device, batch=batch, force=force, progress=progress, label=label, trust=trust
    )[0]


def rescore_all(
    folders: Sequence[Path],
    reward: str,
    *,
    device: str = "auto",
    batch: int = BATCH,
    force: bool = False,
    progress: Progress | None = None,
    label: int | str | None = None,
    trust: Collection[str] = (),
) -> list[Rescored]:
    """Do as ``rescore`` does for several runs; the reward is loaded once, and only if there is anything to score."""
    if batch < 1:
        raise UsageError(f"a batch of {batch} replies", "Give at least 1.")
    scorer = _Scorer(reward, device, label, trust)
    return [_Task(folder, scorer, batch).do(force, progress) for folder in folders]


class _Scorer:
    """A reward that is loaded on first use."""

    def __init__(self, name: str, device: str, label: int | str | None, trust: Collection[str]) -> None:
        self.name, self.device, self.label, self.trust = name, device, label, trust

    @property
    def hash(self) -> str:
        """Hash of its files as they are on this machine now; loading may first download them from the hub."""
        return manifest.hash_of_entry(registry.reward_source(self.name))

    @cached_property
    def reward(self) -> Reward:
        with quiet_libraries():
            device = Processes(Compute(device=self.device)).device
            return load_reward(self.name, device, label=self.label, trust=self.trust, option="--label ")

    @property
    def notices(self) -> tuple[str, ...]:
        """The reward's notices about what it has read; empty if it was not loaded."""
        reward = self.__dict__.get("reward")
        return tuple(getattr(reward, "notices", ()))


class _Task:
    """One run and one reward."""

    def __init__(self, folder: Path, scorer: _Scorer, batch: int) -> None:
        if not (folder / "config.yaml").is_file():
            raise MissingResource(f"{folder} is no run folder: it has no config.yaml", "`safebench list` lists them.")
        if is_locked(folder):
            raise UsageError(f"another process is writing the run in {folder}", "Wait for it to end.")
        self.folder, self.scorer, self.batch = folder, scorer, batch
        self.files = folder / FOLDER / slug(scorer.name)
        self.replies = read_replies(folder / "samples.jsonl")
        self.extent = extent(self.replies, config.load(folder / "config.yaml"))
        # Whether the run's policy had a chat template; it decides how replies follow their prompts (``Reader.apart``).
        described = manifest.read(folder) if (folder / manifest.FILE).exists() else {}
        self.apart = described.get("templated") is not False
        self.labelled = {} if scorer.label is None else {"label": scorer.label}
        samples = folder / "samples.jsonl"
        self.samples = {"sha256": manifest.hash_folder(samples), "bytes": samples.stat().st_size}

    def do(self, force: bool, progress: Progress | None) -> Rescored:
        if not force and self._done():
            return self._outcome(fresh=False)
        make_folder(self.files.parent)
        with FolderLock(self.files.parent):
            reward, found = self.scorer.reward, self.scorer.hash
            if isinstance(reward, ModelReward):
                reward.reader.apart = self.apart
            if not force and self._done():
                return self._outcome(fresh=False)
            scores = self._score(reward, found, progress)
            made: dict[str, Any] = {"reward": self.scorer.name, **self.labelled, "hash": found}
            made |= {"scored": now(), "versions": manifest.versions()}
            write(self.files, self.replies, scores, {**made, "samples": self.samples, **self.extent})
            with storing(self._part):
                self._part.unlink(missing_ok=True)
        return self._outcome(fresh=True)

    def _done(self) -> bool:
        """Return whether these same files of the reward have scored these same replies."""
        try:
            made = json.loads(self.files.with_name(f"{self.files.name}.json").read_bytes())
        except (FileNotFoundError, ValueError):  # missing or incomplete: made again
            return False
        same = (made.get("hash"), made.get("samples"), made.get("label"))
        return same == (self.scorer.hash, self.samples, self.scorer.label)

    def _score(self, reward: Reward, found: str, progress: Progress | None) -> list[float]:
        """Score group by group; a group's scores are on the disk before the next group, and are not computed again."""
        groups = grouped(self.replies, self.batch)
        done = self._begin({**self.labelled, "hash": found, "samples": self.samples, "batch": self.batch}, len(groups))
        scores = [0.0] * len(self.replies)
        lines = Appender(self._part)
        try:
            for number, rows in enumerate(groups):
                if number < len(done):
                    found_scores = done[number]
                else:
                    chosen = [self.replies[row] for row in rows]
                    found_scores = _asked(reward, chosen)
                    lines.write(json.dumps(found_scores))
                for row, score in zip(rows, found_scores, strict=True):
                    scores[row] = score
                if progress is not None:
                    progress(self.folder, sum(map(len, groups[: number + 1])), len(self.replies))
        finally:
            lines.close()
        return scores

    @property
    def _part(self) -> Path:
        return self.files.with_name(f".{self.files.name}.part")

    def _begin(self, head: Mapping[str, Any], groups: int) -> list[list[float]]:
        """Return the groups that an interrupted call has scored in the same way, and cut its file after them."""
        lines = self._part.read_text(encoding="utf-8").split("\n")[:-1] if self._part.exists() else []
        first = json.dumps(head)
        kept = lines[1 : groups + 1] if lines[:1] == [first] else []
        write_atomic(self._part, "".join(f"{line}\n" for line in [first, *kept]).encode())
        return [json.loads(line) for line in kept]

    def _outcome(self, fresh: bool) -> Rescored:
        found = self.extent
        return Rescored(
            self.folder,
            self.scorer.name,
            self.files,
            found["replies"],
            found["evaluations"],
            found["common"],
            found["of"][HELD_OUT],
            fresh,
            self.scorer.notices if fresh else (),
        )


def _asked(reward: Reward, replies: Sequence[Reply]) -> list[float]:
    scores: list[float] = reward.score([reply.prompt for reply in replies], [reply.reply for reply in replies]).tolist()
    return scores
