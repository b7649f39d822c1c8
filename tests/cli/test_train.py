"""Commands that make runs, on a tiny model: summaries, exit codes, comparison, sampling, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from safebench import config
from safebench.cli.main import main
from safebench.resources import estimate
from safebench.runner.pool import forget_peaks
from safebench.runner.progress import PlainView
from safebench.training.loop import peak_memory
from tests.support.runs import make_parts, overrides
from tests.support.tiny import CPU


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(parts: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls a command with the tiny world's settings: (exit code, stdout, stderr)."""

    def call(*arguments: str, **values: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        sets = [part for one in overrides(parts, **values) for part in ("--set", one)]
        code = main([*arguments, *(sets if arguments[0] in ("run", "compare") else [])])
        return code, *capsys.readouterr()

    return call


def test_a_run_ends_with_its_summary_and_can_be_talked_to(call: Any, here: Path) -> None:
    code, out, err = call("run", "safe", update__steps=4)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "safe seed 0: finished, step 4 of 4"
    assert lines[1].startswith("  reward ")
    assert "KL" in lines[1]
    assert lines[2].startswith("  crashes: ")
    folder = Path(lines[3].removeprefix("  files: "))
    assert (folder / "metrics.csv").is_file()
    assert "safe seed 0: step 4/4" in err

    code, out, err = call("run", "safe", update__steps=4)
    assert code == 0
    assert out.startswith("safe seed 0: finished before, nothing was done")

    assert call("run", "safe", "--if-exists", "error", update__steps=4)[0] == 2

    code, out, _ = call("sample", str(folder), "--prompt", "a b c", "--count", "2", "--seed", "5")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert call("sample", str(folder), "--prompt", "a b c", "--count", "2", "--seed", "5")[1] == out

    code, out, _ = call("export", str(folder))
    assert code == 0
    assert (Path(out.strip()) / "model.safetensors").is_file()
    assert call("export", str(folder))[0] == 2, "nothing is overwritten"


def test_instability_of_the_one_run_asked_for_is_4_of_several_0(call: Any) -> None:
    code, out, _ = call("run", "ppo", reward__name="tiny_rewards:huge")
    assert code == 4
    assert "unstable" in out
    code, out, _ = call("run", "ppo", "--seeds", "0-1", reward__name="tiny_rewards:huge")
    assert code == 0
    assert out.count("unstable") == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"reward__name": "tiny_rewards:nothing"}, "nan"),
        ({"model__name": "./nowhere"}, "nowhere"),
        ({"prompts__name": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"rollout__batch": 1024}, "1024"),
    ],
)
def test_what_cannot_be_had_ends_with_3_and_a_hint(call: Any, values: Mapping[str, Any], expected: str) -> None:
    code, out, err = call("run", "ppo", **values)
    assert code == 3
    assert out == ""
    assert expected in err
    assert "hint: " in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1


def test_an_interrupted_run_ends_with_130_and_goes_on(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    show = PlainView.row

    def stop(self: PlainView, label: str, row: Mapping[str, Any], events: list[str]) -> None:
        show(self, label, row, events)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PlainView, "row", stop)
        code, out, err = call("run", "ppo", update__steps=5)
    assert code == 130
    assert out == ""
    assert "1 of 1 runs unfinished; the same command continues them" in err
    assert "interrupted (resumable)" in call("list")[1]
    code, out, err = call("run", "ppo", update__steps=5)
    assert code == 0
    assert "step 5 of 5" in out
    assert "step 1/5" not in err, "it went on, not anew"


def test_compare_makes_what_is_missing_and_prints_one_table(call: Any) -> None:
    asked = ["compare", "ppo", "safe", "--format", "json"]
    sizes = {"update__steps": 2, "evaluation__prompts": 4}
    code, out, err = call(*asked, "--seeds", "0-1", **sizes)
    assert code == 5
    assert out == ""
    code, out, err = call(*asked, "--seeds", "0-1", "--run", **sizes)
    assert code == 0
    table = json.loads(out)
    assert table
    assert err.count("finished") == 4
    code, again, err = call(*asked, **sizes)
    assert code == 0
    assert json.loads(again) == table
    code, _, err = call(*asked, "--seeds", "0-1", "--run", **sizes)
    assert code == 0
    assert err.count("finished before, kept") == 4


def test_a_comparison_of_unstable_runs_is_still_a_comparison(call: Any) -> None:
    code, out, _ = call("compare", "ppo", "safe", "--seeds", "0-1", "--run", reward__name="tiny_rewards:huge")
    assert code == 0
    assert "2/2" in out, "runs that ended in NaN stay in the table"


def test_a_fault_in_a_comparison_s_run_decides_its_exit_code(call: Any) -> None:
    code, out, err = call("compare", "ppo", "safe", "--seeds", "0", "--run", reward__name="tiny_rewards:short")
    assert code == 3
    assert out == ""
    assert "failed: 2 of 2 runs" in err


def test_one_process_of_several_speaks(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "ppo", update__steps=1)
    monkeypatch.setenv("RANK", "1")
    assert call("run", "ppo", update__steps=1) == (0, "", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("run", "ppo", "--seeds", "0-1", "--jobs", "2", update__steps=1)[0] == 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process forget its peak")
def test_a_run_does_not_report_the_peak_of_the_one_before_it() -> None:
    block = bytearray(256 * 2**20)
    block[:: 2**12] = b"x" * (len(block) // 2**12)
    high = peak_memory(CPU)
    del block
    forget_peaks()
    assert peak_memory(CPU) < high - 200


def test_the_embedded_world_needs_about_the_memory_that_was_estimated(here: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "safebench", "run", "safe", "--preset", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "safe@smoke seed 0: finished, step 4 of 4" in done.stdout
    folder = here / "results" / "embedded" / "safe@smoke" / "seed-0"
    measured = float(pd.read_csv(folder / "metrics.csv")["memory/peak"].max())
    estimated = (estimate(config.load(folder / "config.yaml")).total_memory or 0) / 2**20
    assert measured == pytest.approx(estimated, rel=0.33)
