"""The scripts in examples/: they run, show what they say, and for TRL's trainer differ in their import line alone."""

from __future__ import annotations

import ast
import difflib
import json
import re
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from safebench import registry

EXAMPLES = Path(__file__).parents[1] / "examples"
PORTED = ("ppo", "ppo_tldr")
IMPORT = re.compile(r"^from safebench\.trl import .*$", re.M)
SMALL = [
    *("--total_episodes", "24", "--per_device_train_batch_size", "4", "--response_length", "8"),
    *("--gradient_accumulation_steps", "2", "--eval_steps", "2", "--per_device_eval_batch_size", "12"),
]


@dataclass(frozen=True)
class Done:
    """What a script printed and left."""

    printed: str
    folder: Path


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 training prompts and 24 held-out ones; the last 64 rows are both, for the script that splits by place."""
    lines = (registry.WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    by_split = {name: [line for line in lines if json.loads(line)["split"] == name] for name in ("train", "heldout")}
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join([*by_split["train"][:80], *by_split["heldout"][:24]]) + "\n", encoding="utf-8")
    return path


def text_of(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def for_trl(name: str) -> str:
    """Return the script with its import line replaced by those that its docstring gives for TRL."""
    text = text_of(name)
    told = re.findall(r"^    (from trl.*)$", ast.get_docstring(ast.parse(text)) or "", re.M)
    assert len(told) == 2
    found, count = IMPORT.subn("\n".join(told), text)
    assert count == 1
    assert "safebench.trl" not in found
    return found


def run(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Done:
    folder = script.parent / "out"
    monkeypatch.setattr(sys, "argv", [str(script), *SMALL, *arguments, "--output_dir", str(folder)])
    monkeypatch.chdir(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    return Done(capsys.readouterr().out, folder)


def written(text: str, folder: Path) -> Path:
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(printed: str) -> dict[str, list[float]]:
    """Return the numbers of the lines that a script's own table has, by what stands before them."""
    found = re.findall(r"^([a-zA-Z][^\d\n]*?) +(-?\d+\.\d+) +(-?\d+\.\d+)$", printed, re.M)
    return {name.strip(): [float(first), float(last)] for name, first, last in found}


@pytest.mark.parametrize("name", PORTED)
def test_only_the_import_line_differs(name: str) -> None:
    changes = [
        line
        for line in difflib.unified_diff(text_of(name).splitlines(), for_trl(name).splitlines(), n=0, lineterm="")
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    assert [line[0] for line in changes] == ["-", "+", "+"]
    assert all(re.match(r"[+-]from (trl|safebench\.trl)", line) for line in changes)


@pytest.mark.parametrize("name", PORTED)
def test_it_runs_on_trl(
    name: str, few_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = written(for_trl(name), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = run(script, ["--dataset_name", str(few_prompts)], monkeypatch, capsys)
    assert "model response" in done.printed
    assert "held-out reward" not in done.printed  # eval_strategy is ignored


def test_all_weights_against_a_reward_model(
    few_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = written(text_of("ppo"), tmp_path)
    done = run(script, ["--dataset_name", str(few_prompts)], monkeypatch, capsys)
    rows = rows_of(done.printed)
    assert rows["KL [nats/reply]"][0] == 0.0 != rows["KL [nats/reply]"][1]
    assert rows["score"][0] != rows["score"][1]
    assert "model response" in done.printed
    saved = AutoModelForCausalLM.from_pretrained(done.folder)
    first = AutoModelForCausalLM.from_pretrained(registry.WORLD / "policy")
    pairs = zip(saved.parameters(), first.parameters(), strict=True)
    assert all(bool((a != b).any()) for a, b in pairs)
    assert AutoTokenizer.from_pretrained(done.folder).pad_token == "[PAD]"


def test_an_adapter_with_accumulation_and_evaluation(
    few_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = written(text_of("ppo_tldr"), tmp_path)
    done = run(script, ["--dataset_name", str(few_prompts)], monkeypatch, capsys)
    batches = re.findall(r"^ +(\d+) +-?\d+\.\d+ +-?\d+\.\d+ +\d\.\d+$", done.printed, re.M)
    assert batches == ["8", "16", "24"]
    assert re.findall(r"^step (\d): held-out reward", done.printed, re.M) == ["2", "3"]
    assert_adapter(done.folder)


def test_safe_with_a_reward_function_on_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    done = run(written(text_of("safe"), tmp_path), ["--kl_threshold", "0.25"], monkeypatch, capsys)
    table = re.findall(r"^ +(\d) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)  (\w+)$", done.printed, re.M)
    assert [row[0] for row in table] == ["1", "2", "3"]
    assert table[0][2] == "0.000" != table[-1][2]
    assert {row[-1] for row in table} == {"warmup"}
    # The first step's PID gives 0: what is asked for, times the factor of the first phase.
    assert float(table[0][3]) == 0.25 * 1.5
    assert_adapter(done.folder)


def assert_adapter(folder: Path) -> None:
    """The adapter of ``folder`` loads with plain peft and moves the logits."""
    base = AutoModelForCausalLM.from_pretrained(registry.WORLD / "policy")
    ids = torch.tensor([[2, 300, 301, 3]])
    with torch.no_grad(), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by the attribute's old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, str(folder))(ids).logits
    assert bool(torch.isfinite(after).all())
    assert bool((before != after).any())


def test_the_reward_function_of_the_example() -> None:
    curious = runpy.run_path(str(EXAMPLES / "safe.py"))["curious"]

    def scores(prompt: str, *replies: str) -> list[float]:
        talk = [[{"role": "user", "content": prompt}] for _ in replies]
        return curious(talk, [[{"role": "assistant", "content": reply}] for reply in replies], topic="any")

    assert scores("do you like tea", "do you like tea", "why? ", "tea tea tea tea", "") == [0.0, 2.0, 0.0, 0.0]
    assert scores("hi", "so so good, good good?") == [1 + 4 / 5]  # as written: so, good with comma, good, and good?


@pytest.mark.parametrize(
    "line",
    [
        "--dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style --dataset_train_split descriptiveness "
        "--output_dir out --num_ppo_epochs 1 --num_mini_batches 1 --learning_rate 3e-6 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 16 --total_episodes 10000 --model_name_or_path EleutherAI/pythia-1b-deduped "
        "--sft_model_path EleutherAI/pythia-1b-deduped --reward_model_path EleutherAI/pythia-1b-deduped "
        "--local_rollout_forward_batch_size 1 --missing_eos_penalty 1.0",
        "--dataset_name trl-lib/tldr --dataset_test_split validation --learning_rate 3e-6 --output_dir out "
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 64 --total_episodes 30000 "
        "--model_name_or_path EleutherAI/pythia-1b-deduped "
        "--sft_model_path cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr "
        "--reward_model_path cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr --missing_eos_penalty 1.0 "
        "--stop_token eos --response_length 53 --eval_strategy steps --eval_steps 100 --use_peft",
    ],
)
def test_the_published_command_lines_mean_the_same(line: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import ModelConfig, ScriptArguments
        from trl.experimental.ppo import PPOConfig

        from safebench import trl as ours

        words = [*line.split(), "--bf16", "False"]
        theirs = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig)).parse_args_into_dataclasses(words)
        found = HfArgumentParser(
            (ours.ScriptArguments, ours.PPOConfig, ours.ModelConfig)
        ).parse_args_into_dataclasses(words)
    for left, right in zip(theirs, found, strict=True):
        differing = {key for key, value in vars(left).items() if str(getattr(right, key)) != str(value)}
        assert differing <= {"logging_dir", "_n_gpu"}, differing
