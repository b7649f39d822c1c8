"""Put the runs that lie in the results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safebench import config
from safebench.analysis.compare import Comparison, choose
from safebench.analysis.compare import compare as compare_groups
from safebench.cli import making
from safebench.cli.asked import Asked
from safebench.cli.brief import print_brief
from safebench.cli.gathering import Choice, Gathered, gather
from safebench.cli.options import Format, IfExists
from safebench.cli.said import tell
from safebench.crashes.signals import SPEC, CrashSpec
from safebench.errors import ComparisonRefused, MissingResource, UsageError
from safebench.report.table import render
from safebench.runner.progress import is_main


@dataclass(frozen=True)
class Wish:
    """How a comparison is made and shown."""

    baseline: str | None = None
    force: bool = False
    metrics: Sequence[str] = ()
    brief: bool = False
    """One row per arm."""
    spec: CrashSpec = SPEC
    """What counts as a crash."""

    def compare(self, gathered: Gathered) -> Comparison:
        """Compare what was gathered, all rows, and say who judged where that was not the runs' own judge."""
        made = compare_groups(
            gathered.groups,
            baseline=self.baseline,
            seeds=gathered.seeds,
            force=self.force,
            spec=self.spec,
            again=gathered.replicates,
        )
        judged = gathered.judged
        if judged is None:
            return made
        if judged.full:
            return replace(made, footers=(*made.footers, judged.note))
        return replace(made, warnings=(judged.note, *made.warnings))


def compare(asked: Asked, choice: Choice, wish: Wish, output: Format, *, jobs: int | None) -> int:
    """Print the comparison, one table per preset; with ``jobs``, make the missing runs first."""
    presets = config.expand_preset(asked.preset)
    _refuse_what_cannot_be(choice, wish, output)
    if len(presets) > 1 and not wish.brief and output not in (Format.TABLE, Format.MD):
        raise UsageError(f"--format {output.value} is one table, and {asked.preset} several presets", hint="Give one.")
    if jobs is None:
        _tables(asked, choice, wish, output)
        return 0
    if choice.where:
        raise UsageError("--where chooses among runs that are there; --run makes others", hint="Use --set instead.")
    asked = replace(asked, seeds=asked.seeds or making.COMPARED_SEEDS)
    wanted = asked.seeded(making.COMPARED_SEEDS)
    if choice.replicate:
        wanted += replace(asked, replicate=choice.replicate).seeded(making.COMPARED_SEEDS)
    code = making.make(wanted, choice.root, jobs, IfExists.RESUME, summaries=False)
    if code == 130 or not is_main():
        return code
    try:
        _tables(asked, choice, wish, output)
    except (ComparisonRefused, MissingResource) as error:
        if code == 0:
            raise
        # What failed is why: that is the exit code to give.
        tell(error)
    return code


def _refuse_what_cannot_be(choice: Choice, wish: Wish, output: Format) -> None:
    """Refuse what only one of the two tables has, before any run is made."""
    if choice.root.is_file() and not wish.brief:
        raise UsageError(f"{choice.root} keeps a line per run, not its curves", hint="Add --brief.")
    if wish.brief and (wish.metrics or choice.judge or output is Format.LATEX):
        raise UsageError(
            "--brief has rows of its own, and no --metric, --judge or latex", hint="Leave one of them out."
        )
    if choice.replicate and wish.brief:
        raise UsageError("--replicate does not go with --brief", hint="Leave one of them out.")
    refuse_replicates_of_others(choice)


def refuse_replicates_of_others(choice: Choice) -> None:
    """Raise ``UsageError`` where replicates are asked for beside runs or a judge that have none."""
    if choice.replicate and (choice.judge or choice.where):
        raise UsageError("--replicate does not go with --judge or --where", hint="Leave one of them out.")


def _tables(asked: Asked, choice: Choice, wish: Wish, output: Format) -> None:
    if wish.brief:
        print_brief(asked, choice, output.value, baseline=wish.baseline, force=wish.force, spec=wish.spec)
        return
    several = len(config.expand_preset(asked.preset)) > 1
    for gathered in gather(asked, choice):
        if several:
            print(f"## {gathered.preset}\n")
        print(render(choose(wish.compare(gathered), wish.metrics), output.value), end="")
