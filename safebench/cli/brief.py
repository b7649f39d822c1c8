"""Many arms in one short table, from the runs in the results or from the file that keeps them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safebench import config
from safebench.analysis import overview
from safebench.analysis.compare import tunings
from safebench.analysis.overview import PLAIN, Block, Packed, brief
from safebench.cli.asked import Asked, parse_seeds
from safebench.cli.gathering import Choice, gather
from safebench.crashes.signals import CrashSpec
from safebench.errors import MissingResource, UsageError
from safebench.names import nearest
from safebench.report.brief import render

Arms = Mapping[str, Sequence[Packed]]


def print_brief(
    asked: Asked, choice: Choice, output: str, *, baseline: str | None, force: bool, spec: CrashSpec
) -> None:
    """Print one table per preset; a preset without any runs is named on stderr."""
    kept = choice.root.is_file()
    blocks = [
        _with_notes(brief(preset, arms, baseline=baseline, force=force, spec=spec), notes)
        for preset, arms, notes in (_kept(asked, choice) if kept else _lying(asked, choice))
    ]
    if not blocks:
        raise MissingResource(f"no runs in {choice.root}", hint=None if kept else "Add --run to make them.")
    print(render(blocks, output), end="")


def _with_notes(block: Block, notes: Sequence[str]) -> Block:
    return replace(block, notes=(*block.notes, *notes))


def _lying(asked: Asked, choice: Choice) -> Iterator[tuple[str, Arms, list[str]]]:
    """Yield the runs that lie in the results, preset by preset, and what their tuning cost."""
    for preset in config.expand_preset(asked.preset):
        try:
            (gathered,) = gather(replace(asked, preset=preset), choice)
        except MissingResource as error:
            print(f"missing: {error}", file=sys.stderr)
            continue
        yield (
            preset or PLAIN,
            {name.partition("@")[0]: [overview.pack(run) for run in found] for name, found in gathered.groups.items()},
            tunings(run for found in gathered.groups.values() for run in found),
        )


def _kept(asked: Asked, choice: Choice) -> Iterator[tuple[str, Arms, list[str]]]:
    """Yield the runs that a file keeps, preset by preset; it does not keep what tuning cost."""
    if choice.where or choice.judge or asked.overrides or asked.files or asked.steps is not None:
        raise UsageError(
            f"{choice.root} keeps runs as they were made: no --set, --config, --steps, --where, --judge",
            hint="Name the folder of the runs with --results.",
        )
    runs = overview.read_packed(choice.root)
    arms = list(dict.fromkeys(run.arm for run in runs))
    for name in asked.experiments:
        if name not in arms:
            near = nearest(name, arms)
            advice = f"; did you mean {near}?" if near else f"; there are {', '.join(arms)}"
            raise UsageError(f"no runs of {name} in {choice.root}{advice}", hint="Name arms that the file has.")
    seeds = parse_seeds(asked.seeds) if asked.seeds else None
    chosen = [
        run
        for run in runs
        if (seeds is None or run.seed in seeds) and (asked.model is None or run.model == asked.model)
    ]
    for preset in config.expand_preset(asked.preset):
        of_preset = [run for run in chosen if run.preset == (preset or PLAIN)]
        found = {name: [run for run in of_preset if run.arm == name] for name in dict.fromkeys(asked.experiments)}
        if not any(found.values()):
            print(f"missing: no runs with preset {preset or PLAIN} in {choice.root}", file=sys.stderr)
            continue
        yield preset or PLAIN, found, []


def keep_lines(folders: Sequence[Path], out: Path) -> None:
    """Write a line for each run into ``out`` and print its name."""
    from safebench.analysis import runs
    from safebench.recording.files import write_atomic

    write_atomic(out, overview.to_csv([overview.pack(runs.read(folder)) for folder in folders]).encode())
    print(out)
