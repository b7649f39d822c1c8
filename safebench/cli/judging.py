"""Ask models about what runs left: other judges, and the initial policy's best of n."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safebench.analysis import frontier
from safebench.analysis.frontier import Record
from safebench.analysis.reward_check import KINDS, LIFTED, lift, verdict, within_prompts
from safebench.analysis.statistics import Estimate
from safebench.cli.asked import Asked
from safebench.cli.counting import counting
from safebench.cli.results import locate_all
from safebench.cli.tables import columns
from safebench.report.cells import DASH, interval


def rescore(
    names: Sequence[str], reward: str, force: bool, root: Path, label: str | None, trust: Sequence[str]
) -> None:
    """Score the runs' saved replies with another reward, and say how to compare by it."""
    folders = list(dict.fromkeys(folder for name in names for folder in locate_all(name, root)))
    from safebench.scoring.rescore import rescore_all  # imports torch: not before the runs are found

    with counting() as count:
        done = rescore_all(
            folders,
            reward,
            force=force,
            progress=lambda folder, at, of: count("/".join(folder.parts[-2:]), at, of),
            label=int(label) if label is not None and label.isdecimal() else label,
            trust=trust,
        )
    for notice in dict.fromkeys(notice for one in done for notice in one.notices):
        print(f"note: {notice}", file=sys.stderr)
    for one in done:
        state = "scored" if one.fresh else "scored before, nothing was done"
        part = "" if one.common == one.of else f", {one.common} of {one.of} prompts in every evaluation"
        print(f"{one.folder}: {one.replies} replies {state}; {one.evaluations} evaluations{part}")
    print(f"compare by it: safebench compare EXPERIMENT... --judge {reward}")


def draw(asked: Asked, draws: int, root: Path) -> None:
    """Draw the initial policy's replies, and print its best of n."""
    chosen = asked.settings()
    from safebench.scoring.best_of_n import sample_best_of_n  # imports torch: not before the settings are sound

    for settings in chosen:
        with counting() as count:
            folder = sample_best_of_n(
                settings, root, draws=draws, progress=lambda at, of: count("replies of the initial policy", at, of)
            )
        record = frontier.read_record(folder)
        for notice in record.manifest.get("notices", ()):
            print(f"note: {notice}", file=sys.stderr)
        print(f"best by proxy of n replies to each of {record.prompts} held-out prompts, mean over prompts ± 95 %")
        print(columns(_rows(record)))
        print(f"files: {folder}")


def check(asked: Asked, draws: int, root: Path) -> None:
    """Print what a reward says of pairs whose order is known, its best of n, and how it goes with the judge."""
    (settings,) = asked.settings()
    from safebench.scoring.reward_check import check_reward  # imports torch: not before the settings are sound

    with counting() as count:
        found = check_reward(settings, root, draws, count)
    for notice in found.notices:
        print(f"note: {notice}", file=sys.stderr)
    name, judge, record = settings.reward.name, settings.reward.judge, found.record
    rows = [(KINDS[one.kind], _share(one.right), f"{one.tied}", f"{one.right.n}") for one in found.orders]
    print(f"{name}: how often a person's reply scores above …, with exact 95 % intervals")
    print(columns([("", "RIGHT", "TIED", "PAIRS"), *rows]))
    print()
    print(f"{name}: what a search found it to like whatever the turn; its score on other turns, ± 95 %")
    liked = [(one.reply, interval(one.score)) for one in found.liked]
    print(columns([*liked, ("(people, each to its own turn)", interval(found.people))]))
    print()
    print(f"best by {name} of n replies of {settings.model.name} to each of {record.prompts} prompts, ± 95 %")
    print(columns(_rows(record)))
    if record.judge is not None:
        together, gained = within_prompts(record.proxy, record.judge), lift(record)
        print()
        print(f"correlation with {judge} within a prompt: {interval(together)} ({together.n} prompts)")
        told = "" if gained is None else f"{interval(gained, sign=True)} of {judge}'s spread: "
        print(f"best of {LIFTED} against one at random: {told}{verdict(gained)}")
        print(f"A judge with the same faults agrees with them: ask it the same, safebench rewards --check {judge}")
    print(f"files: {record.folder}")


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _rows(record: Record) -> list[tuple[str, ...]]:
    lines = [
        (f"{best.n}", f"{best.kl:.3f}", interval(best.proxy), interval(best.judge) if best.judge else DASH)
        for best in record.curve
    ]
    return [("N", "KL ≤ [nats/reply]", "PROXY", "JUDGE"), *lines]
