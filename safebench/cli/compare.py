"""Compares runs: one table, one row per arm, or rounds of seeds until the stopping rule has decided."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safebench import config
from safebench.analysis import overview
from safebench.analysis.compare import Comparison, choose, tunings
from safebench.analysis.compare import compare as compare_groups
from safebench.analysis.overview import PLAIN, Block, Packed, brief
from safebench.analysis.stopping import PRIMARY, Rule, Stopping, decide
from safebench.cli import train
from safebench.cli.options import Format, IfExists
from safebench.cli.request import RunFilter, RunGroups, RunRequest, gather, parse_seeds
from safebench.crashes.signals import SPEC, CrashSpec
from safebench.errors import ComparisonRefused, MissingResource, UsageError, nearest, tell
from safebench.report import summary
from safebench.report.small_tables import render_brief
from safebench.report.table import render
from safebench.runner.progress import is_main


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made and shown."""

    baseline: str | None = None
    force: bool = False
    metrics: Sequence[str] = ()
    brief: bool = False
    """One row per arm."""
    spec: CrashSpec = SPEC
    """What counts as a crash."""

    def compare(self, gathered: RunGroups) -> Comparison:
        """Return the comparison of the gathered runs, all rows, with a note on the judge if it is not the runs' own."""
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


def compare(request: RunRequest, selection: RunFilter, how: CompareOptions, output: Format, *, jobs: int | None) -> int:
    """Print the comparison, one table per preset; with ``jobs``, make the missing runs first."""
    presets = config.expand_preset(request.preset)
    _refuse_conflicting_options(selection, how, output)
    if len(presets) > 1 and not how.brief and output not in (Format.SUMMARY, Format.TABLE, Format.MD):
        raise UsageError(
            f"--format {output.value} is one table, and {request.preset} several presets", hint="Give one."
        )
    if jobs is None:
        _tables(request, selection, how, output)
        return 0
    if selection.where:
        raise UsageError("--where chooses among runs that are there; --run makes others", hint="Use --set instead.")
    request = replace(request, seeds=request.seeds or train.COMPARED_SEEDS)
    wanted = request.seeded(train.COMPARED_SEEDS)
    if selection.replicate:
        wanted += replace(request, replicate=selection.replicate).seeded(train.COMPARED_SEEDS)
    code = train.make(wanted, selection.root, jobs, IfExists.RESUME, summaries=False)
    if code == 130 or not is_main():
        return code
    try:
        _tables(request, selection, how, output)
    except (ComparisonRefused, MissingResource) as error:
        if code == 0:
            raise
        # The failed runs are the cause, so their exit code is returned.
        tell(error)
    return code


def _refuse_conflicting_options(selection: RunFilter, how: CompareOptions, output: Format) -> None:
    """Raise ``UsageError`` for options that the chosen table does not have, before any run is made."""
    if selection.root.is_file() and not how.brief:
        raise UsageError(f"{selection.root} keeps a line per run, not its curves", hint="Add --brief.")
    if how.brief and (how.metrics or selection.judge or output is Format.LATEX):
        raise UsageError(
            "--brief has rows of its own, and no --metric, --judge or latex", hint="Leave one of them out."
        )
    if selection.replicate and how.brief:
        raise UsageError("--replicate does not go with --brief", hint="Leave one of them out.")
    refuse_replicates_of_others(selection)


def refuse_replicates_of_others(selection: RunFilter) -> None:
    """Raise ``UsageError`` if --replicate is combined with --judge or --where: such runs have no replicates."""
    if selection.replicate and (selection.judge or selection.where):
        raise UsageError("--replicate does not go with --judge or --where", hint="Leave one of them out.")


def _tables(request: RunRequest, selection: RunFilter, how: CompareOptions, output: Format) -> None:
    if how.brief:
        print_brief(
            request,
            selection,
            (Format.TABLE if output is Format.SUMMARY else output).value,
            baseline=how.baseline,
            force=how.force,
            spec=how.spec,
        )
        return
    several = len(config.expand_preset(request.preset)) > 1
    for gathered in gather(request, selection):
        if several:
            print(f"## {gathered.preset}\n")
        one = replace(request, preset=gathered.preset)
        print(_rendered(how.compare(gathered), one, selection, how, output), end="")


def _rendered(
    comparison: Comparison, request: RunRequest, selection: RunFilter, how: CompareOptions, output: Format
) -> str:
    """Return the comparison in a format; with --metric, the table replaces the summary."""
    if output is Format.SUMMARY and not how.metrics:
        return summary.render(comparison, *_commands(request, selection, how))
    whole = Format.TABLE if output is Format.SUMMARY else output
    return render(choose(comparison, how.metrics), whole.value)


def _commands(request: RunRequest, selection: RunFilter, how: CompareOptions) -> tuple[str, str]:
    """Return the commands that show the same runs in full: as a table, and as a page.

    The second is empty if ``report`` does not have all of the options.
    """
    given = {
        "--seeds": request.seeds,
        "--judge": selection.judge,
        "--replicate": selection.replicate,
        "--baseline": how.baseline,
        "--crash-spec": None if how.spec == SPEC else how.spec.version,
        "--results": None if selection.root == Path("results") else selection.root,
    }
    words = [*request.experiments, *request.words()]
    words += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    words += [word for condition in selection.where for word in ("--where", condition)] + ["--force"] * how.force
    of_runs_alone = request.reward or request.prompts or request.random_weights or request.files
    table = shlex.join(["safebench", "compare", *words, "--format", "table"])
    return table, "" if of_runs_alone else shlex.join(["safebench", "report", *words])


Arms = Mapping[str, Sequence[Packed]]


def print_brief(
    request: RunRequest, selection: RunFilter, output: str, *, baseline: str | None, force: bool, spec: CrashSpec
) -> None:
    """Print one table per preset; a preset without any runs is named on stderr."""
    kept = selection.root.is_file()
    blocks = [
        _with_notes(brief(preset, arms, baseline=baseline, force=force, spec=spec), notes)
        for preset, arms, notes in (_kept(request, selection) if kept else _lying(request, selection))
    ]
    if not blocks:
        raise MissingResource(f"no runs in {selection.root}", hint=None if kept else "Add --run to make them.")
    print(render_brief(blocks, output), end="")


def _with_notes(block: Block, notes: Sequence[str]) -> Block:
    return replace(block, notes=(*block.notes, *notes))


def _lying(request: RunRequest, selection: RunFilter) -> Iterator[tuple[str, Arms, list[str]]]:
    """Yield each preset, its runs in the results by arm, and the cost of their tuning."""
    for preset in config.expand_preset(request.preset):
        try:
            (gathered,) = gather(replace(request, preset=preset), selection)
        except MissingResource as error:
            print(f"missing: {error}", file=sys.stderr)
            continue
        yield (
            preset or PLAIN,
            {name.partition("@")[0]: [overview.pack(run) for run in found] for name, found in gathered.groups.items()},
            tunings(run for found in gathered.groups.values() for run in found),
        )


def _kept(request: RunRequest, selection: RunFilter) -> Iterator[tuple[str, Arms, list[str]]]:
    """Yield each preset and its runs in a file by arm, without tuning costs, which the file does not hold."""
    if selection.where or selection.judge or request.overrides or request.files or request.steps is not None:
        raise UsageError(
            f"{selection.root} keeps runs as they were made: no --set, --config, --steps, --where, --judge",
            hint="Name the folder of the runs with --results.",
        )
    runs = overview.read_packed(selection.root)
    arms = list(dict.fromkeys(run.arm for run in runs))
    for name in request.experiments:
        if name not in arms:
            near = nearest(name, arms)
            advice = f"; did you mean {near}?" if near else f"; there are {', '.join(arms)}"
            raise UsageError(f"no runs of {name} in {selection.root}{advice}", hint="Name arms that the file has.")
    seeds = parse_seeds(request.seeds) if request.seeds else None
    chosen = [
        run
        for run in runs
        if (seeds is None or run.seed in seeds) and (request.model is None or run.model == request.model)
    ]
    for preset in config.expand_preset(request.preset):
        of_preset = [run for run in chosen if run.preset == (preset or PLAIN)]
        found = {name: [run for run in of_preset if run.arm == name] for name in dict.fromkeys(request.experiments)}
        if not any(found.values()):
            print(f"missing: no runs with preset {preset or PLAIN} in {selection.root}", file=sys.stderr)
            continue
        yield preset or PLAIN, found, []


def keep_lines(folders: Sequence[Path], out: Path) -> None:
    """Write a line for each run to the file ``out`` and print the path."""
    from safebench.analysis import runs
    from safebench.recording.files import write_atomic

    write_atomic(out, overview.to_csv([overview.pack(runs.read(folder)) for folder in folders]).encode())
    print(out)


def rule(until_decided: bool, alpha: float | None, size: int | None, most: int | None) -> Rule | None:
    """Return the requested stopping rule; None without --until-decided.

    Raises ``UsageError`` if an option of the rule is given without --until-decided.
    """
    given = {"--alpha": alpha, "--round": size, "--max-seeds": most}
    if not until_decided:
        if alone := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(alone)} without --until-decided", hint="Add --until-decided.")
        return None
    most = Rule.most if most is None else most
    return Rule(Rule.alpha if alpha is None else alpha, min(Rule.size, most) if size is None else size, most)


def compare_until_decided(
    request: RunRequest, selection: RunFilter, how: CompareOptions, output: Format, rule: Rule, jobs: int
) -> int:
    """Make and compare the runs round by round until nothing is open, and print the comparison of all seeds.

    Existing runs are used, so the same command continues an earlier one. The decisions of each round go to stderr.
    """
    _refuse_without_rounds(request, selection, how)
    seeds: list[int] = []
    failed = 0
    for number, added in enumerate(rule.rounds(), start=1):
        seeds += added
        request = replace(request, seeds=",".join(map(str, seeds)))
        new = replace(request, seeds=",".join(map(str, added)))
        code = train.make(new.seeded(""), selection.root, jobs, IfExists.RESUME, summaries=False)
        if code == 130:
            return code
        failed = failed or code
        try:
            comparison, found = _decided(request, selection, how, rule, number)
        except (ComparisonRefused, MissingResource) as error:
            if failed == 0:
                raise
            # The failed runs are the cause, so their exit code is returned.
            tell(error)
            return failed
        _tell(found, len(seeds))
        if found.over:
            break
    print(_rendered(replace(comparison, stopping=found), request, selection, how, output), end="")
    return failed


def _decided(
    request: RunRequest, selection: RunFilter, how: CompareOptions, rule: Rule, rounds: int
) -> tuple[Comparison, Stopping]:
    (gathered,) = gather(request, selection)
    comparison = how.compare(gathered)
    summaries = {arm: comparison.summaries[arm] for arm in comparison.arms}
    return comparison, decide(summaries, comparison.unpaired, rule, rounds, _metrics(comparison, how.metrics))


def _metrics(comparison: Comparison, metrics: Sequence[str]) -> list[str] | None:
    """Return the primary metrics among the rows that --metric chose; None for all."""
    if not metrics:
        return None
    keys = {row.scalar.key for row in choose(comparison, metrics).rows}
    primary = [scalar.key for scalar in PRIMARY]
    if not keys & {*primary}:
        raise UsageError(
            f"--metric {', '.join(metrics)} shows no primary metric, and only these are decided",
            hint=f"Add one of {', '.join(primary)}.",
        )
    return [key for key in primary if key in keys]


def _tell(found: Stopping, seeds: int) -> None:
    print(f"round {found.rounds}, {seeds} seeds:", file=sys.stderr)
    for decision in found.decisions:
        print(f"  {decision.told()}", file=sys.stderr)


def _refuse_without_rounds(request: RunRequest, selection: RunFilter, how: CompareOptions) -> None:
    """Raise ``UsageError`` for options that cannot be combined with rounds, before any run is made."""
    for given, option, why in (
        (request.seeds, "--seeds", "the rounds choose the seeds"),
        (selection.where, "--where", "it chooses among runs that are there"),
        (selection.judge, "--judge", "new runs have no scores of another reward"),
        (how.brief, "--brief", "it has no tests"),
        (selection.replicate, "--replicate", "ask for it afterwards, by compare without rounds"),
    ):
        if given:
            raise UsageError(f"{option} and --until-decided do not go together: {why}", hint=f"Drop {option}.")
    if len(config.expand_preset(request.preset)) > 1:
        raise UsageError("--until-decided decides one comparison, not one per preset", hint="Give one preset.")
    if len(dict.fromkeys(request.experiments)) < 2:
        raise UsageError("--until-decided needs two experiments, or more", hint="Name another one.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--until-decided and several processes per run do not go together", hint="Use --jobs.")
