"""Options of all commands, with their help; imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from safebench.crashes.signals import SPECS, CrashSpec


class IfExists(StrEnum):
    """What to do with a run whose folder already exists."""

    RESUME = "resume"
    SKIP = "skip"
    ERROR = "error"
    OVERWRITE = "overwrite"


class Sampler(StrEnum):
    """How the points of a tuning are chosen."""

    HALTON = "halton"
    OPTUNA = "optuna"


class CrashVersion(StrEnum):
    """Versions of the crash specification."""

    ANY_EVENT = "1"
    HARMS = "2"

    @property
    def spec(self) -> CrashSpec:
        """The specification of this version."""
        return SPECS[int(self.value)]


Experiments = Annotated[
    list[str],
    typer.Argument(metavar="EXPERIMENT...", help="Names (`safebench list experiments`), name@preset, or .yaml files."),
]
Brief = Annotated[bool, typer.Option("--brief", help="One row per arm: judge, KL, entropy, crashes, differences.")]
Root = Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of the results.")]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="M", help="Name (`safebench list models`), hub id or local directory.")
]
RewardName = Annotated[
    str | None,
    typer.Option(
        "--reward", metavar="R", help="Name (`safebench list rewards`), hub id, local directory or module:function."
    ),
]
PromptsName = Annotated[
    str | None, typer.Option("--prompts", metavar="P", help="embedded, hh-rlhf, hub data set, directory or file.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="The model at full size, random: nothing is downloaded.")
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0-4", help="Seeds: 3, 0-4 or 0,2,7.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Updates of each run.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="smoke, default, large or large-cpu (the default with --model, on a GPU or without), paper, a stress-…, "
        "or stress for all of those; several with commas.",
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="One setting; may be repeated.")]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--config", metavar="F.YAML", help="Settings from a file; may be repeated.")
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="wandb (offline), wandb-online, tensorboard, trackio or none; CSV is always on.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Runs at a time.")]
Exists = Annotated[IfExists, typer.Option("--if-exists", help="What to do with a run that is there already.")]


Replicate = Annotated[
    int | None,
    typer.Option("--replicate", min=1, metavar="K", help="The same runs with sums in another order, the K-th."),
]
ReplicatesOf = Annotated[
    int | None,
    typer.Option(
        "--replicate",
        min=1,
        metavar="K",
        help="Add a column: what rounding alone moves, by the K-th replicates (compare --run makes them).",
    ),
]


class Format(StrEnum):
    """How a comparison is written."""

    SUMMARY = "summary"
    TABLE = "table"
    MD = "md"
    CSV = "csv"
    JSON = "json"
    LATEX = "latex"


class Listed(StrEnum):
    """What ``list`` lists."""

    RUNS = "runs"
    EXPERIMENTS = "experiments"
    ALGORITHMS = "algorithms"
    MODELS = "models"
    REWARDS = "rewards"


class LedgerFormat(StrEnum):
    """How a ledger is written."""

    TABLE = "table"
    MD = "md"
    CSV = "csv"
    JSON = "json"


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print settings, updates, tokens, memory and disk; do nothing.")
]
Output = Annotated[Format, typer.Option("--format", help="How the comparison is written.")]
Make = Annotated[bool, typer.Option("--run", help="Make the runs that are missing first.")]
UntilDecided = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="Make seeds in rounds (implies --run) until every primary metric is decided, with one stated error.",
    ),
]
RoundSize = Annotated[
    int | None, typer.Option("--round", min=1, metavar="N", help="With --until-decided: seeds of a round; 5.")
]
MaxSeeds = Annotated[
    int | None,
    typer.Option("--max-seeds", min=1, metavar="N", help="With --until-decided: no more seeds than so many; 20."),
]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", metavar="X", help="With --until-decided: chance of any false decision; 0.05."),
]
Force = Annotated[bool, typer.Option("--force", help="Compare what does not match, and mark it.")]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", metavar="EXPERIMENT", help="Hold the others against this one, not the first."),
]

Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="KEY", help="Only these rows: judge_final, or kl for all of those; repeatable."),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="a.b=v", help="Only runs with this setting, whatever else they were made with."),
]
CrashSpecification = Annotated[
    CrashVersion,
    typer.Option("--crash-spec", help="What a crash is: 2, a harm; 1, any event, alarms such as kl_spike too."),
]
Judge = Annotated[
    str | None, typer.Option("--judge", metavar="R", help="Judge by this reward's scores (`safebench rescore`).")
]

Checked = Annotated[
    str, typer.Argument(metavar="R", help="Name (`safebench list rewards`), hub id, directory or module:function.")
]
CheckJudge = Annotated[str, typer.Option("--judge", metavar="R", help="The reward to hold it against; empty for none.")]
ListedKind = Annotated[Listed, typer.Argument(help="What to list.")]
Sensitivity = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="In place of the page, print how the result of two experiments moves with every choice, as Markdown.",
    ),
]
BestOfN = Annotated[
    int | None,
    typer.Option(
        "--best-of-n",
        min=1,
        metavar="N",
        help="First draw N replies of the initial policy to each held-out prompt: their best is the frontier's "
        "reference that needs no training.",
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder, or its end: safe/seed-0, or safe if it has one seed.")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="When and why the penalty acted, in sentences, from the log alone.")
]
RunNames = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Only these; all by default.")]
Pretend = Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")]

Online = Annotated[bool, typer.Option("--online", help="Ask the hub which models can be had.")]

Prompt = Annotated[str, typer.Option("--prompt", "-p", help="What to reply to.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="Number of replies.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling noise.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=1e-6, help="Sampling temperature; the run's own by default.")
]
Tokens = Annotated[int | None, typer.Option("--tokens", min=1, help="Longest reply; the run's own by default.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new folder; RUN/merged by default.")]

RunsOrExperiments = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run folders, their ends (safe/seed-0), or all seeds: ppo safe.")
]
PlotFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="Ends in .png or .svg, or in neither for both.")]
FirstRun = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or its end: ppo/seed-0.")]
SecondRun = Annotated[str, typer.Argument(metavar="RUN", help="The run to hold against it.")]
KeepFolder = Annotated[
    Path,
    typer.Option("--out", metavar="DIR|F.CSV", help="Results folder to copy them into, or a file with a line per run."),
]

Budget = Annotated[
    int, typer.Option("--budget", min=1, metavar="N", help="Pilot runs of each experiment: points times pilot seeds.")
]
PilotSeeds = Annotated[
    str, typer.Option("--pilot-seeds", metavar="1000-1001", help="Seeds of the pilot runs, from 1000 on.")
]
SamplerName = Annotated[
    Sampler,
    typer.Option("--sampler", help="halton: a fixed sequence; optuna: half of it, then by the results (extra tune)."),
]
Criterion = Annotated[
    str, typer.Option("--criterion", metavar="KEY", help="What the winner has most of, or least: a row of `compare`.")
]
PlanOnly = Annotated[bool, typer.Option("--dry-run", help="Print the points; make no runs.")]

AnyExperiments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EXPERIMENT]...", help="As for compare; ppo and safe by default."),
]
ClaimedExperiments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EXPERIMENT]...", help="Whom to ask; safe and safe-official by default."),
]
LedgerOutput = Annotated[LedgerFormat, typer.Option("--format", help="How the ledger is written.")]
PageFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="The page, one HTML file.")]
NewJudge = Annotated[
    str,
    typer.Option(
        "--reward", metavar="R", help="Name (`safebench list rewards`), hub id, directory or module:function."
    ),
]
Again = Annotated[bool, typer.Option("--force", help="Score again what the same reward has scored.")]
Label = Annotated[
    str | None, typer.Option("--label", metavar="L", help="Of a classifier with several labels: index or name.")
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-remote-code", metavar="NAME", help="Run the own Python code of this model or reward; may be repeated."
    ),
]
Draws = Annotated[int, typer.Option("--draws", min=1, metavar="N", help="Replies to each held-out prompt.")]

History = Annotated[
    Path, typer.Argument(metavar="PATH", help="JSONL, CSV, trainer_state.json, or a W&B offline folder.")
]
Trainer = Annotated[
    str | None, typer.Option("--from", metavar="TRAINER", help="trl, verl or openrlhf; told from the keys by default.")
]
ImportName = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Name of its experiment here; the trainer's by default.")
]
ImportModel = Annotated[str, typer.Option("--model", metavar="M", help="Which model it was, in any words.")]
RunSeed = Annotated[int, typer.Option("--seed", min=0, help="Its seed: several histories of one name are its seeds.")]
Sigma0 = Annotated[
    float | None, typer.Option("--sigma0", metavar="X", help="Spread of the reward under its initial policy.")
]
ReplyLimit = Annotated[int | None, typer.Option("--reply-tokens", min=1, help="Longest reply it could sample.")]
Vocabulary = Annotated[int | None, typer.Option("--vocabulary", min=2, help="Number of its tokens.")]
PlannedSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Updates it was to make; the last one by default.")
]
Known = Annotated[
    list[str] | None, typer.Option("--known", metavar="NAME=V", help="A setting of its trainer that it does not log.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]
