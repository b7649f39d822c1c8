"""TRL is optional: nothing imports it unasked, all else works without it, and what needs it says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from safebench import doctor
from safebench.baselines import library

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "safebench"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py" and "build" not in path.parts
)
INSTALL = 'hint: Install it with: pip install "trl==1.12.0"'

# Runs commands one after another in one process, and tells their exit codes and what they said.
DRIVER = """
import contextlib, io, json, sys, warnings

class Without:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name or name.startswith(self.name + "."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

PREPARE
from safebench.cli.main import main

def told(arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(arguments)
    return [code, out.getvalue()]

print(json.dumps([*[told(line) for line in json.loads(sys.argv[1])], sorted(n for n in sys.modules if n == "trl")]))
"""
WITHOUT_TRL = "sys.meta_path.insert(0, Without('trl'))"
# The installed one, less what 1.13.0 removed.
WITHOUT_PPO = """
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trl
trl.__version__ = "1.13.0"
sys.meta_path.insert(0, Without("trl.experimental.ppo"))
"""
SMALL = [
    f"--set={key}={value}"
    for key, value in {
        "update.steps": 1,
        "update.epochs": 1,
        "rollout.batch": 8,
        "rollout.reply_tokens": 2,
        "evaluation.prompts": 2,
        "reward.name": "safe-heuristic",
        "reward.judge": "null",
    }.items()
]


def drive(prepare: str, commands: list[list[str]]) -> list[Any]:
    """Return exit code and output of each command, and whether TRL was imported in the end."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.replace("PREPARE", prepare), json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.processes
def test_importing_anything_never_imports_trl() -> None:
    assert {"safebench.training.run", "safebench.registry", "safebench.baselines.groups"} <= set(MODULES)
    check = f"""
import importlib, sys
for name in {MODULES!r}:
    importlib.import_module(name)
    assert "trl" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", check], cwd=ROOT, check=True)


@pytest.mark.processes
def test_no_other_arm_and_no_help_imports_trl(tmp_path: Path) -> None:
    commands = [["run", "ppo", *SMALL, f"--results={tmp_path}"], ["run", "--help"], ["list", "algorithms"], ["doctor"]]
    *said, imported = drive("", commands)
    assert [code for code, _ in said] == [0, 0, 0, 0], said
    assert imported == []


@pytest.mark.processes
def test_without_trl_all_but_three_arms_works(tmp_path: Path) -> None:
    wrapped = ("trl-ppo", "grpo", "rloo")
    commands = [["run", arm, *SMALL, f"--results={tmp_path}"] for arm in (*wrapped, "safe")]
    commands += [["list", f"--results={tmp_path}"], ["list", "algorithms"], ["doctor"]]
    *said, imported = drive(WITHOUT_TRL, commands)
    for (code, text), arm in zip(said[:3], wrapped, strict=True):
        assert code == 3
        assert f"{arm} needs TRL, which is not installed\n{INSTALL}\n" in text
        assert "Traceback" not in text
    assert [code for code, _ in said[3:]] == [0] * 4, said[3:]
    assert imported == []


@pytest.mark.processes
def test_without_trl_the_world_is_not_rebuilt(tmp_path: Path) -> None:
    build = "from tools.world.__main__ import main\nmain()"
    script = f"{DRIVER.partition('PREPARE')[0]}\n{WITHOUT_TRL}\n{build}"
    done = subprocess.run(
        [sys.executable, "-c", script, "--out", str(tmp_path / "world"), "--work", str(tmp_path / "work")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == f"error: rebuilding the embedded world needs TRL, which is not installed\n{INSTALL}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_with_a_trl_that_has_no_ppo_all_but_one_arm_works(tmp_path: Path) -> None:
    commands = [["run", arm, *SMALL, f"--results={tmp_path}"] for arm in ("trl-ppo", "grpo", "rloo")]
    *said, _ = drive(WITHOUT_PPO, commands)
    code, text = said[0]
    assert code == 3
    reason = "trl-ppo needs TRL's PPO trainer, and TRL 1.13.0 has none: 1.12.0 is the last release that has it"
    assert f"{reason}\n{INSTALL}\n" in text
    assert [code for code, _ in said[1:]] == [0, 0], said[1:]


def test_a_trl_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails for another reason says so itself."""
    for name in [name for name in sys.modules if name == "trl" or name.startswith("trl.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("import something_that_trl_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    for ask in (library.ppo, lambda arm: library.group(arm, "GRPO")):
        with pytest.raises(ModuleNotFoundError, match="something_that_trl_needs"):
            ask("grpo")


def test_a_trl_that_lost_a_trainer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safebench.errors import MissingResource

    for name in [name for name in sys.modules if name == "trl" or name.startswith("trl.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("__version__ = '9.0.0'\nclass GRPOConfig: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingResource, match=r"grpo needs TRL's GRPOTrainer, and TRL 9\.0\.0 has none"):
        library.group("grpo", "GRPO")
    with pytest.raises(MissingResource, match=r"TRL 9\.0\.0 has none: 1\.12\.0 is the last release"):
        library.ppo("trl-ppo")


def test_trl_is_an_extra_and_a_developers_tool() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra: {Requirement(text).name: Requirement(text).specifier for text in texts}
        for extra, texts in project["optional-dependencies"].items()
    }
    assert "trl" not in {Requirement(text).name for text in project["dependencies"]}
    assert list(extras["trl"]) == ["trl"]
    assert all(extras["trl"]["trl"].contains(version) for version in ("1.12.0", "1.13.0"))
    assert "trl" in extras["world"]
    assert extras["dev"]["trl"].contains("1.12.0")
    assert not extras["dev"]["trl"].contains("1.13.0")


@pytest.mark.parametrize(
    ("version", "ok", "text"),
    [
        ("1.12.0", True, "1.12.0"),
        ("1.12.3", True, "1.12.3"),
        ("1.13.0", None, '1.13.0, which has no PPO: trl-ppo needs pip install "trl==1.12.0"'),
        ("2.0.0rc1", None, '2.0.0rc1, which has no PPO: trl-ppo needs pip install "trl==1.12.0"'),
        (None, None, 'not installed (optional, for trl-ppo, grpo, rloo and make world): pip install "trl==1.12.0"'),
    ],
)
def test_the_doctor_says_what_this_trl_is_good_for(
    monkeypatch: pytest.MonkeyPatch, version: str | None, ok: bool | None, text: str
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    check = doctor._trl()
    assert (check.name, check.ok, check.text) == ("trl", ok, text)
