"""Defines every command with its options and help, and turns errors into messages and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from safebench.cli import options
from safebench.cli.options import CrashVersion, Format, IfExists, LedgerFormat, Listed, Sampler
from safebench.errors import MissingResource, SafebenchError, UsageError, tell
from safebench.telemetry import quiet
from safebench.user_code import blamed

RESULTS = Path("results")
"""Default folder of the runs."""
REPORT = "This is a fault of safebench: please report it, with the lines above and the command, to its issue tracker."

FORMER = {
    "experiments": "Type `safebench list experiments`.",
    "arms": "Type `safebench list algorithms`.",
    "models": "Type `safebench list models`.",
    "rewards": "Type `safebench list rewards`, or `safebench check-reward NAME`.",
    "sensitivity": "Type `safebench report FIRST SECOND --sensitivity`.",
    "best-of-n": "Type `safebench report EXPERIMENT --best-of-n N`.",
}
"""Commands of earlier versions, and what to type instead."""

app = typer.Typer(
    name="safebench",
    help="Compare SAFE with PPO: train, record, tabulate.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"safebench {version('safebench')}")
        raise typer.Exit


@app.callback()
def _main(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run(
    experiment: options.Experiments,
    model: options.ModelName = None,
    reward: options.RewardName = None,
    prompts: options.PromptsName = None,
    random_weights: options.RandomWeights = False,
    seeds: options.Seeds = None,
    steps: options.Steps = None,
    preset: options.Preset = None,
    set_: options.Set = None,
    config: options.ConfigFiles = None,
    tracker: options.Trackers = None,
    trust_remote_code: options.Trust = None,
    replicate: options.Replicate = None,
    jobs: options.Jobs = 1,
    if_exists: options.Exists = IfExists.RESUME,
    dry_run: options.DryRun = False,
    results: options.Root = RESULTS,
) -> int:
    """Train experiments, record the runs and print how each ended. The same command continues unfinished runs."""
    from safebench.cli import train
    from safebench.cli.request import RunRequest

    request = RunRequest(
        experiment,
        seeds=seeds,
        preset=preset,
        model=model,
        reward=reward,
        prompts=prompts,
        random_weights=random_weights,
        steps=steps,
        files=config or (),
        overrides=set_ or (),
        trackers=tracker or (),
        trust=trust_remote_code or (),
        replicate=replicate,
    )
    if dry_run:
        return train.dry_run(request, results)
    return train.make(request.seeded("0"), results, jobs, if_exists)


@app.command("compare")
def compare(
    experiment: options.Experiments,
    output: options.Output = Format.SUMMARY,
    make: options.Make = False,
    until_decided: options.UntilDecided = False,
    round_: options.RoundSize = None,
    max_seeds: options.MaxSeeds = None,
    alpha: options.Alpha = None,
    replicate: options.ReplicatesOf = None,
    seeds: options.Seeds = None,
    metric: options.Metrics = None,
    brief: options.Brief = False,
    where: options.Where = None,
    judge: options.Judge = None,
    baseline: options.Baseline = None,
    force: options.Force = False,
    crash_spec: options.CrashSpecification = CrashVersion.HARMS,
    model: options.ModelName = None,
    reward: options.RewardName = None,
    prompts: options.PromptsName = None,
    random_weights: options.RandomWeights = False,
    steps: options.Steps = None,
    preset: options.Preset = None,
    set_: options.Set = None,
    config: options.ConfigFiles = None,
    tracker: options.Trackers = None,
    trust_remote_code: options.Trust = None,
    jobs: options.Jobs = 1,
    dry_run: options.DryRun = False,
    results: options.Root = RESULTS,
) -> int:
    """Compare experiments over seeds, from the runs in the results folder; --run makes the missing ones first."""
    from safebench.cli import train
    from safebench.cli.request import RunRequest

    request = RunRequest(
        experiment,
        seeds=seeds,
        preset=preset,
        model=model,
        reward=reward,
        prompts=prompts,
        random_weights=random_weights,
        steps=steps,
        files=config or (),
        overrides=set_ or (),
        trackers=tracker or (),
        trust=trust_remote_code or (),
    )
    from safebench.cli import compare
    from safebench.cli.request import RunFilter

    rule = compare.rule(until_decided, alpha, round_, max_seeds)
    if dry_run:
        return train.dry_run(request, results, train.COMPARED_SEEDS if rule is None else f"0-{rule.most - 1}")

    selection = RunFilter(results, where=where or (), judge=judge, replicate=replicate)
    how = compare.CompareOptions(
        baseline=baseline, force=force, metrics=metric or (), brief=brief, spec=crash_spec.spec
    )
    if rule is not None:
        return compare.compare_until_decided(request, selection, how, output, rule, jobs)
    return compare.compare(request, selection, how, output, jobs=jobs if make else None)


@app.command("tune")
def tune(
    experiment: options.Experiments,
    budget: options.Budget,
    pilot_seeds: options.PilotSeeds = "1000-1001",
    criterion: options.Criterion = "judge_final",
    sampler: options.SamplerName = Sampler.HALTON,
    model: options.ModelName = None,
    reward: options.RewardName = None,
    prompts: options.PromptsName = None,
    random_weights: options.RandomWeights = False,
    steps: options.Steps = None,
    preset: options.Preset = None,
    set_: options.Set = None,
    config: options.ConfigFiles = None,
    trust_remote_code: options.Trust = None,
    jobs: options.Jobs = 1,
    if_exists: options.Exists = IfExists.RESUME,
    dry_run: options.PlanOnly = False,
    results: options.Root = RESULTS,
) -> int:
    """Tune each experiment's own knobs with equally many pilot runs, and write the winner as an experiment file."""
    from safebench.cli import train
    from safebench.cli.request import RunRequest

    request = RunRequest(
        experiment,
        seeds=pilot_seeds,
        preset=preset,
        model=model,
        reward=reward,
        prompts=prompts,
        random_weights=random_weights,
        steps=steps,
        files=config or (),
        overrides=set_ or (),
        trust=trust_remote_code or (),
    )
    plan = train.plan(request, budget, criterion, sampler.value)
    if dry_run:
        return train.dry_run_tuning(plan)
    return train.tune(plan, results, jobs, if_exists)


@app.command("report")
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
    sensitivity: options.Sensitivity = False,
    best_of_n: options.BestOfN = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Write one self-contained HTML page: table, curves, frontier, crashes, replies, fairness, claims."""
    from safebench.cli import evidence
    from safebench.cli.compare import CompareOptions
    from safebench.cli.request import RunFilter, RunRequest

    request = RunRequest(
        experiment or HEADLINE,
        seeds=seeds,
        preset=preset,
        model=model,
        steps=steps,
        overrides=set_ or (),
        trust=trust_remote_code or (),
    )
    selection = RunFilter(results, where=where or (), judge=judge, replicate=replicate)
    if sensitivity:
        evidence.print_sensitivity(request, selection, crash_spec.spec)
        return
    if best_of_n is not None:
        evidence.draw(request, best_of_n, results)
    how = CompareOptions(baseline=baseline, force=force, spec=crash_spec.spec)
    try:
        evidence.write_page(request, selection, how, out)
    except MissingResource as error:
        if best_of_n is None:
            raise
        print(f"no page: {error}", file=sys.stderr)


@app.command("claims")
def claims(
    experiment: options.ClaimedExperiments = None,
    output: options.LedgerOutput = LedgerFormat.TABLE,
    seeds: options.Seeds = None,
    model: options.ModelName = None,
    preset: options.Preset = None,
    crash_spec: options.CrashSpecification = CrashVersion.HARMS,
    results: options.Root = RESULTS,
) -> None:
    """Print the ledger: each claim of the paper, our figure with its interval, the verdict, and the command."""
    from safebench.cli import evidence
    from safebench.cli.request import RunRequest

    request = RunRequest(experiment or (), seeds=seeds, preset=preset, model=model)
    evidence.print_claims(request, results, output.value, crash_spec.spec)


@app.command("list")
def list_(
    kind: options.ListedKind = Listed.RUNS, model: options.ModelName = None, results: options.Root = RESULTS
) -> None:
    """List the runs in the results folder, or the available experiments, algorithms, models or rewards."""
    from safebench.cli import manage

    if kind is Listed.RUNS:
        manage.list_runs(model, results)
    elif kind is Listed.EXPERIMENTS:
        manage.experiments()
    elif kind is Listed.ALGORITHMS:
        manage.algorithms()
    else:
        manage.things("models" if kind is Listed.MODELS else "rewards")


@app.command("show")
def show(run: options.RunName, explain: options.Explain = False, results: options.Root = RESULTS) -> None:
    """Show one run: its status, its differences from its experiment, its last figures and its crashes."""
    from safebench.cli import manage as lying

    (lying.explain if explain else lying.show)(run, results)


@app.command("clean")
def clean(run: options.RunNames = None, dry_run: options.Pretend = False, results: options.Root = RESULTS) -> None:
    """Delete the checkpoints and tracker caches of ended runs. Metrics and adapters are kept."""
    from safebench.cli.manage import clean

    clean(run or [], results, dry_run)


@app.command("check-reward")
def check_reward(
    reward: options.Checked,
    judge: options.CheckJudge = "embedded-judge",
    draws: options.Draws = 64,
    set_: options.Set = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Check how reliable a reward is, before a policy is trained on it."""
    from safebench.cli import evidence
    from safebench.cli.request import RunRequest

    trust = trust_remote_code or ()
    request = RunRequest(["ppo"], reward=reward, judge=judge, overrides=set_ or (), trust=trust)
    evidence.check(request, draws, results)


@app.command("doctor")
def doctor(
    model: options.ModelName = None,
    reward: options.RewardName = None,
    prompts: options.PromptsName = None,
    random_weights: options.RandomWeights = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = None,
    online: options.Online = False,
    results: options.Root = RESULTS,
) -> int:
    """Print what this machine can run, and the reasons where it cannot. With your own model, reward or prompts, check
    these instead.

    The exit code is 3 if even the embedded run is not possible, or if a check of your own fails.
    """
    from safebench.cli import manage

    if not (model or reward or prompts or random_weights or preset or set_):
        return manage.doctor(online, results)
    from safebench.cli.request import RunRequest

    request = RunRequest(
        ["ppo"],
        preset=preset,
        model=model,
        reward=reward,
        prompts=prompts,
        random_weights=random_weights,
        overrides=set_ or (),
        trust=trust_remote_code or (),
    )
    return manage.own_things(request.settings()[0])


@app.command("sample")
def sample(
    run: options.RunName,
    prompt: options.Prompt,
    count: options.Count = 1,
    seed: options.Seed = 0,
    temperature: options.Temperature = None,
    tokens: options.Tokens = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Print replies of a trained policy to a prompt."""
    from safebench.cli.manage import locate

    folder = locate(run, results)
    from safebench.scoring import talk  # imports torch, so only after the run is found

    trust = trust_remote_code or ()
    # A locale without UTF-8 leaves bytes of the arguments undecoded.
    prompt = prompt.encode(errors="surrogateescape").decode(errors="replace")
    for reply in talk.sample(
        folder, prompt, count=count, seed=seed, temperature=temperature, tokens=tokens, trust=trust
    ):
        print(reply.strip())


@app.command("export")
def export(
    run: options.RunName,
    out: options.Out = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Merge a run's adapter into its model and write the result for plain transformers."""
    from safebench.cli.manage import locate

    folder = locate(run, results)
    from safebench.scoring import talk  # imports torch, so only after the run is found

    print(talk.export(folder, folder / "merged" if out is None else out, trust=trust_remote_code or ()))


@app.command("plot")
def plot(
    run: options.RunsOrExperiments, out: options.PlotFile = Path("curves"), results: options.Root = RESULTS
) -> None:
    """Plot the curves of runs as PNG and SVG; runs of one experiment appear as mean and range over the seeds."""
    from safebench.cli.evidence import plot

    plot(run, out, results)


@app.command("diff")
def diff(first: options.FirstRun, second: options.SecondRun, results: options.Root = RESULTS) -> None:
    """Print how two runs differ: settings, environment, and the first step at which their curves differ."""
    from safebench.cli.evidence import diff

    diff(first, second, results)


@app.command("keep")
def keep(run: options.RunsOrExperiments, out: options.KeepFolder, results: options.Root = RESULTS) -> None:
    """Copy runs without weights into another folder, or write a line per run to a CSV file (for compare --brief)."""
    from safebench.cli.evidence import keep

    keep(run, out, results)


@app.command("alarms")
def alarms(run: options.RunNames = None, results: options.Root = RESULTS) -> None:
    """Print, for each kind of alarm over recorded runs, how often harm followed and how many steps later."""
    from safebench.cli.evidence import alarms

    alarms(run or (), results)


@app.command("rescore")
def rescore(
    run: options.RunsOrExperiments,
    reward: options.NewJudge,
    label: options.Label = None,
    force: options.Again = False,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Score the saved replies of runs with another reward, so that old runs can be judged again."""
    from safebench.cli import evidence

    evidence.rescore(run, reward, force, results, label, trust_remote_code or ())


@app.command("import")
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
    """Import the history of a TRL, verl or OpenRLHF run as a run here, so that it gets the same crash table."""
    from safebench.cli import evidence

    evidence.import_runs(
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


def _former(name: str, now: str) -> None:
    """Register a command's former name, which raises ``UsageError`` with the command to type now."""

    @app.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def answer() -> None:
        raise UsageError(f"there is no `safebench {name}` any more", now)


for _name, _now in FORMER.items():
    _former(_name, _now)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; print errors of this package in two lines, without a traceback."""
    quiet()
    encode_anything()
    try:
        code = _code(app(args=arguments, prog_name="safebench", standalone_mode=False))
        sys.stdout.flush()
        return code
    except typer.TyperException as error:
        _show(error)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except SafebenchError as error:
        tell(error)
        return error.exit_code
    except (BrokenPipeError, SystemExit) as error:
        # The reader closed the pipe (safebench list | head), which is no error. Typer turns it into SystemExit.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Send what Python still flushes at exit to the null device, so that the flush raises no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:  # the last boundary: all unforeseen errors
        if (blame := blamed(error)) is not None:
            tell(blame)
            return blame.exit_code
        import traceback

        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return 1


def _show(error: typer.TyperException) -> None:
    """Print an error in the command line itself; such errors carry the usage line of their command."""
    show = getattr(error, "show", None)
    if show is None:
        print(f"error: {error.format_message()}", file=sys.stderr)
    else:
        show(sys.stderr)


def _code(returned: Any) -> int:
    return returned if isinstance(returned, int) else 0


def encode_anything() -> None:
    """Make stdout and stderr write a question mark for characters that their encoding lacks, rather than raise."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that replaces one of them may be of another type.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


HEADLINE = ("ppo", "safe")
