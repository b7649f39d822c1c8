"""TRL itself, run here on tiny models: what it logs is what is imported, from each form that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.importers.history import number, read
from safebench.importers.importing import import_history
from tests.support import foreign_logs

ROOT = Path(__file__).parents[2]
SETTINGS = {"kl_coef": 0.5, "missing_eos_penalty": None, "vf_coef": 0.25}


def run_trl(folder: Path, call: str) -> None:
    """Run TRL in a process of its own, with W&B offline below ``folder``."""
    script = f"from pathlib import Path; from tests.support import trl_real; trl_real.{call}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.mark.slow
def test_a_real_ppo_run_from_its_state_and_from_its_wandb_folder(tmp_path: Path) -> None:
    run_trl(tmp_path, f"ppo(Path({str(tmp_path)!r}), 3, 'wandb', **{SETTINGS!r})")
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [set(row) for row in logged] == [set(row) for row in foreign_logs.trl("ppo")], "TRL's keys have changed"
    for row in logged:  # that objective/kl is summed over a reply, as the penalty in the reward is
        assert row["objective/non_score_reward"] == pytest.approx(-0.5 * row["objective/kl"], rel=1e-6, abs=1e-9)
        assert row["objective/rlhf_reward"] == pytest.approx(
            row["objective/scores"] + row["objective/non_score_reward"], rel=1e-6, abs=1e-7
        )
    (file,) = tmp_path.rglob("*.wandb")
    state = import_history(tmp_path / "trainer_state.json", root=tmp_path / "results", model="tiny", name="state")
    tracked = import_history(file.parent, root=tmp_path / "results", model="tiny", name="wandb")
    by_state, by_tracker = runs.read(state.folder), runs.read(tracked.folder)
    for key in ("reward/mean", "reward/shaped", "kl/sampled", "loss/policy", "update/learning_rate", "episodes"):
        assert by_state.column(key).tolist() == by_tracker.column(key).tolist(), key
    assert by_tracker.column("kl/sampled").tolist() == [row["objective/kl"] for row in logged]
    assert by_tracker.column("loss/value").tolist() == [row["loss/value_avg"] * 0.25 for row in logged]
    assert (by_tracker.vocabulary, by_tracker.reply_limit) == (54, 6)
    assert len(state.assumed) == 3 and tracked.assumed == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_keys_that_were_recorded_are_those_that_trl_logs(tmp_path: Path, name: str) -> None:
    run_trl(tmp_path, f"group({name!r}, Path({str(tmp_path)!r}), 4, 'wandb', log_completions=True)")
    logged = read(tmp_path / "trainer_state.json").rows
    assert [set(row) for row in logged] == [set(row) for row in foreign_logs.trl(name)]
    (file,) = tmp_path.rglob("*.wandb")  # where each call's time and the replies stand between the metrics
    for path, title in ((tmp_path / "trainer_state.json", "state"), (file, "wandb")):
        done = import_history(path, root=tmp_path / "results", model="tiny", trainer=f"trl-{name}", name=title)
        lengths = [row["completions/mean_length"] for row in logged if "reward" in row]
        run = runs.read(done.folder)
        assert [length for length in run.column("reply/length") if length > 0] == lengths
        assert [number(cell) for cell in run.cells["entropy/mean"] if cell] == [
            row["entropy"] for row in logged if "entropy" in row
        ]
    assert (run.vocabulary, run.reply_limit) == (54, 6)
