"""The commands that look at runs that are there: pictures, pages, claims, other judges, other trainers' histories."""

from __future__ import annotations

from pathlib import Path

from safebench.cli import options
from safebench.cli.options import CrashVersion, LedgerFormat

RESULTS = Path("results")
HEADLINE = ("ppo", "safe")


def report(
    experiment: options.AnyExperiments = None,
    out: options.PageFile = Path("results/report.html"),
    seeds: options.Seeds = None,
    where: options.Where = None,
    judge: options.Judge = None,
    replicate: options.ReplicatesOf = None,
    baseline: options.Baseline = None,
    force: options.Force = False,
    crash_spec: options.CrashSpecification = CrashVersion.HARMS,
    model: options.ModelName = None,
    steps: options.Steps = None,
    preset: options.Preset = None,
    set_: options.Set = None,
    results: options.Root = RESULTS,
) -> None:
    """Write one HTML page: table, curves, frontier, crashes, replies, fairness, claims. It loads nothing."""
    from safebench.cli import reporting
    from safebench.cli.asked import Asked
    from safebench.cli.comparing import Wish
    from safebench.cli.gathering import Choice

    asked = Asked(experiment or HEADLINE, seeds=seeds, preset=preset, model=model, steps=steps, overrides=set_ or ())
    choice = Choice(results, where=where or (), judge=judge, replicate=replicate)
    reporting.write_page(asked, choice, Wish(baseline=baseline, force=force, spec=crash_spec.spec), out)


def claims(
    experiment: options.ClaimedExperiments = None,
    output: options.LedgerOutput = LedgerFormat.TABLE,
    seeds: options.Seeds = None,
    model: options.ModelName = None,
    preset: options.Preset = None,
    crash_spec: options.CrashSpecification = CrashVersion.HARMS,
    results: options.Root = RESULTS,
) -> None:
    """Print the ledger: each claim of the paper, our figure with its interval, the verdict, the command."""
    from safebench.cli import reporting
    from safebench.cli.asked import Asked

    asked = Asked(experiment or (), seeds=seeds, preset=preset, model=model)
    reporting.print_claims(asked, results, output.value, crash_spec.spec)


def sensitivity(
    experiment: options.Experiments,
    seeds: options.Seeds = None,
    model: options.ModelName = None,
    preset: options.Preset = None,
    crash_spec: options.CrashSpecification = CrashVersion.HARMS,
    results: options.Root = RESULTS,
) -> None:
    """Say how two experiments' result moves with every choice of the evidence, one at a time, as Markdown."""
    from safebench.cli import reporting
    from safebench.cli.asked import Asked
    from safebench.cli.gathering import Choice

    asked = Asked(experiment, seeds=seeds, preset=preset, model=model)
    reporting.print_sensitivity(asked, Choice(results), crash_spec.spec)


def plot(
    run: options.RunsOrExperiments, out: options.PlotFile = Path("curves"), results: options.Root = RESULTS
) -> None:
    """Draw the curves of runs, those of one experiment together: mean and range of the seeds, as PNG and SVG."""
    from safebench.cli.looking import plot

    plot(run, out, results)


def diff(first: options.FirstRun, second: options.SecondRun, results: options.Root = RESULTS) -> None:
    """Say how two runs differ: settings, environment, and the first step at which their curves part."""
    from safebench.cli.looking import diff

    diff(first, second, results)


def keep(run: options.RunsOrExperiments, out: options.KeepFolder, results: options.Root = RESULTS) -> None:
    """Keep what evidence needs of runs, without weights: as folders, or a line each in one file (compare --brief)."""
    from safebench.cli.looking import keep

    keep(run, out, results)


def alarms(run: options.RunNames = None, results: options.Root = RESULTS) -> None:
    """Say for each kind of alarm what it was worth over recorded runs: how often harm followed, and how much later."""
    from safebench.cli.looking import alarms

    alarms(run or (), results)


def rescore(
    run: options.RunsOrExperiments,
    reward: options.NewJudge,
    label: options.Label = None,
    force: options.Again = False,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Score the replies that runs saved with another reward, so that old runs can be judged again."""
    from safebench.cli import judging

    judging.rescore(run, reward, force, results, label, trust_remote_code or ())


def best_of_n(
    draws: options.Draws = 64,
    model: options.ModelName = None,
    reward: options.RewardName = None,
    prompts: options.PromptsName = None,
    random_weights: options.RandomWeights = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Draw many replies of the initial policy: the best of n is a reference on the frontier that needs no training."""
    from safebench.cli import judging
    from safebench.cli.asked import Asked

    asked = Asked(
        HEADLINE[:1],
        preset=preset,
        model=model,
        reward=reward,
        prompts=prompts,
        random_weights=random_weights,
        overrides=set_ or (),
        trust=trust_remote_code or (),
    )
    judging.draw(asked, draws, results)


def import_(
    path: options.History,
    model: options.ImportModel = "unknown",
    trainer: options.Trainer = None,
    name: options.ImportName = None,
    seed: options.RunSeed = 0,
    sigma0: options.Sigma0 = None,
    reply_limit: options.ReplyLimit = None,
    vocabulary: options.Vocabulary = None,
    steps: options.PlannedSteps = None,
    known: options.Known = None,
    overwrite: options.Overwrite = False,
    results: options.Root = RESULTS,
) -> None:
    """Read the history of a run of TRL, verl or OpenRLHF as a run of ours, so that it gets the same crash table."""
    from safebench.cli import importing

    importing.read(
        path,
        results,
        known or (),
        overwrite,
        model=model,
        trainer=trainer,
        name=name,
        seed=seed,
        sigma0=sigma0,
        reply_limit=reply_limit,
        vocabulary=vocabulary,
        steps=steps,
    )
