"""Seeds added in rounds until the primary metrics are decided: the rule, its decisions, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.analysis import runs
from safebench.analysis.scalars import Summary, summarise
from safebench.analysis.stopping import Rule, Stopping, decide
from safebench.cli.main import main
from safebench.crashes.signals import SPEC
from safebench.errors import UsageError
from tests.support.synthetic import healthy, write_run

STEPS = 20


def write(root: Path, arm: str, seed: int, judge: float, kl: float = 1.0) -> None:
    """A run of STEPS steps, its judge at ``judge`` and ``kl`` nats per reply in the end, where the command looks."""
    curves = healthy(seed, steps=STEPS, every=10)
    curves["eval/judge"][0] = 0.0
    curves["eval/judge"][-1] = judge
    curves["eval/kl"] = [None if value is None else kl / 10 * t / STEPS for t, value in enumerate(curves["eval/judge"])]
    curves["eval/length"] = [None if value is None else 10.0 for value in curves["eval/judge"]]
    asked = config.resolve(arm, overrides=[f"update.steps={STEPS}"])
    write_run(root, arm, seed, curves, folder=config.run_folder(root, asked).parent.name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that compares ppo and safe until decided: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        words = ["compare", "ppo", "safe", "--steps", str(STEPS), "--until-decided", *arguments]
        return main(words), *capsys.readouterr()

    return call


def many(root: Path, gain: float, seeds: int, **more: float) -> None:
    for seed in range(seeds):
        write(root, "ppo", seed, 0.1 * (seed % 3))
        write(root, "safe", seed, 0.1 * (seed % 3) + gain * (1 + 0.1 * (seed % 4)), **more)


def test_rounds_are_by_seed_number_and_the_last_may_be_shorter() -> None:
    assert Rule(size=3, most=8).rounds() == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(Rule().rounds()) == 4
    with pytest.raises(UsageError, match="--round 9"):
        Rule(size=9, most=8)
    with pytest.raises(UsageError, match="--alpha 1"):
        Rule(alpha=1.0)


@pytest.mark.parametrize(("gain", "better"), [(0.5, "safe"), (-0.5, "ppo")])
def test_a_planted_difference_is_decided_in_its_direction(call: Any, here: Path, gain: float, better: str) -> None:
    many(here / "results", gain, 10)  # no run of seed 10 is there: making one would take long, and is not wanted
    code, out, err = call("--metric", "judge", "--format", "json")
    assert code == 0
    told = json.loads(out)["stopping"]
    assert told["p_values_valid"] is False
    assert told["rounds"] == 2
    assert told["share"] == pytest.approx(0.05 / 3)
    found = {decision["metric"]: decision for decision in told["decisions"]}
    assert set(found) == {"judge_final", "judge_matched"}
    assert {decision["better"] for decision in found.values()} == {better}
    assert [look["crossed"] for look in found["judge_final"]["looks"]] == [False, True]
    worse = {"safe": "ppo", "ppo": "safe"}[better]
    assert "round 1, 5 seeds:\n  not decided yet: held-out judge reward, end (safe against ppo)" in err
    assert "round 2, 10 seeds:" in err
    assert f"decided: {better} better than {worse} on held-out judge reward, end (round 2, 10 pairs" in err


def test_undecided_ends_at_the_last_seed_and_calling_again_says_the_same(call: Any, here: Path) -> None:
    many(here / "results", 0.5, 8)
    code, out, err = call("--round", "4", "--max-seeds", "8", "--alpha", "0.2", "--format", "table")
    assert code == 0
    assert "undecided: crash rate (safe against ppo) (round 2, 8 pairs" in err, "none crashed: nothing to tell apart"
    assert "decided: safe better than ppo on held-out judge reward, end (round 2" in err
    flat = " ".join(out.split())
    assert "Decided in rounds" in flat
    assert "at most 0.2: Bonferroni gives each of 3 tests 0.067" in flat
    assert "intervals of this table are not valid" in flat
    assert "No verdict is drawn from these p-values" in flat
    assert "Significant" not in flat
    assert call("--round", "4", "--max-seeds", "8", "--alpha", "0.2", "--format", "table")[1] == out
    assert "Decided in rounds" in call("--round", "4", "--max-seeds", "8", "--alpha", "0.2")[1]


def test_a_metric_that_no_run_has_is_not_waited_for(call: Any, here: Path) -> None:
    many(here / "results", 0.5, 10, kl=0.0)
    code, _, err = call("--metric", "judge")
    assert code == 0
    assert "decided: safe better" in err
    assert "round 3" not in err
    code, _, err = call("--max-seeds", "10")
    assert code == 0
    assert "not measured: held-out judge reward at matched KL (safe against ppo)" in err


def test_what_does_not_go_with_rounds_is_refused(call: Any) -> None:
    for words, said in (
        (["--seeds", "0-4"], "--seeds and --until-decided"),
        (["--where", "seed=1"], "--where and"),
        (["--judge", "x"], "--judge and"),
        (["--brief"], "--brief and"),
        (["--preset", "default,stress"], "one per preset"),
        (["--round", "9", "--max-seeds", "8"], "--round 9"),
        (["--alpha", "2"], "--alpha 2"),
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert said in err
    assert main(["compare", "ppo", "safe", "--alpha", "0.1"]) == 2
    assert main(["compare", "ppo", "--until-decided"]) == 2


def test_a_metric_that_is_not_primary_cannot_be_decided(call: Any, here: Path) -> None:
    many(here / "results", 0.5, 5)
    code, _, err = call("--metric", "volatility")
    assert code == 2
    assert "judge_final, judge_matched, crash_rate" in err


def test_a_dry_run_counts_every_seed(call: Any, here: Path) -> None:
    code, out, _ = call("--dry-run", "--max-seeds", "7")
    assert code == 0
    assert "7 seeds" in out or "seeds 0, 1, 2, 3, 4, 5, 6" in out or "0-6" in out
    assert not (here / "results").exists()


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Summary]]:
    root = tmp_path_factory.mktemp("results")
    many(root, 0.5, 10)
    found = [summarise(run, SPEC) for run in runs.find(root)]
    return {arm: [s for s in found if s.run.experiment == arm] for arm in ("ppo", "safe")}


def decided(summaries: dict[str, list[Summary]], rounds: int, unpaired: tuple[str, ...] = ()) -> Stopping:
    kept = {arm: [s for s in found if s.run.seed < 5 * rounds] for arm, found in summaries.items()}
    return decide(kept, unpaired, Rule(most=10), rounds)


def test_what_a_round_showed_stays_when_rounds_are_added(summaries: dict[str, list[Summary]]) -> None:
    first, second = decided(summaries, 1), decided(summaries, 2)
    assert first.level == second.level > 0
    for one, other in zip(first.decisions, second.decisions, strict=True):
        assert one.looks == other.looks[:1]
    assert not first.over
    assert second.over, "after the last round nothing is open"
    assert [decision.state for decision in second.decisions] == ["decided", "decided", "undecided"]


def test_unpaired_arms_are_decided_by_labels(summaries: dict[str, list[Summary]]) -> None:
    found = decided(summaries, 2, unpaired=("safe",))
    judge = found.decisions[0]
    assert (judge.paired, judge.better) == (False, "safe")
    assert judge.looks[0].crossed, "five against five have 252 patterns: one round may do"
    assert "10 runs" in judge.told()


def test_exchanging_the_arms_turns_every_decision_round(summaries: dict[str, list[Summary]]) -> None:
    there = decided(summaries, 2)
    back = decided({"safe": summaries["safe"], "ppo": summaries["ppo"]}, 2)
    assert back.level == there.level
    for one, other in zip(there.decisions, back.decisions, strict=True):
        assert one.better == other.better
        assert [-look.statistic for look in one.looks] == pytest.approx([look.statistic for look in other.looks])
