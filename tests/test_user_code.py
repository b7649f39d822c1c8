"""Errors of code that is not ours end with its file and line, and with exit code 2 or 3."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safebench import user_code
from safebench.cli.main import main
from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError, out_of_memory
from safebench.models.rewards import FunctionReward, load_reward
from safebench.recording import manifest
from safebench.user_code import blamed
from tests.support.runs import make_parts, tiny_run
from tests.support.tiny import CPU, tiny_policy, tiny_world

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module into the current folder and return its name, one that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def to(name: str, text: str) -> str:
        module = f"{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        return module

    return to


@pytest.mark.parametrize(
    ("text", "kind", "line", "words"),
    [
        ("def score(p, r)\n    return 1\n", UsageError, 1, "SyntaxError"),
        ("x = 1\n\tdef f(): pass\n", UsageError, 2, "IndentationError"),
        ("x = 1\nimport nosuchpackage.part\n", MissingResource, 2, "nosuchpackage"),
        ("\n\nfrom os import nosuchname\n", MissingResource, 3, "nosuchname"),
        ("x = 1\n\ny = {}['tea']\n", UsageError, 3, "KeyError: 'tea'"),
        ("import sys\nsys.exit(4)\n", UsageError, 2, "SystemExit: 4"),
        ("import json\njson.loads('{')\n", UsageError, 2, "JSONDecodeError"),
        ("eval('1 +')\n", UsageError, 1, "SyntaxError"),
    ],
)
def test_a_module_that_does_not_import(write: Write, text: str, kind: type, line: int, words: str) -> None:
    module = write("broken", text)
    with pytest.raises(kind, match=words) as fault:
        load_reward(f"{module}:score", CPU)
    assert f"{module}.py, line {line}: " in str(fault.value)
    assert fault.value.exit_code == (2 if kind is UsageError else 3)
    assert fault.value.hint


def test_the_file_at_fault_is_named_not_the_one_that_imports_it(write: Write) -> None:
    inner = write("inner", "x = 1\nclass:\n")
    outer = write("outer", f"import {inner}\ndef score(p, r): return [0.0]\n")
    with pytest.raises(UsageError, match=rf"{outer}:score does not import: {inner}\.py, line 2: SyntaxError"):
        load_reward(f"{outer}:score", CPU)


def test_a_missing_package_is_named_with_what_to_do(write: Write) -> None:
    module = write("needy", "import nosuchpackage.part\n")
    with pytest.raises(MissingResource) as fault:
        user_code.load(f"{module}:score")
    assert str(fault.value.hint).startswith("Install nosuchpackage,")


def test_what_is_no_function_is_refused(write: Write) -> None:
    with pytest.raises(UsageError, match="is an int, not a function"):
        load_reward(f"{write('number', 'score = 3')}:score", CPU)


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("def score(p, r):\n    return helper()\n\ndef helper():\n    raise KeyError('tea')\n", 5, "KeyError: 'tea'"),
        ("import json\ndef score(p, r):\n    return json.loads('{')\n", 3, "JSONDecodeError"),
        ("def score(p, r):\n    yield 1.0\n    raise RuntimeError('late')\n", 3, "RuntimeError: late"),
        ("import sys\ndef score(p, r):\n    sys.exit(1)\n", 3, "SystemExit"),
        ("\ndef score(p):\n    return [1.0]\n", 2, "TypeError"),
        ("class Scorer:\n    def __call__(self, p, r):\n        raise ValueError('no')\nscore = Scorer()\n", 3, "no"),
    ],
)
def test_a_function_that_raises_is_told_with_file_and_line(write: Write, body: str, line: int, words: str) -> None:
    module = write("raising", body)
    with pytest.raises(BadResource, match=words) as fault:
        load_reward(f"{module}:score", CPU).score(["a"], ["b"])
    assert f"({module}.py, line {line})" in str(fault.value)


def test_a_function_of_an_installed_package_is_told_by_its_own_file() -> None:
    """json stands for the standard library: where no file is the user's, the place is where the function is."""
    with pytest.raises(BadResource, match=r"\(.*decoder.py|\(.*json.__init__.py, line \d+\)"):
        import json

        FunctionReward("json:loads", json.loads).score(["{"], ["b"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["object", "partial", "class"])
def test_any_callable_has_a_file_to_hash(write: Write, kind: str) -> None:
    text = (
        "import functools\nclass Scorer:\n    def __call__(self, p, r):\n        return [1.0] * len(r)\n"
        "def scale(p, r, by): return [by] * len(r)\n"
        "score = {'object': Scorer(), 'partial': functools.partial(scale, by=2.0), 'class': Scorer}['" + kind + "']\n"
    )
    module = write("callables", text)
    source = user_code.source_of(user_code.load(f"{module}:score"))
    assert source is not None and Path(source).name == f"{module}.py"
    assert len(manifest.hash_of_entry(user_code_entry(f"{module}:score"))) == 64
    assert user_code.source_of(functools.partial(len)) is None


def user_code_entry(name: str) -> Any:
    from safebench import registry

    return registry.reward_source(name)


# The last boundaries


def caught(function: Callable[[], Any]) -> SafebenchError | None:
    try:
        function()
    except Exception as error:
        return blamed(error)
    raise AssertionError("nothing was raised")


def test_an_error_in_a_users_file_is_theirs_and_one_in_ours_is_not(write: Write) -> None:
    module = write("arm", "class Arm:\n    def act(self):\n        raise ValueError('my arm')\n")
    arm = user_code.load(f"{module}:Arm")
    found = caught(arm().act)
    assert found is not None and found.exit_code == 3
    assert str(found) == f"{module}.py, line 3 raised ValueError: my arm"
    # Called from here, only our own frames and the standard library's are in the trace below this test's.
    ours = None
    try:
        user_code.load(None)  # type: ignore[arg-type]
    except AttributeError as error:
        ours = error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
    assert ours is not None and blamed(ours) is None


def test_memory_that_ran_out_and_files_of_the_machine_are_no_fault_of_ours() -> None:
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")):
        told = out_of_memory(error)
        assert told is not None and "update.microbatch" in str(told.hint)
    assert out_of_memory(RuntimeError("shape mismatch")) is None
    assert out_of_memory(ValueError("out of memory")) is None
    found = caught(lambda: (Path("x" * 300)).stat())
    assert found is not None and "File name too long" in str(found)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("algorithm", "class Made:\n    def __init__(self, settings):\n        raise ValueError('my arm')\n", "line 3"),
        ("algorithm", "class Made:\n    def __init__(self):\n        pass\n", "takes 1 positional argument"),
        ("update.optimizer", "def Made(parameters):\n    return None\n", "weight_decay"),
    ],
)
def test_an_arm_or_optimizer_of_the_users_that_cannot_be_made(
    write: Write, parts: Path, tmp_path: Path, key: str, text: str, words: str
) -> None:
    from safebench.training import run

    module = write("made", text)
    settings = tiny_run(parts, "ppo", **{key.replace(".", "__"): f"{module}:Made"})
    with pytest.raises(UsageError, match=words) as fault:
        run.execute(settings, tmp_path / "results")
    assert f"{module}.py, line" in str(fault.value)
    assert "It is called as it(" in str(fault.value.hint)


def test_a_policy_whose_forward_pass_fails_is_named() -> None:
    from safebench.training.distributed import Processes
    from safebench.training.evaluate import evaluate
    from tests.support.tiny import tiny_settings

    policy = tiny_policy()
    # A table smaller than the tokenizer, as in a folder whose parts do not belong together.
    policy.base.get_input_embeddings().weight.data = policy.base.get_input_embeddings().weight.data[:5]
    settings = tiny_settings()
    with pytest.raises(BadResource, match=r"the model Qwen2ForCausalLM fails in its forward pass: IndexError"):
        evaluate(settings, tiny_world(policy), Processes(settings.compute))


def test_the_command_says_whose_fault_it_is(
    write: Write, parts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = write("mine", "def score(p, r)\n    return 1\n")
    settings = [f"{key}={value}" for key, value in (("model.name", parts / "model"), ("reward.judge", "null"))]
    code = main(
        ["run", "ppo", "--reward", f"{module}:score", "--prompts", str(parts / "prompts.txt")]
        + [word for one in settings for word in ("--set", one)]
    )
    err = capsys.readouterr().err
    assert code == 2
    assert f"{module}.py, line 1: SyntaxError" in err
    assert "Traceback" not in err and "fault of safebench" not in err
