"""Commands that look at runs: the page, the claims, differences, other judges, best of n, other trainers' histories."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from safebench.analysis import runs
from safebench.cli.evidence import counting
from safebench.cli.main import main
from safebench.metrics import ALARM_KINDS
from tests.support.runs import make_parts, overrides
from tests.support.synthetic import collapsing, healthy, write_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: ``results`` lies in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls a command: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(list(arguments)), *capsys.readouterr()

    return call


@pytest.fixture
def compared(here: Path) -> Path:
    """Two seeds of ppo and safe, with the settings of the experiments but their steps."""
    for seed in range(2):
        write_run(here / "results", "ppo", seed, collapsing(seed))
        write_run(here / "results", "safe", seed, healthy(seed))
    return here / "results"


def test_report_writes_one_page_of_the_headline(call: Any, compared: Path) -> None:
    code, out, _ = call("report")
    assert (code, out) == (0, "results/report.html\n")
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "safe against ppo" in page
    code, out, _ = call("report", "safe", "ppo", "--baseline", "ppo", "--seeds", "1", "--out", "pages/one.html")
    assert (code, out) == (0, "pages/one.html\n")
    assert "Higher reward" in page
    assert call("report", "--where", "update.steps=100")[0] == 0
    assert "Higher reward" not in (compared / "report.html").read_text(encoding="utf-8"), "claims are of other runs"
    assert call("report", "ppo", "safe", "--seeds", "0-5")[0] == 5


def test_claims_are_asked_of_what_lies_there(call: Any, here: Path) -> None:
    code, out, err = call("claims")
    assert (code, out) == (3, "")
    assert "--run" in err
    for seed in range(2):
        write_run(here / "results", "ppo", seed, collapsing(seed))
        write_run(here / "results", "safe", seed, healthy(seed))
    code, out, _ = call("claims", "--format", "json")
    assert code == 0
    told = json.loads(out)
    assert json.loads(call("claims", "--format", "json", "--seeds", "0")[1]) != told
    assert "Higher reward" in call("claims")[1]
    assert call("claims", "--preset", "stress")[0] == 2


def test_claims_are_asked_of_the_experiments_named(call: Any, here: Path) -> None:
    for name in ("ppo", "safe", "safe-published"):
        for seed in range(2):
            write_run(here / "results", name, seed, healthy(seed))
    code, out, _ = call("claims", "safe-published", "--format", "json")
    assert code == 0
    (first, *_), by_number = json.loads(out)["claims"], {c["number"]: c["entries"] for c in json.loads(out)["claims"]}
    assert [(entry["arm"], entry["opponent"]) for entry in first["entries"]] == [
        ("safe-published", "ppo"),
        ("safe-published", "ppo-matched"),
    ]
    assert first["entries"][0]["ours"]["n"] == 2 and {e["arm"] for es in by_number.values() for e in es} == {
        "safe-published"
    }
    assert "safe-no-gate" not in out, "an ablation of safe is none of safe-published"
    for wrong in (["ppo"], ["safe@stress-lr3"], ["saef"]):
        code, out, err = call("claims", *wrong)
        assert (code, out) == (2, "") and wrong[0].split("@")[0] in err


def test_diff_names_settings_and_the_step_at_which_curves_part(call: Any, compared: Path) -> None:
    code, out, _ = call("diff", "ppo/seed-0", "safe/seed-0")
    assert code == 0
    assert "reward.kl_coefficient" in out
    assert call("diff", "ppo", "safe/seed-0")[0] == 2, "ppo may be either seed"


def test_sensitivity_is_that_of_two_experiments(call: Any, compared: Path) -> None:
    code, out, _ = call("report", "ppo", "safe", "--sensitivity")
    assert code == 0
    assert "Crashed runs, of 2, `ppo` : `safe`" in out
    assert call("report", "ppo", "--sensitivity")[0] == 2


def test_each_version_of_the_crash_specification_can_be_asked_for(call: Any, here: Path) -> None:
    spiking = {**healthy(0), "update/ratio_max": [None, *[20.0] * 100]}  # an alarm, no harm
    write_run(here / "results", "ppo", 0, spiking)
    write_run(here / "results", "safe", 0, collapsing(0))
    shares = {}
    for version in ("1", "2"):
        chosen = ("--crash-spec", version)
        code, out, _ = call("compare", "ppo", "safe", "--metric", "crash_rate", "--format", "csv", *chosen)
        assert code == 0
        rows = list(csv.DictReader(out.splitlines()))
        shares[version] = {row["arm"]: float(row["value"]) for row in rows if not row["baseline"]}
        brief = json.loads(call("compare", "ppo", "safe", "--brief", "--format", "json", *chosen)[1])
        assert {arm["arm"]: arm["crashed"] for arm in brief[0]["arms"]} == shares[version]
        assert f"specification {version}" in " ".join(brief[0]["notes"])
        assert call("claims", *chosen)[1].count(f"rash specification {version}") == 1
        assert f"version {version}" in Path(call("report", *chosen)[1].strip()).read_text(encoding="utf-8")
        told = "1 : 1" if version == "1" else "0 : 1"
        assert f"| severity | **1×** | {told} |" in call("report", "ppo", "safe", "--sensitivity", *chosen)[1]
    assert shares == {"1": {"ppo": 1, "safe": 1}, "2": {"ppo": 0, "safe": 1}}
    assert call("compare", "ppo", "safe", "--crash-spec", "3")[0] == 2


def test_an_old_run_is_judged_again_and_compared_by_it(
    call: Any, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts = make_parts(tmp_path_factory.mktemp("parts"))
    values = {"update__steps": 2, "evaluation__every": 1}
    sets = [part for one in overrides(parts, **values) for part in ("--set", one)]
    assert call("run", "ppo", "safe", *sets)[0] == 0
    (here / "my_rewards.py").write_text(
        "def length(prompts, replies):\n    return [float(len(reply)) for reply in replies]\n"
    )
    folders = [str(run.folder) for run in runs.find(here / "results")]
    assert call("compare", "ppo", "safe", *sets, "--judge", "my_rewards:length")[0] == 3, "nobody has judged so yet"

    code, out, err = call("rescore", *folders, "--reward", "my_rewards:length")
    assert code == 0
    assert out.count("replies scored;") == 2
    assert "seed-0: " in err
    assert "scored before" in call("rescore", *folders, "--reward", "my_rewards:length")[1]

    assert "judge: my_rewards:length, all" in call("compare", "ppo", "safe", *sets, "--judge", "my_rewards:length")[1]
    code, out, _ = call(
        "compare", "ppo", "safe", *sets, "--judge", "my_rewards:length", "--metric", "judge_final", "--format", "csv"
    )
    assert code == 0
    rows = list(csv.DictReader(out.splitlines()))
    judged = {row["arm"]: float(row["value"]) for row in rows if not row["baseline"]}
    for run in runs.find(here / "results"):
        last = [r for r in run.samples if r["split"] == "heldout" and r["step"] == 2]
        assert judged[run.experiment] == pytest.approx(sum(len(r["reply"]) for r in last) / len(last), rel=1e-12)


def test_best_of_n_is_drawn_once_and_told(call: Any, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    parts = make_parts(tmp_path_factory.mktemp("parts"))
    sets = [part for one in overrides(parts) for part in ("--set", one)]
    code, out, err = call("report", "ppo", "--best-of-n", "4", *sets)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["N", "1", "2", "4"]
    assert "replies of the initial policy" in err and "no page: no runs in " in err
    again = call("report", "ppo", "--best-of-n", "4", *sets)
    assert again[1] == out and "replies of the initial policy" not in again[2], "nothing is drawn twice"


def test_alarms_are_weighed_over_all_runs_or_those_named(call: Any, here: Path) -> None:
    reference = str(Path(__file__).parents[2] / "results" / "reference")
    code, out, _ = call("alarms", "--results", reference)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("runs: 20, harmed: ")
    assert [line.split()[0] for line in lines[2:7]] == list(ALARM_KINDS)
    one = call("alarms", "embedded/ppo/seed-0", "--results", reference)
    assert (one[0], one[1].splitlines()[0].split(",")[0]) == (0, "runs: 1")
    code, _, err = call("alarms")
    assert code == 2
    assert "no runs in results" in err and "safebench run" in err


def test_best_of_n_says_what_a_run_says_of_its_prompts(call: Any, here: Path) -> None:
    parts = make_parts(here / "parts")
    sets = [part for one in overrides(parts) if "prompts.name" not in one for part in ("--set", one)]
    texts = [f"a prompt {i}" for i in range(30)] + ["a prompt 1"]
    (here / "twice.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    code, _, err = call("report", "ppo", "--best-of-n", "1", *sets, "--set", f"prompts.name={here / 'twice.txt'}")
    assert code == 0
    assert "twice.txt that repeat an earlier prompt and are left out: 1 (row 31)" in err


def test_a_history_of_another_trainer_becomes_a_run(call: Any, here: Path) -> None:
    recorded = Path(__file__).parents[1] / "data" / "trl-1.12.0-ppo.jsonl"
    code, out, _ = call("import", str(recorded), "--as", "theirs", "--model", "tiny", "--seed", "3")
    assert code == 0
    assert "results/tiny/theirs/seed-3" in out
    assert "objective/entropy" in out, "what is left is listed"
    (run,) = runs.find(here / "results")
    assert (run.experiment, run.seed, run.paired) == ("theirs", 3, False)
    assert call("import", str(recorded), "--as", "theirs", "--model", "tiny", "--seed", "3")[0] == 2, "it is there"
    assert "theirs" in call("list")[1]
    assert "not watched: reward_crash" in call("show", "theirs")[1], "unwatched is not unharmed"
    code, out, _ = call("compare", "theirs")
    assert code == 0
    assert "theirs (n=1, unpaired)" in out
    code, out, _ = call("compare", "theirs", "--brief")
    assert code == 0
    assert "theirs (unpaired)" in out and "not watched in every run" in out


def test_counting_says_a_tenth_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with counting() as count:
        for done in range(1, 101):
            count("work", done, 100)
    assert len(capsys.readouterr().err.splitlines()) == 11
