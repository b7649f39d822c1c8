"""Bad input gets a clear error with the next step, and loses nothing."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from safebench import config
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.models.libraries import loading
from safebench.models.loading import with_pad
from safebench.recording.metrics_csv import MetricsWriter
from safebench.training import run
from tests.support.runs import make_parts, rows, tiny_run
from tests.support.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raising", "raised RuntimeError: out of tea"),
        ("short", "returned 1 values for"),
        ("nothing", r"returned nan for reply 0 \(2 of 2 are not finite\)"),
    ],
)
def test_a_reward_function_that_fails(parts: Path, tmp_path: Path, function: str, words: str) -> None:
    with pytest.raises(BadResource, match=words):
        run.execute(tiny_run(parts, "ppo", reward__name=f"tiny_rewards:{function}"), tmp_path)


def test_a_reward_that_fails_midway_loses_nothing(parts: Path, tmp_path: Path) -> None:
    settings = tiny_run(parts, "ppo", reward__name="tiny_rewards:fragile")
    whole = run.execute(settings, tmp_path / "whole").folder
    # Beside the module as it was imported: by an earlier test, it may be another folder's copy.
    trouble = Path(str(sys.modules["tiny_rewards"].__file__)).with_name("out-of-tea")

    def report(row: Mapping[str, Any], events: list[str]) -> None:
        if row["step"] == 3:
            trouble.touch()

    with pytest.raises(BadResource, match="out of tea"):
        run.execute(settings, tmp_path / "parts", progress=report)
    trouble.unlink()
    folder = config.run_folder(tmp_path / "parts", settings)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert rows(folder)["step"].max() == 3
    assert run.execute(settings, tmp_path / "parts").status == "finished"
    assert rows(folder).equals(rows(whole))


@pytest.mark.parametrize("name", ["tiny_rewards:missing", "no_such_module:reward"])
def test_a_reward_function_that_is_not_there(parts: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingResource, match=name.split(":")[0]):
        run.execute(tiny_run(parts, "ppo", reward__name=name), tmp_path)


def test_a_model_directory_without_weights(parts: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((parts / "model" / name).read_bytes())
    with pytest.raises(BadResource, match=r"bare cannot be loaded.*safetensors") as fault:
        run.execute(tiny_run(parts, "ppo", model__name=str(bare)), tmp_path / "results")
    assert "config.json" in str(fault.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "not a valid JSON"),
        ("config.json", b"{}", "model_type"),
        ("model.safetensors", b"x" * 100, "SafetensorError"),
        ("tokenizer.json", b"x", "Expecting value"),
        ("tokenizer_config.json", b"[1]", "directory"),
    ],
)
def test_a_model_directory_with_a_broken_file(
    parts: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(parts / "model", broken)
    (broken / name).write_bytes(content)
    with pytest.raises(BadResource, match=rf"broken cannot be loaded: (?s:.*){words}|{words}.*broken cannot") as fault:
        run.execute(tiny_run(parts, "ppo", model__name=str(broken)), tmp_path / "results")
    assert fault.value.exit_code == 3


def test_weights_of_another_size(parts: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(parts / "model", broken)
    described = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(described | {"intermediate_size": 48}), encoding="utf-8")
    with pytest.raises(BadResource, match=r"model .*broken"):
        run.execute(tiny_run(parts, "ppo", model__name=str(broken)), tmp_path / "results")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (KeyError("tea"), BadResource, "KeyError: 'tea'"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), MissingResource, "Install tiktoken"),
        (MemoryError(), MissingResource, "update.microbatch"),
        (AssertionError(), BadResource, "AssertionError"),
        (BadResource("said before"), BadResource, "said before"),
    ],
)
def test_whatever_a_library_raises_while_loading_is_told(
    tmp_path: Path, fault: Exception, kind: type, words: str
) -> None:
    with pytest.raises(kind) as told, loading("model m", str(tmp_path)):
        raise fault
    assert words in f"{told.value} {told.value.hint}"


def test_a_model_that_is_neither_here_nor_reachable(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"qwen2\.5-0\.5b.*Qwen/Qwen2\.5-0\.5B") as fault:
        run.execute(tiny_run(parts, "ppo", model__name="qwen2.5-0.5b"), tmp_path)
    assert fault.value.exit_code == 3
    assert "./models/Qwen2.5-0.5B" in str(fault.value.hint)


def test_fewer_prompts_than_a_batch(parts: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    for count in (1, 4):  # too few are held out, whatever the batch
        few.write_text("".join(f"prompt {i}\n" for i in range(count)), encoding="utf-8")
        with pytest.raises(BadResource, match="fewer than one batch of 8") as fault:
            run.execute(tiny_run(parts, "ppo", prompts__name=str(few)), tmp_path / "results")
        assert "two at least, are held out" in str(fault.value.hint)
    split = tmp_path / "split.jsonl"
    rows = [{"prompt": f"prompt {i}", "split": "train" if i < 7 else "heldout"} for i in range(9)]
    split.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(BadResource, match="7 training prompts, fewer than one batch of 8") as fault:
        run.execute(tiny_run(parts, "ppo", prompts__name=str(split)), tmp_path / "results")
    assert "rollout.batch=7" in str(fault.value.hint)


def test_long_prompts_lose_their_beginning_and_are_counted(parts: Path, tmp_path: Path) -> None:
    settings = tiny_run(parts, "ppo", prompts__max_tokens=2, update__steps=2)
    outcome = run.execute(settings, tmp_path)
    assert rows(outcome.folder)["prompt/truncated"].dropna().tolist() == [8, 8]


def test_a_results_folder_that_cannot_be_written(parts: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(MissingResource, match="cannot write") as fault:
        run.execute(tiny_run(parts, "ppo"), blocked / "results")
    assert fault.value.hint


def test_a_full_disk_keeps_what_was_written(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_run(parts, "ppo")
    write = MetricsWriter.write

    def full(self: MetricsWriter, row: dict[str, float]) -> object:
        if row["step"] == 4:
            raise MissingResource(f"no room: {errno.ENOSPC}", "Free some space.")
        return write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", full)
        with pytest.raises(MissingResource, match="no room"):
            run.execute(settings, tmp_path)
    folder = config.run_folder(tmp_path, settings)
    assert rows(folder)["step"].max() == 3
    assert run.execute(settings, tmp_path).status == "finished"
    assert rows(folder)["step"].tolist() == list(range(7))


def test_a_tokenizer_without_pad_token_takes_its_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert with_pad(tokenizer).pad_token == "<end>"


def test_a_tokenizer_without_pad_and_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = None
    with pytest.raises(BadResource, match="neither pad nor end"):
        with_pad(tokenizer)


def test_a_penalty_on_ppo_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no KL penalty"):
        run.execute(tiny_run(parts, "ppo", penalty__coefficient=0.1), tmp_path)


def test_lora_targets_that_the_model_lacks(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.lora\.targets"):
        run.execute(tiny_run(parts, "ppo", model__lora__targets='["nowhere"]'), tmp_path)
