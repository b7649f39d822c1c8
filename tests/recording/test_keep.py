"""What is kept of a run: all that evidence reads, a few replies, no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.scalars import summarise
from safebench.cli.manage import locate_all
from safebench.errors import UsageError
from safebench.recording.jsonl import Sample, SamplesWriter
from safebench.recording.layout import REPLIES, keep
from tests.support.synthetic import collapsing, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with training and held-out samples of two steps, a checkpoint and an adapter."""
    made = write_run(tmp_path / "results", "ppo", 0, collapsing(0))
    writer = SamplesWriter(made / "samples.jsonl")
    for step in (0, 100):
        writer.write(step, [Sample(row, "hi", f"näh {row}", 0.5, None, "train") for row in range(4)])
        writer.write(step, [Sample(row, "hi", f"näh {row}", float("nan"), 0.1, "heldout") for row in range(40)])
    writer.close()
    for name in ("checkpoints", "adapter"):
        (made / name).mkdir()
        (made / name / "weights").write_bytes(b"0" * 100)
    return made


def test_evidence_cannot_tell_a_kept_run_from_the_whole_one(folder: Path, tmp_path: Path) -> None:
    target = keep(folder, tmp_path / "kept")
    assert target == tmp_path / "kept" / "embedded" / "ppo" / "seed-0"
    whole, kept = summarise(runs.read(folder)), summarise(runs.read(target))
    assert repr(kept.values) == repr(whole.values)  # NaN is NaN
    assert kept.events == whole.events
    assert kept.events[1.0], "the run has crashes to lose"


def test_of_the_replies_the_first_held_out_ones_stay_at_every_evaluation(folder: Path, tmp_path: Path) -> None:
    lines = (keep(folder, tmp_path / "kept") / "samples.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["step"], record["row"]) for record in records] == [(s, r) for s in (0, 100) for r in range(REPLIES)]
    assert {record["split"] for record in records} == {"heldout"}
    assert records[0]["reply"] == "näh 0"
    assert records[0]["reward"] == "nan"


def test_the_best_of_n_goes_along(folder: Path, tmp_path: Path) -> None:
    record = folder.parents[1] / "best-of-n" / "0123" / "scores.csv"
    for path in (record, record.with_name(".scores.csv.part")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    keep(folder, tmp_path / "kept")
    kept = tmp_path / "kept" / "embedded" / "best-of-n" / "0123"
    assert [path.name for path in kept.iterdir()] == ["scores.csv"]


def test_weights_stay_behind(folder: Path, tmp_path: Path) -> None:
    target = keep(folder, tmp_path / "kept")
    assert sorted(path.name for path in target.iterdir()) == [
        "config.yaml", "manifest.json", "metrics.csv", "samples.jsonl", "status.json",
    ]  # fmt: skip


def test_a_run_is_not_copied_onto_itself(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies there already"):
        keep(folder, tmp_path / "results")


def test_the_name_of_an_experiment_from_a_file_means_its_one_folder(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: ppo\nupdate: {learning_rate: 0.02}\n", encoding="utf-8")
    root = tmp_path / "results"
    made = [write_run(root, str(file), seed, collapsing(seed), folder="mine-1234abcd") for seed in (0, 1)]
    assert locate_all("mine", root) == locate_all("mine-1234abcd", root) == made
    write_run(root, str(file), 0, collapsing(0), overrides=["update.learning_rate=0.03"], folder="mine-00000000")
    write_run(root, "ppo", 0, collapsing(0), overrides=["update.learning_rate=0.03"], folder="ppo-00000000")
    for several in ("mine", "ppo"):  # which of its settings is meant is not clear, or ppo as published is
        with pytest.raises(UsageError):
            locate_all(several, root)
