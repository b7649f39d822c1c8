"""Replicates in the results: their folders and hashes, and what a table says of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.analysis import fairness, overview, runs
from safebench.analysis.compare import compare
from safebench.analysis.rows import Rounding
from safebench.cli.main import main
from safebench.config import yaml_text
from safebench.errors import ComparisonRefused, UsageError
from safebench.runner.progress import label
from tests.support.synthetic import CONSTANTS, healthy, write_run

# Settings and folders


def test_no_replicate_leaves_files_and_hashes_as_they_were() -> None:
    settings = config.resolve("ppo")
    assert "replicate" not in config.dump(settings)
    assert settings.model_dump(mode="json")["compute"] == {"device": "auto", "threads": 1}
    assert config.settings_hash(settings) == config.settings_hash(
        config.resolve("ppo", overrides=["compute.threads=2"])
    )
    assert not config.differs(settings)
    assert config.digest({"algorithm": "ppo", "compute": {"threads": 2}}) == config.digest({"algorithm": "ppo"})


def test_a_replicate_has_its_own_hash_folder_and_name(tmp_path: Path) -> None:
    original = config.resolve("ppo")
    again, third = (config.resolve("ppo", overrides=[f"compute.replicate={k}"]) for k in (1, 2))
    assert len({config.run_folder(tmp_path, one) for one in (original, again, third)}) == 3
    assert "compute.replicate=1" in config.command(again)
    assert yaml_text.read(config.dump(again))["compute"]["replicate"] == 1
    assert label(again) == "ppo replicate 1 seed 0"
    run = runs.read(write_run(tmp_path, "ppo", 0, healthy(0), overrides=["compute.replicate=1"], folder="ppo-again"))
    plain = runs.read(write_run(tmp_path, "ppo", 0, healthy(0)))
    assert (run.replicate, plain.replicate) == (1, 0)
    line, other = overview.pack(run), overview.pack(plain)
    assert line.arm == "ppo[update.steps=100; compute.replicate=1]"
    assert line.settings != other.settings
    assert line.ground == other.ground


def test_dropout_has_no_replicate() -> None:
    with pytest.raises(UsageError, match=r"dropout goes by a row's place"):
        config.resolve("ppo", overrides=["model.lora.dropout=0.1", "compute.replicate=1"])
    assert config.resolve("ppo", overrides=["model.lora.dropout=0.1"]).compute.replicate == 0


# Tables


def results(root: Path, *, moved: float = 0.25, seeds: int = 3, replicates: int = 3) -> None:
    """ppo and safe, and replicates whose judge ends ``moved`` higher and lower in turn."""
    for arm in ("ppo", "safe"):
        asked = config.resolve(arm, overrides=["update.steps=20"])
        again = config.resolve(arm, overrides=["update.steps=20", "compute.replicate=1"])
        for seed in range(seeds):
            curves = healthy(seed, steps=20)
            write_run(root, arm, seed, curves, folder=config.run_folder(root, asked).parent.name)
            if seed < replicates:
                curves["eval/judge"][-1] += moved * (-1) ** seed
                folder = config.run_folder(root, again).parent.name
                write_run(root, arm, seed, curves, overrides=["compute.replicate=1"], folder=folder)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(["compare", *arguments, "--steps", "20"]), *capsys.readouterr()

    return call


def test_the_column_says_what_rounding_moves_and_nothing_else_does(call: Any, tmp_path: Path) -> None:
    results(tmp_path / "results")
    plain = json.loads(call("ppo", "safe", "--format", "json")[1])
    code, out, err = call("ppo", "safe", "--replicate", "1", "--format", "json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    for row, other in zip(told["metrics"], plain["metrics"], strict=True):
        for cell in row["cells"].values():
            rounding = cell.pop("rounding", None)
            assert (rounding is None) == (row["key"] in ("time_update", "tokens_per_second", "memory_peak"))
            if row["key"] == "judge_final":
                assert rounding == {"each": pytest.approx(0.25), "mean": pytest.approx(0.25 / 3), "n": 3}
            elif row["key"] == "train_reward":
                assert rounding == {"each": 0.0, "mean": 0.0, "n": 3}
        assert row == other, "replicates are in no arm's own figures"
    assert told["tests"] == plain["tests"]
    assert [run["folder"] for run in told["runs"]["ppo"]] == [run["folder"] for run in plain["runs"]["ppo"]]
    assert any("rounding a / b" in footer for footer in told["footers"])
    assert told["warnings"] == plain["warnings"]


@pytest.mark.parametrize("fmt", ["table", "md", "latex"])
def test_every_format_has_the_column(call: Any, tmp_path: Path, fmt: str) -> None:
    results(tmp_path / "results")
    code, out, _ = call("ppo", "safe", "--replicate", "1", "--metric", "judge_final", "--format", fmt)
    assert code == 0
    assert "rounding a / b" in out
    assert "0.2500 / 0.0833" in out
    assert "rounding" not in call("ppo", "safe", "--format", fmt)[1]


def test_csv_has_a_cell_for_each_arm(call: Any, tmp_path: Path) -> None:
    results(tmp_path / "results")
    lines = list(csv.DictReader(io.StringIO(call("ppo", "--replicate", "1", "--format", "csv")[1])))
    (judge,) = [line for line in lines if line["metric"] == "judge_final"]
    assert (float(judge["rounding_each"]), judge["rounding_n"]) == (pytest.approx(0.25), "3")
    assert "rounding_each" not in call("ppo", "--format", "csv")[1]


def test_the_page_has_the_column(call: Any, tmp_path: Path) -> None:
    results(tmp_path / "results")
    page = tmp_path / "page.html"
    words = ["report", "ppo", "safe", "--steps", "20", "--results", str(tmp_path / "results"), "--out", str(page)]
    assert main([*words, "--replicate", "1"]) == 0
    text = page.read_text(encoding="utf-8")
    assert '<th scope="col">rounding a / b</th>' in text and "<td>0.2500 / 0.0833</td>" in text
    assert main(words) == 0
    assert "rounding a / b" not in page.read_text(encoding="utf-8")
    assert main([*words, "--replicate", "1", "--judge", "x"]) == 2


def test_missing_replicates_are_named(call: Any, tmp_path: Path) -> None:
    results(tmp_path / "results", replicates=2)
    code, out, err = call("ppo", "safe", "--replicate", "1", "--format", "json")
    assert code == 0
    assert "missing: ppo replicate 1, seeds 2 (not there)" in err
    found = {row["key"]: row for row in json.loads(out)["metrics"]}
    assert found["judge_final"]["cells"]["ppo"]["rounding"]["n"] == 2
    assert found["across_risk"]["cells"]["ppo"]["rounding"]["mean"] is None, "over other seeds: not the same figure"
    code, _, err = call("ppo", "safe", "--replicate", "2")
    assert code == 3
    assert "no replicates 2 of ppo, safe" in err


def test_what_does_not_go_with_replicates_is_refused(call: Any) -> None:
    for words in (["--brief"], ["--judge", "x"], ["--where", "seed=1"]):
        assert call("ppo", "--replicate", "1", *words)[0] == 2


def test_runs_chosen_by_settings_leave_replicates_out(call: Any, tmp_path: Path) -> None:
    results(tmp_path / "results")
    assert call("ppo", "--where", "update.steps=20")[0] == 0
    code, out, _ = call("ppo", "--where", "compute.replicate=1", "--format", "json")
    assert code == 0
    assert json.loads(out)["seeds"] == [0, 1, 2]


def test_a_replicate_is_never_one_of_an_arms_own_runs(tmp_path: Path) -> None:
    results(tmp_path)
    found = runs.find(tmp_path)
    ppo, again = ([run for run in found if run.experiment == "ppo" and run.replicate == k] for k in (0, 1))
    with pytest.raises(ComparisonRefused, match=r"differ among themselves in compute\.replicate"):
        compare({"ppo": [ppo[0], again[1]]})
    assert not fairness.mismatches({"ppo": ppo, "ppo again": again}, [0, 1, 2]), "two arms may be held together"


def test_replicates_from_another_commit_are_warned_of(tmp_path: Path) -> None:
    results(tmp_path, seeds=1)
    git = {"git": {"commit": "f" * 16, "dirty": False}}
    path = write_run(tmp_path, "ppo", 0, healthy(0, 20), constants={**CONSTANTS, **git}, folder="ppo-elsewhere")
    found = [run for run in runs.find(tmp_path) if run.experiment == "ppo" and run.folder != path]
    (original,) = [run for run in found if not run.replicate]
    made = compare({"ppo": [original]}, again={"ppo": [runs.read(path)]})
    assert any("not all from one commit" in warning for warning in made.warnings)
    assert made.row("train_reward").rounding == {"ppo": Rounding(0.0, 0.0, 1)}
