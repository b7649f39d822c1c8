"""Every command with its options and help; what it does is imported when it is called."""

from __future__ import annotations

import json
from pathlib import Path

from safebench.cli import options
from safebench.cli.options import CrashVersion, Format, IfExists, Sampler

RESULTS = Path("results")


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
    """Run experiments: train, record, say how it ended. Called again, it continues what is unfinished."""
    from safebench.cli import making
    from safebench.cli.asked import Asked

    asked = Asked(
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
        return making.dry_run(asked, results)
    return making.make(asked.seeded("0"), results, jobs, if_exists)


def compare(
    experiment: options.Experiments,
    output: options.Output = Format.TABLE,
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
    """Compare experiments over seeds, on what lies in the results; --run makes what is missing."""
    from safebench.cli import making
    from safebench.cli.asked import Asked

    asked = Asked(
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
    from safebench.cli import comparing, rounds
    from safebench.cli.gathering import Choice

    rule = rounds.rule(until_decided, alpha, round_, max_seeds)
    if dry_run:
        return making.dry_run(asked, results, making.COMPARED_SEEDS if rule is None else f"0-{rule.most - 1}")

    choice = Choice(results, where=where or (), judge=judge, replicate=replicate)
    wish = comparing.Wish(baseline=baseline, force=force, metrics=metric or (), brief=brief, spec=crash_spec.spec)
    if rule is not None:
        return rounds.compare_until_decided(asked, choice, wish, output, rule, jobs)
    return comparing.compare(asked, choice, wish, output, jobs=jobs if make else None)


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
    """Tune each experiment's own knobs on equally many pilot runs, and write the winner as an experiment file."""
    from safebench.cli import tuning
    from safebench.cli.asked import Asked

    asked = Asked(
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
    plan = tuning.plan(asked, budget, criterion, sampler.value)
    if dry_run:
        return tuning.dry_run(plan)
    return tuning.tune(plan, results, jobs, if_exists)


def list_runs(model: options.ModelName = None, results: options.Root = RESULTS) -> None:
    """List the runs in the results, whatever became of them."""
    from safebench.cli.results import list_runs

    list_runs(model, results)


def show(run: options.RunName, explain: options.Explain = False, results: options.Root = RESULTS) -> None:
    """Show one run: what it is, how it differs from its experiment, its last figures, its crashes."""
    from safebench.cli import results as lying

    (lying.explain if explain else lying.show)(run, results)


def clean(run: options.RunNames = None, dry_run: options.Pretend = False, results: options.Root = RESULTS) -> None:
    """Delete what ended runs no longer need: checkpoints and trackers' caches. Figures and adapters stay."""
    from safebench.cli.results import clean

    clean(run or [], results, dry_run)


def experiments() -> None:
    """List the named experiments and presets."""
    from safebench.cli.tables import experiments

    experiments()


def arms() -> None:
    """List the algorithms that the shared loop can run."""
    from safebench.cli.tables import arms

    arms()


def models() -> None:
    """List the language models of the catalogue; --model also takes hub ids and local directories."""
    from safebench.cli.tables import things

    things("models")


def rewards(
    check: options.Checked = None,
    judge: options.CheckJudge = "embedded-judge",
    draws: options.Draws = 64,
    set_: options.Set = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """List the rewards of the catalogue; --check says how far one can be believed, before anything is trained on it."""
    if check is None:
        from safebench.cli.tables import things

        things("rewards")
        return
    from safebench.cli import judging
    from safebench.cli.asked import Asked

    overrides = [f"reward.judge={json.dumps(judge or None)}", *(set_ or ())]
    judging.check(Asked(["ppo"], reward=check, overrides=overrides, trust=trust_remote_code or ()), draws, results)


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
    """Say what this machine can run and why not; with a model, reward or prompts of yours, check these.

    Ends with 3 where even the embedded run cannot be had, or where a check of yours fails.
    """
    from safebench.cli import machine

    if not (model or reward or prompts or random_weights or preset or set_):
        return machine.doctor(online, results)
    from safebench.cli.asked import Asked

    overrides, trust = set_ or (), trust_remote_code or ()
    asked = Asked(["ppo"], None, preset, model, reward, prompts, random_weights, overrides=overrides, trust=trust)
    return machine.own_things(asked.settings()[0])


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
    """Let a trained policy reply to a prompt."""
    from safebench.cli.results import locate

    folder = locate(run, results)
    from safebench.world import talk  # imports torch: not before the run is found

    trust = trust_remote_code or ()
    # Arguments are bytes, which a locale without UTF-8 leaves undecoded.
    prompt = prompt.encode(errors="surrogateescape").decode(errors="replace")
    for reply in talk.sample(
        folder, prompt, count=count, seed=seed, temperature=temperature, tokens=tokens, trust=trust
    ):
        print(reply.strip())


def export(
    run: options.RunName,
    out: options.Out = None,
    trust_remote_code: options.Trust = None,
    results: options.Root = RESULTS,
) -> None:
    """Merge a run's adapter into its model and write it for plain transformers."""
    from safebench.cli.results import locate

    folder = locate(run, results)
    from safebench.world import talk  # imports torch: not before the run is found

    print(talk.export(folder, folder / "merged" if out is None else out, trust=trust_remote_code or ()))
