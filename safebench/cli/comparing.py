"""Put the runs that lie in the results side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from safebench import config
from safebench.cli import making
from safebench.cli.asked import Asked, parse_seeds
from safebench.cli.options import Format, IfExists
from safebench.cli.said import tell
from safebench.errors import ComparisonRefused, MissingResource, UsageError
from safebench.evidence.compare import compare as compare_groups
from safebench.evidence.runs import Run, read
from safebench.launch import is_main
from safebench.report.table import render
from safebench.settings import Settings


def compare(asked: Asked, root: Path, output: Format, *, baseline: str | None, force: bool, jobs: int | None) -> int:
    """Print the comparison, one table per preset; with ``jobs``, make the missing runs first."""
    presets = config.expand_preset(asked.preset)
    if len(presets) > 1 and output not in (Format.TABLE, Format.MD):
        raise UsageError(f"--format {output.value} is one table, and {asked.preset} several presets", hint="Give one.")
    if jobs is None:
        _tables(asked, presets, root, output, baseline, force)
        return 0
    asked = replace(asked, seeds=asked.seeds or making.COMPARED_SEEDS)
    code = making.make(asked.seeded(making.COMPARED_SEEDS), root, jobs, IfExists.RESUME, summaries=False)
    if code == 130 or not is_main():
        return code
    try:
        _tables(asked, presets, root, output, baseline, force)
    except (ComparisonRefused, MissingResource) as error:
        if code == 0:
            raise
        # What failed is why: that is the exit code to give.
        tell(error)
    return code


def _tables(
    asked: Asked, presets: Sequence[str | None], root: Path, output: Format, baseline: str | None, force: bool
) -> None:
    for preset in presets:
        if len(presets) > 1:
            print(f"## {preset}\n")
        _one(replace(asked, preset=preset), root, output, baseline, force)


def _one(asked: Asked, root: Path, output: Format, baseline: str | None, force: bool) -> None:
    wanted = {one.experiment: one for one in asked.settings()}
    folders = {name: config.run_folder(root, one).parent for name, one in wanted.items()}
    seeds = parse_seeds(asked.seeds) if asked.seeds else _seeds_there(folders.values())
    if not seeds:
        places = ", ".join(map(str, folders.values()))
        raise MissingResource(f"no runs in {places}", hint="Add --run to make them.")
    groups = {name: _complete(name, folders[name], seeds) for name in wanted}
    for name, runs in groups.items():
        _warn_of_stale(wanted[name], runs)
    print(render(compare_groups(groups, baseline=baseline, seeds=seeds, force=force), output.value), end="")


def _complete(name: str, folder: Path, seeds: Sequence[int]) -> list[Run]:
    """Return the runs that are results, and name the missing ones on stderr."""
    there = {seed: read(folder / f"seed-{seed}") for seed in seeds if (folder / f"seed-{seed}").is_dir()}
    states = {seed: there[seed].status if seed in there else "not there" for seed in seeds}
    missing = [f"{seed} ({states[seed]})" for seed in seeds if seed not in there or not there[seed].complete]
    if missing:
        print(f"missing: {name}, seeds {', '.join(missing)}; --run makes them", file=sys.stderr)
    return [run for run in there.values() if run.complete]


def _warn_of_stale(settings: Settings, runs: Sequence[Run]) -> None:
    """Say on stderr which runs were made when the experiment was another."""
    for run in runs:
        made = config.load(run.folder / "config.yaml")
        if config.settings_hash(made) != config.settings_hash(settings):
            keys = ", ".join(key for key, _, _ in config.changes(made, settings) if key != "seed")
            print(f"warning: {run.folder} was made with other settings than now asked for: {keys}", file=sys.stderr)


def _seeds_there(folders: Iterable[Path]) -> list[int]:
    names = (path.name.removeprefix("seed-") for folder in folders for path in folder.glob("seed-*"))
    return sorted({int(name) for name in names if name.isdigit()})
