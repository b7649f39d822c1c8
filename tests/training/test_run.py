"""Whole runs: determinism, resuming, pairing by seed, ends of every kind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from safebench import config
from safebench.config.schema import Settings
from safebench.errors import Interrupted, UsageError
from safebench.training import run
from tests.support.runs import make_parts, rows, tiny_run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


def same(a: Path, b: Path) -> None:
    pd.testing.assert_frame_equal(rows(a), rows(b), check_exact=True)
    for name in ("samples.jsonl", "events.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_two_runs_with_one_seed_write_the_same_rows(parts: Path, tmp_path: Path, arm: str) -> None:
    settings = tiny_run(parts, arm)
    first = run.execute(settings, tmp_path / "first")
    second = run.execute(settings, tmp_path / "second")
    assert first.status == second.status == "finished"
    same(first.folder, second.folder)
    table = rows(first.folder)
    assert table["step"].tolist() == list(range(7))
    assert table["eval/reward"].notna().tolist() == [True, False, False, True, False, False, True]


def test_another_seed_writes_other_rows(parts: Path, tmp_path: Path) -> None:
    tables = [rows(run.execute(tiny_run(parts, "ppo", seed=seed), tmp_path).folder) for seed in (0, 1)]
    assert tables[0]["reward/mean"].tolist() != tables[1]["reward/mean"].tolist()


def stop_at(step: int, how: Callable[[], None]) -> Callable[[Mapping[str, Any], list[str]], None]:
    def report(row: Mapping[str, Any], events: list[str]) -> None:
        if row["step"] == step:
            how()

    return report


@pytest.mark.parametrize("arm", ["ppo", "safe"])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_run_resumes_to_the_same_files(parts: Path, tmp_path: Path, arm: str, step: int) -> None:
    settings = tiny_run(parts, arm)
    whole = run.execute(settings, tmp_path / "whole").folder

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=f"after step {step} of 6"):
        run.execute(settings, tmp_path / "parts", progress=stop_at(step, interrupt))
    folder = config.run_folder(tmp_path / "parts", settings)
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert run.execute(settings, tmp_path / "parts").status == "finished"
    same(whole, folder)


class Killed(BaseException):
    """Stands for a process that ends between two checkpoints."""


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_resumes_from_its_last_checkpoint(parts: Path, tmp_path: Path, step: int) -> None:
    settings = tiny_run(parts, "safe")
    whole = run.execute(settings, tmp_path / "whole").folder

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        run.execute(settings, tmp_path / "parts", progress=stop_at(step, kill))
    folder = config.run_folder(tmp_path / "parts", settings)
    assert rows(folder)["step"].max() == step
    assert run.execute(settings, tmp_path / "parts").status == "finished"
    same(whole, folder)


def test_arms_share_the_first_batch_of_a_seed(parts: Path, tmp_path: Path) -> None:
    def first_batch(arm: str) -> list[dict[str, Any]]:
        folder = run.execute(tiny_run(parts, arm, update__steps=1, recording__samples=8), tmp_path).folder
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        return [line for line in lines if line["step"] == 1 and line["split"] == "train"]

    assert first_batch("ppo") == first_batch("safe")


def test_a_run_does_not_depend_on_the_global_generator(parts: Path, tmp_path: Path) -> None:
    settings = tiny_run(parts, "safe", update__steps=2)
    torch.manual_seed(1)
    first = run.execute(settings, tmp_path / "a").folder
    torch.manual_seed(2)
    same(first, run.execute(settings, tmp_path / "b").folder)


def test_a_number_that_is_not_finite_ends_the_run_as_a_result(parts: Path, tmp_path: Path) -> None:
    outcome = run.execute(tiny_run(parts, "ppo", reward__name="tiny_rewards:huge"), tmp_path)
    assert outcome.status == "unstable"
    status = json.loads((outcome.folder / "status.json").read_text())
    assert status["exit_code"] == 4
    assert "is inf" in status["message"] or "is nan" in status["message"]
    table = rows(outcome.folder)
    assert table["step"].max() < 6
    assert table["crash/numeric"].iloc[-1] == 1
    again = run.execute(tiny_run(parts, "ppo", reward__name="tiny_rewards:huge"), tmp_path)
    assert (again.status, again.fresh) == ("unstable", False)


def test_a_reward_without_spread_is_said_and_sigma_0_is_one(parts: Path, tmp_path: Path) -> None:
    folder = run.execute(tiny_run(parts, "safe", reward__name="tiny_rewards:constant"), tmp_path).folder
    assert json.loads((folder / "manifest.json").read_text())["sigma0"] == 1.0
    assert any("sigma_0 is taken as 1" in n for n in json.loads((folder / "status.json").read_text())["notices"])


def settings_and_folder(parts: Path, root: Path) -> tuple[Settings, Path]:
    settings = tiny_run(parts, "ppo", update__steps=1)
    return settings, run.execute(settings, root).folder


def test_what_exists_is_resumed_skipped_refused_or_overwritten(parts: Path, tmp_path: Path) -> None:
    settings, folder = settings_and_folder(parts, tmp_path)
    identity = json.loads((folder / "manifest.json").read_text())["run_id"]
    for choice in ("resume", "skip"):
        assert not run.execute(settings, tmp_path, if_exists=choice).fresh
    with pytest.raises(UsageError, match="exists"):
        run.execute(settings, tmp_path, if_exists="error")
    assert json.loads((folder / "manifest.json").read_text())["run_id"] == identity
    assert run.execute(settings, tmp_path, if_exists="overwrite").fresh
    assert json.loads((folder / "manifest.json").read_text())["run_id"] != identity


def test_a_folder_made_with_other_settings_is_refused(parts: Path, tmp_path: Path) -> None:
    settings, folder = settings_and_folder(parts, tmp_path)
    other = config.dump(settings).replace("learning_rate: 0.01", "learning_rate: 0.02")
    (folder / "config.yaml").write_text(other, encoding="utf-8")
    with pytest.raises(UsageError, match=r"update\.learning_rate"):
        run.execute(settings, tmp_path)


def test_a_finished_run_is_not_that_of_other_files_of_the_same_names(parts: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a b {i}\n" for i in range(40)), encoding="utf-8")
    settings = tiny_run(parts, "ppo", prompts__name=str(prompts), update__steps=1)
    folder = run.execute(settings, tmp_path / "results").folder
    assert not run.execute(settings, tmp_path / "results").fresh
    text = prompts.read_text(encoding="utf-8")
    prompts.write_text(text.replace("a b", "c d"), encoding="utf-8")
    for if_exists in ("resume", "skip"):
        with pytest.raises(UsageError, match="was made with other files: prompts changed since") as fault:
            run.execute(settings, tmp_path / "results", if_exists=if_exists)  # type: ignore[arg-type]
        assert "--if-exists overwrite" in str(fault.value.hint)
    prompts.unlink()
    assert not run.execute(settings, tmp_path / "results").fresh, "what is gone says nothing against the result"
    prompts.write_text(text, encoding="utf-8")
    assert run.execute(settings, tmp_path / "results").folder == folder
