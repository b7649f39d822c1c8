"""Imported runs: folders that every command reads, which claim nothing that their history does not say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.analysis import runs
from safebench.analysis.compare import compare
from safebench.analysis.scalars import summarise
from safebench.crashes.detect import detect
from safebench.errors import BadResource, ComparisonRefused, MissingResource, SafebenchError, UsageError
from safebench.importers.importing import FOREIGN, Imported, describe, import_history
from safebench.metrics import CRASH_KINDS, KEYS
from safebench.recording import layout
from safebench.recording.metrics_csv import HEADER
from safebench.report.table import render
from tests.support import foreign_logs, synthetic


def take(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Imported:
    path = foreign_logs.write_jsonl(folder / "history" / f"log-{options.get('seed', 0)}.jsonl", rows)
    return import_history(path, root=folder / "results", **{"model": "some/model", **options})


def test_the_folder_is_a_run_that_evidence_reads(tmp_path: Path) -> None:
    done = take(tmp_path, foreign_logs.trl("ppo"), sigma0=0.5, seed=4, command=["safebench", "import", "log.jsonl"])
    assert done.folder == tmp_path / "results" / "some--model" / "trl-ppo-imported" / "seed-4"
    (run,) = runs.find(tmp_path / "results")
    assert (run.experiment, run.model, run.seed, run.arm, run.status) == (
        "trl-ppo-imported",
        "some/model",
        4,
        "trl-ppo",
        "finished",
    )
    assert (run.planned_steps, run.last_step, run.sigma0, run.vocabulary, run.reply_limit) == (3, 3, 0.5, None, None)
    assert not run.paired
    assert (run.folder / "metrics.csv").read_text().splitlines()[0] == HEADER
    assert run.column("kl/sampled").tolist() == [row["objective/kl"] for row in foreign_logs.trl("ppo")]
    assert run.manifest["command"] == "safebench import log.jsonl"
    assert run.manifest["foreign"]["columns"]["reward/mean"] == "objective/scores"


def test_nothing_is_lost(tmp_path: Path) -> None:
    rows = foreign_logs.verl(12)
    done = take(tmp_path, rows)
    import csv

    with (done.folder / FOREIGN).open() as file:
        kept = list(csv.DictReader(file))
    assert [int(row["#"]) for row in kept] == list(range(13))
    for line, row in zip(kept, rows, strict=True):
        expected = {"step": row["step"], **row["data"]}
        assert {key: float(cell) for key, cell in line.items() if cell and key != "#"} == expected


def test_settings_hold_what_is_known_and_no_defaults(tmp_path: Path) -> None:
    done = take(tmp_path, foreign_logs.verl(3), reply_limit=128)
    content = (done.folder / "config.yaml").read_text()
    for invented in ("learning_rate", "batch", "embedded", "temperature", "clip"):
        assert invented not in content
    loaded = config.load(done.folder / "config.yaml")
    assert (loaded.algorithm, loaded.update.steps, loaded.rollout.reply_tokens) == ("verl-ppo", 3, 128)
    assert (loaded.reward.name, loaded.reward.judge, loaded.prompts.name) == ("unknown", None, "unknown")
    assert runs.read(done.folder).settings["rollout"] == {"reply_tokens": 128}


def test_crashes_are_found_as_in_any_run(tmp_path: Path) -> None:
    rows = foreign_logs.verl(200, collapse_at=120)
    rows[50]["data"]["actor/grad_norm"] = "NaN"
    done = take(tmp_path, rows, sigma0=1.0, reply_limit=128)
    run = runs.read(done.folder)
    summary = summarise(run)
    found = {(event.kind, event.start, event.end) for event in summary.events[1.0]}
    assert {("numeric", 50, 50), ("entropy_collapse", 120, None), ("length_collapse", 120, None)} <= found
    assert {"reward_crash", "unrecovered"} <= {kind for kind, _, _ in found}
    lines = [json.loads(line) for line in (done.folder / "events.jsonl").read_text().splitlines()]
    closed = [line for line in lines if line["what"] == "ends"] + [line for line in lines if line["what"] == "open"]
    again = detect(run.watched(), run.planned_steps, 1.0, None, reply_limit=128)
    assert [(line["kind"], line["start"], line["end"], line["peak"]) for line in closed] == [
        (event.kind, event.start, event.end, event.peak) for event in again
    ]
    assert run.column("crash/entropy_collapse")[-1] == 1.0


def test_an_empty_column_is_not_health(tmp_path: Path) -> None:
    """The KL is not ours, so nobody knows whether it ran away: its counts are empty, not 0, and every place says so."""
    done = take(tmp_path, foreign_logs.verl(60), sigma0=1.0)
    unseen = {one.kind for one in done.blind if one.wholly}
    assert unseen == {
        "judge_crash", "kl_spike", "kl_runaway", "entropy_explosion", "degenerate", "length_blowup", "ratio_blowout"
    }  # fmt: skip
    run = runs.read(done.folder)
    for kind in CRASH_KINDS:
        cells = set(run.cells[f"crash/{kind}"])
        assert (cells == {""}) == (kind in unseen), kind
        assert cells <= {"", "0"}
    assert set(summarise(run).unmeasured) == unseen
    record = layout.read_status(done.folder)
    assert record is not None and "kl_spike (no kl/mean)" in record.notices[0]
    text = describe(done)
    assert (
        "not watched, which is not the same as no crash:\n  judge_crash: no judge_sigma0\n  kl_spike: no kl/mean"
        in text
    )
    seen = "numeric, reward_crash, unrecovered, entropy_collapse, length_collapse, value_divergence"
    assert text.endswith(f"watched: {seen}")
    table = render(compare({"verl": [run]}), "table")
    assert "not watched" in table and "kl_spike" in table


@pytest.mark.parametrize(
    ("options", "watched"),
    [
        ({}, set()),
        ({"sigma0": 1.0}, {"reward_crash", "unrecovered"}),
        ({"vocabulary": 1000}, {"entropy_explosion"}),
        ({"reply_limit": 128}, {"length_blowup"}),
    ],
)
def test_a_constant_that_is_given_opens_its_kinds(tmp_path: Path, options: dict[str, Any], watched: set[str]) -> None:
    done = take(tmp_path, foreign_logs.verl(60), **options)
    unseen = {one.kind for one in done.blind if one.wholly}
    assert {"reward_crash", "unrecovered", "entropy_explosion", "length_blowup"} - unseen == watched


def test_settings_in_the_history_give_constants_and_plan(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    given = {"max_steps": 20, "vocab_size": 99, "max_completion_length": 6, "log_history": foreign_logs.trl("grpo")}
    path.write_text(json.dumps(given))
    done = import_history(path, root=tmp_path / "results", model="m", trainer="trl-grpo")
    run = runs.read(done.folder)
    assert (run.vocabulary, run.reply_limit, run.planned_steps, run.arm) == (99, 6, 20, "grpo")
    assert (run.status, run.message) == ("interrupted", "imported: the history ends at step 4 of 20 planned")
    assert (done.steps, done.planned) == (4, 20)


@pytest.mark.parametrize(("every", "last", "plan", "planned"), [(10, 90, 95, 90), (10, 90, 100, 100), (1, 90, 90, 90)])
def test_a_plan_that_ends_before_the_next_log_was_due_is_done(
    tmp_path: Path, every: int, last: int, plan: int, planned: int
) -> None:
    rows = [
        {"train/global_step": step, "train/actor_lr": 1e-6, "train/reward": 1.0}
        for step in range(every, last + 1, every)
    ]
    done = take(tmp_path, rows, steps=plan)
    assert done.planned == planned
    assert runs.read(done.folder).status == ("finished" if planned == last else "interrupted")


def test_steps_that_were_not_logged_are_empty_rows(tmp_path: Path) -> None:
    rows = [{"step": step, "actor_lr": 1e-6, "reward": step / 10} for step in (10, 20, 40)]
    done = take(tmp_path, rows)
    run = runs.read(done.folder)
    assert run.column("step").tolist() == list(range(1, 41))
    assert [step for step in range(1, 41) if run.cells["reward/mean"][step - 1]] == [10, 20, 40]
    assert done.gaps == (
        "logged every 10 steps: what is shorter than that cannot be seen",
        "steps 21–39 were not logged",
    )


def test_a_run_that_ended_in_nan_is_unstable_and_crashed(tmp_path: Path) -> None:
    rows = foreign_logs.openrlhf(5)
    rows[-1]["train/policy_loss"] = math.nan
    done = take(tmp_path, rows)
    run = runs.read(done.folder)
    assert run.status == "unstable"
    assert [(event.kind, event.start) for event in summarise(run).events[1.0]] == [("numeric", 5)]


def test_imported_runs_are_compared_among_each_other_and_with_ours_only_by_force(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, at in (("a", None), ("b", 60)):
            take(tmp_path, foreign_logs.verl(100, collapse_at=at), name=name, seed=seed, sigma0=1.0, model="embedded")
        synthetic.write_run(tmp_path / "results", "ppo", seed, synthetic.healthy(seed))
    groups = {name: [run for run in runs.find(tmp_path / "results") if run.variant == name] for name in "ab"}
    found = compare(groups)
    assert sum("is not paired by seed" in warning for warning in found.warnings) == 2
    assert found.row("crash/entropy_collapse").cells["b"].counts[1] == 2
    assert "entropy_collapse ×1 from 60" in render(found, "table")
    own = [run for run in runs.find(tmp_path / "results") if run.arm == "ppo"]
    assert len(own) == 2
    with pytest.raises(ComparisonRefused, match=r"another reward: reward\.name is embedded-proxy in ppo, unknown in a"):
        compare({"ppo": own, "a": groups["a"]})
    forced = compare({"ppo": own, "a": groups["a"]}, force=True)
    assert any("not every arm was watched" in warning and "kl_spike" in warning for warning in forced.warnings)


def test_a_folder_that_is_there_is_kept_unless_it_is_an_import_and_may_go(tmp_path: Path) -> None:
    first = take(tmp_path, foreign_logs.verl(5))
    before = (first.folder / "metrics.csv").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        take(tmp_path, foreign_logs.verl(6))
    assert (first.folder / "metrics.csv").read_bytes() == before
    again = take(tmp_path, foreign_logs.verl(6), if_exists="overwrite")
    assert runs.read(again.folder).last_step == 6
    own = synthetic.write_run(tmp_path / "results", "ppo", 0, synthetic.healthy(0), folder="mine")
    before = (own / "metrics.csv").read_bytes()
    with pytest.raises(UsageError, match="was not imported"):
        take(tmp_path, foreign_logs.verl(5), model="embedded", name="mine", if_exists="overwrite")
    assert (own / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"name": "ppo"}, UsageError, "'ppo' is an experiment of this bench"),
        ({"name": "safe@stress"}, UsageError, "is an experiment of this bench"),
        ({"sigma0": 0.0}, UsageError, "--sigma0 0.0 is no spread"),
        ({"sigma0": math.nan}, UsageError, "is no spread"),
        ({"seed": -1}, UsageError, "seed"),
        ({"reply_limit": 0}, UsageError, "reply_tokens"),
        ({"vocabulary": 0}, UsageError, "--vocabulary 0 is none"),
        ({"steps": 2}, UsageError, "--steps 2, but the history goes to step 5"),
        ({"trainer": "trl"}, UsageError, "of no trainer that is known"),
        ({"trainer": "nonsense"}, UsageError, "no trainer 'nonsense'"),
    ],
)
def test_wrong_options_are_refused_before_a_file_is_written(
    tmp_path: Path, options: dict[str, Any], error: type[SafebenchError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        take(tmp_path, foreign_logs.verl(5), **options)
    assert caught.value.hint
    assert not (tmp_path / "results").exists()


def test_a_damaged_history_leaves_no_folder(tmp_path: Path) -> None:
    rows = foreign_logs.verl(5)
    with pytest.raises(BadResource, match="comes after"):
        take(tmp_path, [*rows, rows[2]])
    with pytest.raises(MissingResource):
        import_history(tmp_path / "nothing", root=tmp_path / "results", model="m")
    assert not (tmp_path / "results").exists()


def test_settings_that_the_history_lacks_can_be_given(tmp_path: Path) -> None:
    done = take(tmp_path, foreign_logs.trl("ppo"), known={"vf_coef": 0.1, "kl_estimator": "k3"})
    run = runs.read(done.folder)
    assert run.column("loss/value")[0] == foreign_logs.trl("ppo")[0]["loss/value_avg"] * 0.1
    assert set(run.cells["kl/sampled"]) == {""}
    text = describe(done)
    assert "converted:\n  loss/value = loss/value_avg · vf_coef (logged without its coefficient)" in text
    assert "  objective/kl: kl_estimator was k3" in text


def test_every_row_has_every_column(tmp_path: Path) -> None:
    done = take(tmp_path, foreign_logs.openrlhf(3))
    assert list(runs.read(done.folder).cells) == list(KEYS)
