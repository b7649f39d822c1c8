"""Talking to a finished run, and its weights as peft and transformers alone read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from safebench import config
from safebench.errors import Interrupted, MissingResource, UsageError
from safebench.models.libraries import quiet_libraries
from safebench.scoring import talk
from safebench.training import run
from tests.support.runs import make_parts, tiny_run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.execute(tiny_run(parts, "safe", update__steps=2), tmp_path_factory.mktemp("results")).folder


def test_replies_depend_on_the_seed_alone(finished: Path) -> None:
    first = talk.sample(finished, "a b c", count=4, seed=1)
    assert len(first) == 4
    assert talk.sample(finished, "a b c", count=4, seed=1) == first
    assert talk.sample(finished, "a b c", count=4, seed=2) != first


def test_exported_weights_give_the_logits_of_base_and_adapter(parts: Path, finished: Path, tmp_path: Path) -> None:
    out = talk.export(finished, tmp_path / "merged")
    ids = AutoTokenizer.from_pretrained(out)("a b c d", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(parts / "model")
    with torch.no_grad(), quiet_libraries():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, finished / "adapter").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    assert not torch.allclose(adapted, plain, rtol=1e-3)
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)


def test_export_does_not_write_over_files(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        talk.export(finished, tmp_path)


def test_a_run_that_has_not_finished_has_nothing_to_say(parts: Path, tmp_path: Path) -> None:
    settings = tiny_run(parts, "ppo", update__steps=3)

    def stop(row: object, events: list[str]) -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        run.execute(settings, tmp_path, progress=stop)
    with pytest.raises(MissingResource, match="has not finished"):
        talk.sample(config.run_folder(tmp_path, settings), "a b")
