"""Add seeds to a comparison in rounds, until the rule has decided it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from safebench import config
from safebench.analysis.compare import Comparison, choose
from safebench.analysis.stopping import PRIMARY, Rule, Stopping, decide
from safebench.cli import making
from safebench.cli.asked import Asked
from safebench.cli.comparing import Wish
from safebench.cli.gathering import Choice, gather
from safebench.cli.options import Format, IfExists
from safebench.cli.said import tell
from safebench.errors import ComparisonRefused, MissingResource, UsageError
from safebench.report.table import render


def rule(until_decided: bool, alpha: float | None, size: int | None, most: int | None) -> Rule | None:
    """Return the rule asked for; None without --until-decided. Raises ``UsageError`` for its options without it."""
    given = {"--alpha": alpha, "--round": size, "--max-seeds": most}
    if not until_decided:
        if alone := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(alone)} without --until-decided", hint="Add --until-decided.")
        return None
    most = Rule.most if most is None else most
    return Rule(Rule.alpha if alpha is None else alpha, min(Rule.size, most) if size is None else size, most)


def compare_until_decided(asked: Asked, choice: Choice, wish: Wish, output: Format, rule: Rule, jobs: int) -> int:
    """Make and compare the runs round by round; stop when nothing is open, and print the comparison of all seeds.

    Runs that are there are used, so the same command continues. What each round decided goes to stderr.
    """
    _refuse_what_cannot_be(asked, choice, wish)
    seeds: list[int] = []
    failed = 0
    for number, added in enumerate(rule.rounds(), start=1):
        seeds += added
        asked = replace(asked, seeds=",".join(map(str, seeds)))
        new = replace(asked, seeds=",".join(map(str, added)))
        code = making.make(new.seeded(""), choice.root, jobs, IfExists.RESUME, summaries=False)
        if code == 130:
            return code
        failed = failed or code
        try:
            comparison, found = _decided(asked, choice, wish, rule, number)
        except (ComparisonRefused, MissingResource) as error:
            if failed == 0:
                raise
            # What failed is why: that is the exit code to give.
            tell(error)
            return failed
        _tell(found, len(seeds))
        if found.over:
            break
    shown = choose(replace(comparison, stopping=found), wish.metrics)
    print(render(shown, output.value), end="")
    return failed


def _decided(asked: Asked, choice: Choice, wish: Wish, rule: Rule, rounds: int) -> tuple[Comparison, Stopping]:
    (gathered,) = gather(asked, choice)
    comparison = wish.compare(gathered)
    summaries = {arm: comparison.summaries[arm] for arm in comparison.arms}
    return comparison, decide(summaries, comparison.unpaired, rule, rounds, _metrics(comparison, wish.metrics))


def _metrics(comparison: Comparison, asked: Sequence[str]) -> list[str] | None:
    """Return the primary metrics among the rows that --metric chose; None for all."""
    if not asked:
        return None
    keys = {row.scalar.key for row in choose(comparison, asked).rows}
    primary = [scalar.key for scalar in PRIMARY]
    if not keys & {*primary}:
        raise UsageError(
            f"--metric {', '.join(asked)} shows no primary metric, and only these are decided",
            hint=f"Add one of {', '.join(primary)}.",
        )
    return [key for key in primary if key in keys]


def _tell(found: Stopping, seeds: int) -> None:
    print(f"round {found.rounds}, {seeds} seeds:", file=sys.stderr)
    for decision in found.decisions:
        print(f"  {decision.told()}", file=sys.stderr)


def _refuse_what_cannot_be(asked: Asked, choice: Choice, wish: Wish) -> None:
    """Refuse what does not go together with rounds, before any run is made."""
    for given, option, why in (
        (asked.seeds, "--seeds", "the rounds choose the seeds"),
        (choice.where, "--where", "it chooses among runs that are there"),
        (choice.judge, "--judge", "new runs have no scores of another reward"),
        (wish.brief, "--brief", "it has no tests"),
        (choice.replicate, "--replicate", "ask for it afterwards, by compare without rounds"),
    ):
        if given:
            raise UsageError(f"{option} and --until-decided do not go together: {why}", hint=f"Drop {option}.")
    if len(config.expand_preset(asked.preset)) > 1:
        raise UsageError("--until-decided decides one comparison, not one per preset", hint="Give one preset.")
    if len(dict.fromkeys(asked.experiments)) < 2:
        raise UsageError("--until-decided needs two experiments, or more", hint="Name another one.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--until-decided and several processes per run do not go together", hint="Use --jobs.")
