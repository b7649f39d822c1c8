"""What a clone and a wheel carry: the lock, the commands, and a package that runs away from its repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {requirement.name.lower().replace("_", "-"): str(requirement.specifier) for requirement in LOCK}


def declared() -> list[Requirement]:
    """List what pyproject.toml asks for, build system and extras included, but the weights of the extra gemma."""
    project = PROJECT["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "gemma" for text in texts]
    return [Requirement(text) for text in project["dependencies"] + extras + PROJECT["build-system"]["requires"]]


def test_the_lock_pins_exactly_and_names_no_place() -> None:
    for requirement in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"--|://|\+|(^|\s)/", text)


def test_the_lock_holds_all_that_is_declared() -> None:
    for requirement in declared():
        pin = PINS[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin.removeprefix("==")), requirement


def test_the_lock_is_made_of_all_extras_but_the_weights() -> None:
    (recipe,) = [line for line in make("-n", "lock").stdout.replace("\\\n", "").splitlines() if "pip compile" in line]
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"gemma"}
    assert set(re.findall(r"--extra (\S+)", recipe)) == extras
    assert not [name for name in PINS if name.startswith("gemma")]


def test_make_installs_what_the_extra_gemma_asks_for() -> None:
    text = (ROOT / "Makefile").read_text()
    (line,) = re.findall(r"^GEMMA := (.+)$", text, re.MULTILINE)
    installed = {r.name: str(r.specifier).removeprefix("==") for r in map(Requirement, line.split())}
    asked = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"]["gemma"]]
    assert {requirement.name for requirement in asked} == set(installed)
    assert all(requirement.specifier.contains(installed[requirement.name]) for requirement in asked)


def test_torch_is_left_to_the_machine() -> None:
    assert PINS["torch"] == "==2.13.0"
    assert PINS["trl"] == "==1.12.0"
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_each_platform_gets_one_version_of_a_package(python: str, platform: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    names = [requirement.name for requirement in LOCK if not requirement.marker or requirement.marker.evaluate(here)]
    assert len(names) == len(set(names))
    assert {"torch", "numpy", "uvloop"} <= set(names)


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, not as a child of the make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def targets() -> set[str]:
    """List the targets that `make help` shows."""
    return {line.split()[0] for line in make("help").stdout.splitlines()}


def test_every_command_that_the_pages_name_is_a_target() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / ".ci" / "run"]
    said = {
        name
        for page in pages
        for names in re.findall(r"(?:^ *|`)make ((?:[a-z][a-z-]*\b(?!=) ?)+)", page.read_text(), re.MULTILINE)
        for name in names.split()
    }
    assert {"setup", "test", "lint", "type"} <= said
    assert said <= targets()


def test_the_world_is_rebuilt_by_the_command_in_its_manifest() -> None:
    manifest = json.loads((ROOT / "safebench" / "world" / "embedded" / "manifest.json").read_text())
    (recipe,) = [line for line in make("-n", "world").stdout.splitlines() if "tools.world" in line]
    assert recipe.partition("/")[2].partition("/")[2] == manifest["command"]


def test_setup_has_nothing_to_do_until_the_lock_changes(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    stamp = tmp_path / ".venv" / ".ready"
    stamp.parent.mkdir()
    stamp.touch()
    for name, moment in (("requirements.lock", 1_000), ("pyproject.toml", 1_000), (".venv/.ready", 2_000)):
        os.utime(tmp_path / name, (moment, moment))
    assert make("-q", "setup", cwd=tmp_path).returncode == 0
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(tmp_path / name, (3_000, 3_000))
        assert make("-q", "setup", cwd=tmp_path).returncode == 1
        os.utime(tmp_path / name, (1_000, 1_000))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from what a clone would hold: tracked files alone."""
    clone = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "-w", str(folder), str(clone)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_experiments_weights_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("experiments", "safebench/world/embedded"):
        here = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert here
        inside = folder if folder.startswith("safebench") else f"safebench/{folder}"
        assert {f"{inside}/{path.relative_to(ROOT / folder)}" for path in here} <= names
    assert "safebench/py.typed" in names
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert {name.split("/")[0] for name in names} == {
        "safebench",
        f"safebench-{PROJECT['project']['version']}.dist-info",
    }
    assert wheel.stat().st_size < 24 * 2**20


@pytest.mark.slow
def test_an_installed_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, system_site_packages=False, with_pip=False)
    # The lock's packages come from the environment that runs this test; safebench itself must not.
    (site,) = home.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q"]
    subprocess.run([*command, "--no-index", "--no-deps", "--ignore-installed", str(wheel)], check=True)

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run(
        [home / "bin" / "python", "-c", "import safebench; print(safebench.__file__)"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(home)
    ran = subprocess.run(
        [home / "bin" / "safebench", "run", "safe", "--preset", "smoke"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    (table,) = empty.glob("results/*/safe*/seed-0/metrics.csv")
    assert len(table.read_text().splitlines()) > 1
