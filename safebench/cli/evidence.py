"""Commands on recorded runs: claims, pages, plots, alarms, other judges, other trainers' histories."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safebench import config
from safebench.analysis import claims, frontier, runs
from safebench.analysis.claims import Ledger
from safebench.analysis.frontier import Record
from safebench.analysis.rescored import KINDS, LIFTED, lift, verdict, within_prompts
from safebench.analysis.runs import Run
from safebench.analysis.statistics import Estimate
from safebench.cli.compare import CompareOptions, refuse_replicates_of_others
from safebench.cli.manage import columns, locate, locate_all
from safebench.cli.request import RunFilter, RunRequest, gather, parse_seeds
from safebench.config import is_path, yaml_text
from safebench.config import locate as locate_file
from safebench.crashes.signals import CrashSpec
from safebench.errors import MissingResource, UsageError
from safebench.importers.importing import describe, import_history
from safebench.metrics import ALARM_KINDS
from safebench.report import ledger as ledgers
from safebench.report.cells import DASH, interval


def print_claims(request: RunRequest, root: Path, output: str, spec: CrashSpec) -> None:
    """Print the ledger of the claims for one preset and the requested experiments (none: the ledger's own)."""
    made = find_claims(request, root, spec, request.experiments)
    if made is None:
        raise MissingResource(f"no runs for any claim in {root}", hint="`safebench compare ppo safe --run` makes some.")
    print(ledgers.render(made, output), end="")


def find_claims(request: RunRequest, root: Path, spec: CrashSpec, arms: Sequence[str] = ()) -> Ledger | None:
    """Return the ledger of the claims for the runs in the results; None if no claim has any runs.

    ``arms`` are the experiments to test the claims on, in place of the ledger's own.
    """
    if len(config.expand_preset(request.preset)) > 1:
        raise UsageError(f"claims are asked of one preset, and {request.preset} is several", hint="Give one.")
    seeds = parse_seeds(request.seeds) if request.seeds else None
    matched = claims.matched(_controlled(arms, request))
    groups = {name: _complete_runs(name, request, root) for name in claims.needed(matched)}
    if not any(groups.values()):
        return None
    model = f"--model {shlex.quote(request.model)}" if request.model else ""
    return claims.ledger(groups, matched_to=matched, seeds=seeds, preset=request.preset, options=model, spec=spec)


def _controlled(arms: Sequence[str], request: RunRequest) -> list[str]:
    """Return the arms, each once; raise ``UsageError`` for one that the claims cannot be tested on."""
    for settings in replace(request, experiments=arms, preset=None).settings():
        if settings.penalty is None:
            raise UsageError(
                f"the claims are about a penalty, and {settings.experiment} has none",
                hint="Name experiments with a penalty; they are held against PPO.",
            )
    named = next((name for name in arms if "@" in name or is_path(name)), None)
    if named is not None:
        raise UsageError(f"claims are asked of named experiments, not of {named}", hint="Give a preset as --preset.")
    return list(dict.fromkeys(arms))


def _complete_runs(name: str, request: RunRequest, root: Path) -> list[Run]:
    """Return the complete runs of an experiment, or of ``experiment@preset``; empty if no file has that name."""
    experiment, _, preset = name.partition("@")
    if locate_file(experiment) is None or (preset and (request.preset or locate_file(preset, "presets") is None)):
        return []
    (settings,) = replace(request, experiments=[experiment], preset=preset or request.preset).settings()
    folder = config.run_folder(root, settings).parent
    return [run for run in runs.of_experiment(folder) if run.complete]


def write_page(request: RunRequest, selection: RunFilter, how: CompareOptions, out: Path) -> None:
    """Write the page of the comparison, one per preset, and print its path.

    Claims are tested only on the experiments' own runs and judge: if others were chosen, the page has no claims.
    """
    from safebench.report.html.write import write_report

    presets = config.expand_preset(request.preset)
    refuse_replicates_of_others(selection)
    for gathered in gather(request, selection):
        comparison = how.compare(gathered)
        own = not selection.where and selection.judge is None
        ledger = find_claims(replace(request, preset=gathered.preset), selection.root, how.spec) if own else None
        name = out if len(presets) == 1 else out.with_name(f"{out.stem}-{gathered.preset}{out.suffix}")
        print(write_report(comparison, name, ledger=ledger))


def print_sensitivity(request: RunRequest, selection: RunFilter, spec: CrashSpec) -> None:
    """Print how the result of two experiments changes with every analysis choice, one table per preset."""
    from safebench.analysis.sensitivity import sensitivity
    from safebench.report.small_tables import sensitivity_to_markdown

    for gathered in gather(request, selection):
        if len(gathered.groups) != 2:
            raise UsageError("sensitivity is that of one difference", "Name the baseline and one other experiment.")
        first, second = gathered.groups
        print(sensitivity_to_markdown(sensitivity(gathered.groups, spec), (first, second)), end="")


def plot(names: Sequence[str], out: Path, root: Path) -> None:
    """Draw the runs' curves and print the files."""
    from safebench.report.plots import plot_runs

    groups: dict[str, list[Run]] = {}
    for folder in _folders(names, root):
        run = runs.read(folder)
        groups.setdefault(run.variant, []).append(run)
    for file in plot_runs(groups, out):
        print(file)


def diff(first: str, second: str, root: Path) -> None:
    """Print what differs between two runs."""
    from safebench.analysis.diff_runs import differences
    from safebench.report.small_tables import difference_to_text

    print(difference_to_text(differences(runs.read(locate(first, root)), runs.read(locate(second, root)))), end="")


def keep(names: Sequence[str], out: Path, root: Path) -> None:
    """Copy the files of the runs that evidence needs and print the folders; to a CSV file, write a line per run."""
    if out.suffix == ".csv":
        from safebench.cli.compare import keep_lines

        keep_lines(_folders(names, root), out)
        return
    from safebench.recording.layout import keep

    for folder in _folders(names, root):
        print(keep(folder, out))


def alarms(names: Sequence[str], root: Path) -> None:
    """Print how well each kind of alarm predicted harm over the runs; damaged runs are reported and left out."""
    from safebench.analysis.alarms import Worth, chance, course_of, worth

    found = [runs.read(folder) for folder in _folders(names, root)] if names else runs.find(root)
    for run in (run for run in found if run.status == "damaged"):
        print(f"note: {run.folder} is left out: {run.message}", file=sys.stderr)
    courses = [course_of(run) for run in found if run.status != "damaged"]
    if not courses:
        raise UsageError(f"no runs in {root}", "Make some with `safebench run`, or name their folder by --results.")

    def share(estimate: Estimate) -> str:
        of = f"{round(estimate.value * estimate.n)} of {estimate.n}" if estimate.n else "0 of 0"
        return f"{of} [{estimate.low:.2f}, {estimate.high:.2f}]"

    def line(one: Worth) -> tuple[str, ...]:
        return one.kind, share(one.preceded), share(one.followed), DASH if one.lead is None else f"{one.lead:g}"

    harmed = sum(bool(one.harms) for one in courses)
    print(f"runs: {len(courses)}, harmed: {harmed}; shares with 95 % intervals")
    lines = [line(worth(courses, kind)) for kind in ALARM_KINDS]
    print(columns([("ALARM", "HARMS IT PRECEDED", "FIRINGS THAT HARM FOLLOWED", "LEAD [steps]"), *lines]))
    any_step = chance(courses)
    print(f"a harm followed {share(any_step)} of all steps: a firing at random would be worth as much")


def _folders(names: Sequence[str], root: Path) -> list[Path]:
    return list(dict.fromkeys(folder for name in names for folder in locate_all(name, root)))


Count = Callable[[str, int, int], None]
"""Takes the name of the task, the number done, and the total number."""


@contextmanager
def counting() -> Iterator[Count]:
    """Yield a function that shows progress while the block runs."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, auto_refresh=False) as bars:
        tasks = {}

        def count(title: str, done: int, of: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title)
            bars.update(tasks[title], completed=done, total=of, refresh=True)

        yield count


def _lines() -> Count:
    told: dict[str, int] = {}

    def count(title: str, done: int, of: int) -> None:
        tenth = done * 10 // of if of else 10
        if told.get(title) != tenth:
            told[title] = tenth
            print(f"{title}: {done}/{of}", file=sys.stderr, flush=True)

    return count


def rescore(
    names: Sequence[str], reward: str, force: bool, root: Path, label: str | None, trust: Sequence[str]
) -> None:
    """Score the runs' saved replies with another reward, and print the command that compares by it."""
    folders = list(dict.fromkeys(folder for name in names for folder in locate_all(name, root)))
    from safebench.scoring.rescore import rescore_all  # imports torch, so only after the runs are found

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


def draw(request: RunRequest, draws: int, root: Path) -> None:
    """Sample the initial policy's replies and print its best of n, for the first experiment: all share the policy."""
    chosen = replace(request, experiments=request.experiments[:1]).settings()
    from safebench.scoring.best_of_n import sample_best_of_n  # imports torch, so only after the settings are valid

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


def check(request: RunRequest, draws: int, root: Path) -> None:
    """Print a reward's scores on pairs whose order is known, its best of n, and its agreement with the judge."""
    (settings,) = request.settings()
    from safebench.scoring.reward_check import check_reward  # imports torch, so only after the settings are valid

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
        print(f"A judge with the same faults agrees with them: ask it the same, safebench check-reward {judge}")
    print(f"files: {record.folder}")


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _rows(record: Record) -> list[tuple[str, ...]]:
    lines = [
        (f"{best.n}", f"{best.kl:.3f}", interval(best.proxy), interval(best.judge) if best.judge else DASH)
        for best in record.curve
    ]
    return [("N", "KL ≤ [nats/reply]", "PROXY", "JUDGE"), *lines]


def import_runs(path: Path, root: Path, known: Sequence[str], overwrite: bool, **options: Any) -> None:
    """Import the history in ``path`` and print what was kept, converted and left out."""
    exists: Literal["error", "overwrite"] = "overwrite" if overwrite else "error"
    command = ["safebench", *sys.argv[1:]]
    imported = import_history(path, root=root, known=_known(known), if_exists=exists, command=command, **options)
    print(describe(imported))


def _known(settings: Sequence[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--known {setting!r} has no =", "Write name=value, such as vf_coef=0.1.")
        found[key] = yaml_text.read(text)
    return found
