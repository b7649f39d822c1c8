"""Say what runs come to: the claims ledger, and one page with everything."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safebench import config
from safebench.analysis import claims, runs
from safebench.analysis.claims import Ledger
from safebench.analysis.runs import Run
from safebench.cli.asked import Asked, parse_seeds
from safebench.cli.comparing import Wish, refuse_replicates_of_others
from safebench.cli.gathering import Choice, gather
from safebench.crashes.signals import CrashSpec
from safebench.errors import MissingResource, UsageError
from safebench.layers import is_path, locate
from safebench.report import ledger as ledgers


def print_claims(asked: Asked, root: Path, output: str, spec: CrashSpec) -> None:
    """Print the ledger of the claims, for one preset, of the experiments asked for (none: of those it is of)."""
    made = find_claims(asked, root, spec, asked.experiments)
    if made is None:
        raise MissingResource(f"no runs for any claim in {root}", hint="`safebench compare ppo safe --run` makes some.")
    print(ledgers.render(made, output), end="")


def find_claims(asked: Asked, root: Path, spec: CrashSpec, arms: Sequence[str] = ()) -> Ledger | None:
    """Ask the claims of the runs that lie in the results; None where there are none for any of them.

    ``arms`` are experiments to ask them of in place of those that the ledger is of by itself.
    """
    if len(config.expand_preset(asked.preset)) > 1:
        raise UsageError(f"claims are asked of one preset, and {asked.preset} is several", hint="Give one.")
    seeds = parse_seeds(asked.seeds) if asked.seeds else None
    matched = claims.matched(_controlled(arms, asked))
    groups = {name: _complete(name, asked, root) for name in claims.needed(matched)}
    if not any(groups.values()):
        return None
    model = f"--model {shlex.quote(asked.model)}" if asked.model else ""
    return claims.ledger(groups, matched_to=matched, seeds=seeds, preset=asked.preset, options=model, spec=spec)


def _controlled(arms: Sequence[str], asked: Asked) -> list[str]:
    """Return the arms, each once; raises ``UsageError`` for one that the claims cannot be about."""
    for settings in replace(asked, experiments=arms, preset=None).settings():
        if settings.penalty is None:
            raise UsageError(
                f"the claims are about a penalty, and {settings.experiment} has none",
                hint="Name experiments with a penalty; they are held against PPO.",
            )
    named = next((name for name in arms if "@" in name or is_path(name)), None)
    if named is not None:
        raise UsageError(f"claims are asked of named experiments, not of {named}", hint="Give a preset as --preset.")
    return list(dict.fromkeys(arms))


def _complete(name: str, asked: Asked, root: Path) -> list[Run]:
    """Return the complete runs of an experiment, or of ``experiment@preset``; none where no file has that name yet."""
    experiment, _, preset = name.partition("@")
    if locate(experiment) is None or (preset and (asked.preset or locate(preset, "presets") is None)):
        return []
    (settings,) = replace(asked, experiments=[experiment], preset=preset or asked.preset).settings()
    folder = config.run_folder(root, settings).parent
    return [run for run in runs.of_experiment(folder) if run.complete]


def write_page(asked: Asked, choice: Choice, wish: Wish, out: Path) -> None:
    """Write the page of the comparison, one per preset, and print its path.

    Claims are asked of the experiments' own runs and judge: where others were chosen, the page has none.
    """
    from safebench.report.html.write import write_report

    presets = config.expand_preset(asked.preset)
    refuse_replicates_of_others(choice)
    for gathered in gather(asked, choice):
        comparison = wish.compare(gathered)
        own = not choice.where and choice.judge is None
        ledger = find_claims(replace(asked, preset=gathered.preset), choice.root, wish.spec) if own else None
        name = out if len(presets) == 1 else out.with_name(f"{out.stem}-{gathered.preset}{out.suffix}")
        print(write_report(comparison, name, ledger=ledger))


def print_sensitivity(asked: Asked, choice: Choice, spec: CrashSpec) -> None:
    """Print how the result of two experiments moves with every choice, one table per preset."""
    from safebench.analysis.sensitivity import sensitivity
    from safebench.report.sensitivity_table import to_markdown

    for gathered in gather(asked, choice):
        if len(gathered.groups) != 2:
            raise UsageError("sensitivity is that of one difference", "Name the baseline and one other experiment.")
        first, second = gathered.groups
        print(to_markdown(sensitivity(gathered.groups, spec), (first, second)), end="")
