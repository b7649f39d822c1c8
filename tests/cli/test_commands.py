"""The command line: what it prints where, how fast, and with which exit code. No run is made here."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from safebench import config, doctor, registry
from safebench.cli.main import FORMER, main
from safebench.cli.request import RunRequest, parse_seeds, parse_trackers
from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.errors import BadResource, ComparisonRefused, Instability, Interrupted, MissingResource, UsageError
from tests.support.synthetic import collapsing, healthy, write_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: ``results`` lies in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = main(list(arguments))
        self.out, self.err = capsys.readouterr()


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    home = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": home}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    check = (
        "import sys; from safebench.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pydantic', 'yaml', 'scipy', 'wandb'}; "
        "print(*heavy & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = python("-c", check)
    assert done.returncode == 0
    assert done.stderr.split() == [], "loaded for nothing but help"
    for command in ("run", "compare", "list", "show", "check-reward", "report", "doctor", "clean"):
        assert f" {command} " in done.stdout
    assert not any(f"│ {former} " in done.stdout for former in FORMER)


def test_help_takes_half_a_second_of_the_processor() -> None:
    """Processor time, not the clock's: other tests run beside this one."""
    measure = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "safebench", "--help"], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
    assert min(float(python("-c", measure).stdout) for _ in range(2)) < 0.5


def test_it_runs_as_a_module() -> None:
    done = python("-m", "safebench", "list", "algorithms")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("ppo ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "ppo", "--sedes", "3"], "--seeds"),
        (["run", "ppo", "--steps", "many"], "Invalid value for '--steps'"),
        (["run", "ppo", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["run", "ppo", "--if-exists", "maybe"], "resume"),
        (["run", "pppo"], "no experiment 'pppo'; did you mean ppo?"),
        (["run", "ppo", "--preset", "smok"], "no preset 'smok'; did you mean smoke?"),
        (["run", "ppo", "--seeds", "4-0"], "runs backwards"),
        (["run", "ppo", "--seeds", "a"], "is no seed and no range"),
        (["run", "ppo", "--model", "qwen-3b"], "model.name = qwen-3b: unknown; did you mean qwen2.5-3b?"),
        (["run", "ppo", "--tracker", "wandbb"], "recording.trackers = wandbb: unknown; did you mean wandb?"),
        (["run", "ppo", "--set", "a.b"], "write key.path=value"),
        (["run", "ppo", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["compare", "ppo", "--format", "pdf"], "table"),
        (["run", "ppo", "--config", "."], ".: cannot be read"),
        (["run", "x" * 300], "no experiment"),
        (["run", "ppo", "--set", "a=" + "[" * 3000], "nested too deeply"),
        (["run", "ppo", "--set", "reward.label=true"], "reward.label"),
        (["show", "nothing"], "no run nothing"),
    ],
)
def test_usage_errors_say_what_and_end_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    said = Said(capsys, *arguments)
    assert said.code == (3 if arguments[0] == "show" else 2)
    assert expected in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_faults_of_several_experiments_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "run", "pppo", "saef", "--set", "update.steps=0")
    assert said.code == 2
    assert "no experiment 'pppo'" in said.err
    assert "no experiment 'saef'" in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (MissingResource, 3),
        (BadResource, 3),
        (Instability, 4),
        (ComparisonRefused, 5),
        (Interrupted, 130),
    ],
)
def test_errors_of_ours_end_with_their_code_and_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("what is wrong", "the next step")

    monkeypatch.setattr(registry, "entries", fail)
    said = Said(capsys, "list", "algorithms")
    assert (said.code, said.out, said.err) == (code, "", "error: what is wrong\nhint: the next step\n")


def test_what_was_not_foreseen_ends_with_1_and_says_where_to_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "entries", None)
    said = Said(capsys, "list", "algorithms")
    assert said.code == 1
    assert "Traceback" in said.err
    assert "report" in said.err


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "entries", stop)
    assert Said(capsys, "list", "algorithms").code == 130


@pytest.mark.parametrize(
    "arguments", [["compare", "ppo", "safe"], ["show", "safe/seed-0", "--explain"], ["list", "models"]]
)
def test_what_the_terminal_cannot_encode_is_replaced(here: Path, arguments: list[str]) -> None:
    for experiment in ("ppo", "safe"):
        for seed in range(2):
            write_run(here / "results", experiment, seed, collapsing(seed))
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C",
    }  # fmt: skip
    command = [sys.executable, "-m", "safebench", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=here)
    assert b"Traceback" not in done.stderr and b"fault of safebench" not in done.stderr
    assert done.returncode == 0, done.stderr.decode()
    assert (done.stdout + done.stderr).decode("ascii")


def test_output_into_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m safebench list models | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_catalogue_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for group, kind in (("algorithms", "algorithms"), ("models", "models"), ("rewards", "rewards")):
        said = Said(capsys, "list", kind)
        assert (said.code, said.err) == (0, "")
        names = [line.split()[0] for line in said.out.splitlines()[1:]]
        assert names == [entry.name for entry in registry.entries(group)]  # type: ignore[arg-type]
    lines = Said(capsys, "list", "experiments").out
    assert all(name in lines for name, _ in [*config.experiments(), *config.presets()])


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0,2,7-9", [0, 2, 7, 8, 9]), ("1, 1,0-1", [1, 0])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "-1", "1-", "0-99999", "a", "1.5", "0,,1"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_trackers_may_be_repeated_or_listed_and_csv_is_always_on() -> None:
    assert parse_trackers(["csv,wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]


def test_flags_become_settings_and_runs_go_seed_by_seed() -> None:
    asked = RunRequest(
        ["ppo", "safe", "ppo"], seeds="0-1", preset="smoke", model="qwen2.5-3b", reward="m:f", prompts="hh-rlhf",
        random_weights=True, steps=7, overrides=["update.epochs=5"], trackers=["csv", "wandb"],
    )  # fmt: skip
    runs = asked.seeded("0")
    assert [(one.experiment, one.seed) for one in runs] == [
        ("ppo@smoke", 0), ("safe@smoke", 0), ("safe@smoke", 1), ("ppo@smoke", 1),
    ]  # fmt: skip
    one = runs[0]
    assert (one.model.name, one.model.random_weights, one.reward.name, one.prompts.name) == (
        "qwen2.5-3b", True, "m:f", "hh-rlhf",
    )  # fmt: skip
    assert (one.update.steps, one.update.epochs, one.recording.trackers) == (7, 5, ("wandb",))
    assert len(RunRequest(["ppo", "safe"], preset="stress").settings()) == 8


def test_dry_run_prints_settings_that_read_back_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    said = Said(capsys, "run", "safe", "--steps", "9", "--dry-run", "--set", "update.epochs=3")
    assert (said.code, said.err) == (0, "")
    resolved = config.resolve("safe", overrides=["update.steps=9", "update.epochs=3"])
    assert Settings.model_validate(yaml_text.read(said.out)) == resolved
    assert "# steps: 9, optimizer updates: 27" in said.out
    assert "# reply tokens: at most " in said.out
    assert "# memory on " in said.out
    assert "# disk: about " in said.out
    assert list(here.iterdir()) == []


def test_dry_run_loads_no_torch_and_no_weights() -> None:
    check = (
        "import sys; from safebench.cli.main import main; "
        "main(['run', 'safe', '--preset', 'paper', '--dry-run']); print('torch' in sys.modules, file=sys.stderr)"
    )
    assert python("-c", check).stderr == "False\n"


def test_list_show_and_clean(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    results = here / "results"
    assert "no runs in results" in Said(capsys, "list").out
    done = write_run(results, "ppo", 0, collapsing(0), overrides=["update.epochs=4"])
    stopped = write_run(results, "safe", 1, healthy(1), steps=500, state="interrupted")
    killed = write_run(results, "safe", 2, healthy(2), steps=500, state="running")
    for folder in (done, stopped, killed):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-1.pt").write_bytes(b"x" * 2**20)
        (folder / "adapter").mkdir()

    lines = Said(capsys, "list").out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["embedded", "ppo", "0"],
        ["embedded", "safe", "1"],
        ["embedded", "safe", "2"],
    ]
    assert "interrupted (resumable)" in lines[2]
    assert "killed (resumable)" in lines[3]
    assert "100/500" in lines[2]
    assert "no runs" in Said(capsys, "list", "--model", "other").out

    shown = Said(capsys, "show", "ppo")
    assert (shown.code, shown.err) == (0, "")
    assert "embedded ppo seed 0: finished, step 100/100" in shown.out
    epochs = config.resolve("ppo").update.epochs
    assert f"update.epochs  {epochs} -> 4" in shown.out
    assert "nats/token" in shown.out
    assert "may be any of" in Said(capsys, "show", "safe").err
    assert Said(capsys, "show", "safe/seed-1").code == 0
    assert Said(capsys, "show", str(stopped)).code == 0
    assert "did you mean safe/seed-1?" in Said(capsys, "show", "saef/seed-1").err

    said = Said(capsys, "clean", "--dry-run")
    assert said.out.splitlines() == [
        f"would delete {done.relative_to(here) / 'checkpoints'} (1.0 MiB)",
        "would free 1.0 MiB",
    ]
    assert (done / "checkpoints").is_dir()
    assert "kept" in Said(capsys, "clean", "safe/seed-1").out
    assert "freed 1.0 MiB" in Said(capsys, "clean").out
    assert not (done / "checkpoints").exists()
    assert (done / "adapter").is_dir()
    assert (stopped / "checkpoints").is_dir()
    assert (killed / "checkpoints").is_dir()
    assert "freed 0.0 MiB" in Said(capsys, "clean").out


def test_compare_prints_the_table_and_names_what_is_missing(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    steps = ["--steps", "100"]
    nothing = Said(capsys, "compare", "ppo", "safe", *steps)
    assert nothing.code == 3
    assert "--run" in nothing.err

    for seed in range(3):
        for experiment, curves in (("ppo", collapsing(seed)), ("safe", healthy(seed))):
            settings = config.resolve(experiment, overrides=["update.steps=100"])
            write_run(here / "results", experiment, seed, curves, folder=config.run_folder("", settings).parent.name)
    said = Said(capsys, "compare", "ppo", "safe", *steps, "--format", "json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)
    assert "safe" in Said(capsys, "compare", "safe", "ppo", *steps, "--baseline", "ppo").out

    short = Said(capsys, "compare", "ppo", "safe", *steps, "--seeds", "0-3")
    assert short.code == 5
    assert "missing: ppo, seeds 3 (not there); --run makes them" in short.err
    assert short.out == ""
    assert Said(capsys, "compare", "ppo", "safe", *steps, "--seeds", "0-3", "--force").code == 0
    assert Said(capsys, "compare", "ppo", "safe", *steps, "--seeds", "0-1").code == 0
    several = Said(capsys, "compare", "ppo", "safe", "--preset", "stress", "--format", "csv")
    assert (several.code, several.out) == (2, "")


def test_compare_shows_the_rows_and_takes_the_runs_that_are_asked_for(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    for seed in range(2):
        write_run(here / "results", "ppo", seed, collapsing(seed), overrides=["update.epochs=7"], folder="ppo-long")
        write_run(here / "results", "safe", seed, healthy(seed), overrides=["update.epochs=7"], folder="safe-long")
        write_run(here / "results", "safe", seed, healthy(seed))
    asked = ["compare", "ppo", "safe", "--where", "update.epochs=7", "--format", "csv"]
    said = Said(capsys, *asked, "--metric", "judge_final", "--metric", "kl")
    assert (said.code, said.err) == (0, "")
    rows = list(csv.reader(said.out.splitlines()[1:]))
    assert list(dict.fromkeys(row[0] for row in rows)) == ["judge_final", "kl_mean", "kl_max", "kl_final"]
    assert {row[5] for row in rows} == {"ppo", "safe"}

    none = Said(capsys, "compare", "ppo", "safe", "--where", "update.epochs=8")
    assert (none.code, none.out) == (3, "")
    both = Said(capsys, *asked, "--run")
    assert both.code == 2
    assert "--set" in both.err
    unknown = Said(capsys, *asked, "--metric", "jugde_final")
    assert (unknown.code, unknown.out) == (2, "")


def test_plot_draws_all_seeds_of_an_experiment_or_one_run(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for seed in range(2):
        write_run(here / "results", "ppo", seed, collapsing(seed))
        write_run(here / "results", "safe", seed, healthy(seed))
    said = Said(capsys, "plot", "ppo", "safe/seed-1", "--out", "figures/both.svg")
    assert (said.code, said.out) == (0, "figures/both.svg\n")
    text = (here / "figures" / "both.svg").read_text()
    assert "<!-- ppo (2 seeds) -->" in text
    assert "<!-- safe (seed 1) -->" in text
    assert Said(capsys, "plot", "sagf").code == 2


def test_keep_copies_runs_to_where_compare_finds_them(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for seed in range(2):
        write_run(here / "results", "ppo", seed, collapsing(seed))
        write_run(here / "results", "safe", seed, healthy(seed))
    kept = Said(capsys, "keep", "ppo", "safe", "--out", "kept")
    assert kept.out.splitlines() == [f"kept/embedded/{arm}/seed-{seed}" for arm in ("ppo", "safe") for seed in range(2)]
    tables = [
        Said(capsys, "compare", "ppo", "safe", "--results", place, "--format", "table").out
        for place in ("results", "kept")
    ]
    assert tables[0] == tables[1]
    assert "ppo (n=2)" in tables[0]


def test_compare_warns_of_runs_made_with_other_settings(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for experiment in ("ppo", "safe"):
        for seed in range(2):
            write_run(here / "results", experiment, seed, healthy(seed), overrides=["update.epochs=7"])
    said = Said(capsys, "compare", "ppo", "safe")
    assert said.code == 0
    assert "ppo/seed-0 was made with other settings than now asked for: update.steps, update.epochs" in said.err


def newer(results: Path, version: str | None = "9.9.9") -> None:
    """Write runs of ``ppo`` and ``safe`` as a later version of safebench might have left them."""
    for experiment in ("ppo", "safe"):
        for seed in range(2):
            folder = write_run(results, experiment, seed, healthy(seed))
            settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            settings["rollout"]["top_k"] = 5
            (folder / "config.yaml").write_text(yaml_text.write(settings), encoding="utf-8")
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            manifest["versions"] = {"safebench": version} if version else {}
            (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
            status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
            (folder / "status.json").write_text(json.dumps(status | {"mood": "good"}), encoding="utf-8")


def test_results_of_a_newer_version_are_shown_and_called_so(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    newer(here / "results")
    assert "finished" in Said(capsys, "list").out
    shown = Said(capsys, "show", "ppo/seed-0")
    assert shown.code == 0
    assert "was made by safebench 9.9.9" in shown.out and "does not know rollout.top_k" in shown.out
    for command in (["compare", "ppo", "safe"], ["compare", "ppo", "safe", "--brief"], ["report", "ppo", "safe"]):
        said = Said(capsys, *command)
        assert said.code == 0, said.err
        assert "was made by safebench 9.9.9" in said.err
        assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("version", "words"),
    [("9.9.9", "safebench 9.9.9"), (None, "another version of safebench"), ("same", "names the same")],
)
def test_settings_of_another_version_are_no_ones_unknown_keys(here: Path, version: str | None, words: str) -> None:
    import importlib.metadata

    newer(here, importlib.metadata.version("safebench") if version == "same" else version)
    (folder,) = here.glob("*/ppo*/seed-0")
    with pytest.raises(BadResource, match=words) as fault:
        config.load(folder / "config.yaml")
    assert "rollout.top_k" in str(fault.value) and "unknown key" not in str(fault.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b""),
        ("metrics.csv", b"step\n\xff\n"),
        ("metrics.csv", b"step,kl/mean\n0,tea\n"),
        ("config.yaml", b"\xff"),
        ("config.yaml", b"model: 3\n"),
        ("config.yaml", b"model: &a\n  name: *a\n"),
        ("config.yaml", b"a: " + b"[" * 3000),
        ("manifest.json", b"[1]"),
        ("status.json", b"{}"),
    ],
)
def test_a_damaged_run_is_told_and_ends_no_list(
    capsys: pytest.CaptureFixture[str], here: Path, name: str, content: bytes
) -> None:
    folder = write_run(here / "results", "ppo", 0, healthy(0))
    (folder / name).write_bytes(content)
    for command, codes in ((["list"], {0}), (["show", "ppo"], {0, 3}), (["compare", "ppo", "--force"], {0, 3, 5})):
        said = Said(capsys, *command)
        assert said.code in codes, said.err
        assert "Traceback" not in said.err


def test_doctor_says_what_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda kind: 8 * 2**30)
    monkeypatch.setattr(doctor, "device_kind", lambda name="auto": "cpu")
    said = Said(capsys, "doctor")
    lines = {line.split()[1]: line for line in said.out.splitlines() if line[:2] in ("ok", "no", "- ")}
    assert lines["python"].startswith("ok")
    assert lines["torch"].startswith("ok")
    assert lines["hub"].startswith("-")
    assert lines["embedded"].startswith("ok")
    assert lines["qwen2.5-7b"].startswith("no")
    assert "too large: 8.0 GiB free" in lines["qwen2.5-7b"]
    assert "weights to download" in lines["qwen2.5-0.5b"]
    assert said.err == ""
    assert list(here.iterdir()) == []


def test_a_container_s_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert doctor.free_memory("cpu") == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.free_memory("cpu") > 2_000_000  # type: ignore[operator]


def test_device_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.device_kind("cpu") == "cpu"
    assert doctor.device_kind("cuda:1") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.device_kind("auto") == "cpu"


@pytest.mark.parametrize(
    ("words", "preset", "dtype"),
    [
        (["--model", "qwen2.5-3b", "--set", "compute.device=cuda"], "safe@large", "bfloat16"),
        (["--model", "qwen2.5-3b", "--set", "compute.device=cpu"], "safe@large-cpu", "float32"),
        (["--model", "qwen2.5-3b", "--preset", "large"], "safe@large", "bfloat16"),
        (["--model", "qwen2.5-3b", "--preset", "default"], "safe", "float32"),
        (["--model", "qwen2.5-3b", "--preset", "paper"], "safe@paper", "bfloat16"),
        (["--model", "embedded"], "safe", "float32"),
        ([], "safe", "float32"),
    ],
)
def test_another_model_brings_the_sizes_of_large_models(
    words: list[str], preset: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = yaml.safe_load(Said(capsys, "run", "safe", *words, "--dry-run").out)
    assert (shown["experiment"], shown["model"]["dtype"]) == (preset, dtype)


@pytest.mark.parametrize("model", ["qwen2.5-3b", "gemma3-270m"])
def test_large_differs_between_devices_in_precision_alone(model: str) -> None:
    presets = (config.own_preset(model, device) for device in ("cuda", "cpu"))
    cuda, cpu = (config.resolve("safe", preset=preset).model_dump() for preset in presets)
    assert cuda["model"].pop("dtype") != cpu["model"].pop("dtype")
    assert {key for key in cuda if cuda[key] != cpu[key]} == {"experiment"}


@pytest.mark.parametrize(("name", "now"), list(FORMER.items()))
def test_former_names_say_what_to_type_now(name: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "ppo", "--whatever", "3"]) == 2
    assert f"hint: {now}" in capsys.readouterr().err


def test_no_tracker_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "ppo", "--tracker", "none", "--dry-run"]) == 0
    assert "trackers: []" in capsys.readouterr().out
    assert main(["run", "ppo", "--tracker", "none", "--tracker", "wandb", "--dry-run"]) == 2
    assert "--tracker none and wandb" in capsys.readouterr().err


def test_the_summary_names_commands_that_choose_the_same_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        for arm in ("ppo", "safe"):
            write_run(tmp_path / "kept", arm, seed, healthy(seed, 20), folder=arm)
    words = ["ppo", "safe", "--steps", "20", "--seeds", "0-1", "--baseline", "safe", "--results", "kept"]
    words += ["--where", "update.steps=20"]
    shown = Said(capsys, "compare", *words)
    text = " ".join(shown.out.split())
    (table,) = re.findall(r"`(safebench compare [^`]*)`", text)
    (page,) = re.findall(r"`(safebench report [^`]*)`", text)
    assert sorted(shlex.split(table)[2:-2]) == sorted(shlex.split(page)[2:]) == sorted(words)
    again = Said(capsys, *shlex.split(table)[1:])
    assert (again.code, "Crashes by seed" in again.out or "no crash" in again.out) == (0, True)
