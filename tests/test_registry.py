"""The catalogue: names, passing through, nearest matches, entry points, dimensions."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from safebench import registry, user_code
from safebench.errors import MissingResource, UsageError
from tests.support.hub import name_main

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "gemma3-270m": 268_098_176,
}
"""Numbers of parameters as the hub's model pages give them."""


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_dimensions_give_the_published_number_of_parameters(name: str, count: int) -> None:
    assert registry.parameters(registry.find("models", name).architecture) == count


def test_reward_models_have_published_sizes() -> None:
    assert registry.parameters(registry.QWEN3_06B) == 596_049_920
    assert registry.parameters(registry.LLAMA_3_8B) == 8_030_261_248
    assert registry.parameters(registry.LLAMA_3_8B, head=False) == 8_030_261_248 - 128256 * 4096


def test_every_model_of_the_catalogue_can_be_built_and_counts_alike() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for entry in (*registry.MODELS, *registry.REWARDS):
        if entry.architecture:
            shallow = entry.architecture | {"num_hidden_layers": 2}
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shallow))
            assert model.num_parameters() == registry.parameters(shallow), entry.name


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_the_encoders_layers_have_as_many_parameters_as_transformers_builds(layers: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModel

    from safebench.models import loading

    settings = AutoConfig.from_pretrained(loading.encoder_folder(), num_hidden_layers=layers)
    with torch.device("meta"):
        model = AutoModel.from_config(settings)
    assert model.num_parameters() == registry.encoder_parameters(layers)


def test_embedded_dimensions_are_those_of_the_shipped_weights() -> None:
    shipped = json.loads((registry.WORLD / "policy" / "config.json").read_text(encoding="utf-8"))
    for key, value in registry.EMBEDDED.items():
        assert shipped[key] == value, key


def test_names_are_unique_and_described() -> None:
    for group in ("algorithms", "models", "rewards", "prompts", "optimizers", "trackers"):
        entries = registry.entries(group)  # type: ignore[arg-type]
        assert len({entry.name for entry in entries}) == len(entries)
        assert all(entry.description and "\n" not in entry.description for entry in entries)


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("models", "qwen-3b", "did you mean qwen2.5-3b?"),
        ("models", "QWEN2.5-3B", "did you mean qwen2.5-3b?"),
        ("rewards", "skywork", "did you mean skywork-qwen3-0.6b?"),
        ("algorithms", "sfe", "did you mean safe?"),
        ("optimizers", "adam", "did you mean adamw?"),
        ("prompts", "hh", "did you mean hh-rlhf?"),
        ("trackers", "tensorbored", "did you mean tensorboard?"),
        ("trackers", "org/name", "there are csv"),
        ("algorithms", "org/name", "there are ppo"),
    ],
)
def test_unknown_names(group: registry.Group, name: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.find(group, name)
    assert expected in str(caught.value)
    assert caught.value.hint
    assert expected in str(registry.fault(group, name))


def test_names_that_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "p.jsonl").write_text("{}")

    def kind(group: registry.Group, name: str) -> tuple[str, str]:
        entry = registry.find(group, name)
        return entry.kind, entry.location

    assert kind("models", "org/name-1.5B") == ("hub", "org/name-1.5B")
    assert kind("models", "mine") == ("directory", "mine")
    assert kind("rewards", "./mine") == ("directory", "mine")
    assert kind("rewards", "package.module:score") == ("function", "package.module:score")
    assert kind("prompts", "p.jsonl") == ("file", "p.jsonl")
    assert kind("prompts", "mine") == ("directory", "mine")
    assert kind("prompts", "org/data") == ("hub", "org/data")
    assert kind("algorithms", "mine.arms:Arm") == ("object", "mine.arms:Arm")
    assert registry.reward_source("embedded-proxy").location == str(registry.WORLD / "proxy")
    assert registry.prompts_source("embedded").location == str(registry.WORLD / "prompts.jsonl")
    assert registry.model_source("qwen2.5-3b").location == "Qwen/Qwen2.5-3B"


@pytest.mark.parametrize(
    ("group", "name"), [("models", "./nowhere"), ("rewards", "nowhere/"), ("prompts", "nowhere.jsonl")]
)
def test_a_path_that_is_not_there_is_a_missing_resource(group: registry.Group, name: str) -> None:
    with pytest.raises(MissingResource, match="nowhere"):
        registry.find(group, name)
    assert registry.fault(group, name) is None, "found out when it is loaded, with that exit code"


@pytest.mark.parametrize("ending", registry.PROMPT_FILES)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_prompt_files_are_known_by_their_ending_in_any_case(ending: str, packed: str) -> None:
    assert registry.prompt_file(Path(f"p{ending}{packed}")) == ending
    assert registry.prompt_file(Path(f"P.1{ending.upper()}{packed.upper()}")) == ending
    assert registry.prompt_file(Path(f"p{ending}.zip")) is None


def test_loading_names_what_is_missing() -> None:
    assert user_code.load("collections.abc:Mapping") is __import__("collections.abc").abc.Mapping
    assert user_code.load("pathlib:Path.cwd")() == Path.cwd()
    with pytest.raises(MissingResource, match="no module 'not_a_module'"):
        user_code.load("not_a_module:thing")
    with pytest.raises(MissingResource, match="pathlib has no 'Pth'"):
        user_code.load("pathlib:Pth")


def test_arms_and_optimizers_of_the_catalogue_load() -> None:
    pytest.importorskip("torch")
    for entry in (*registry.ALGORITHMS, *registry.OPTIMIZERS):
        assert callable(entry.load()), entry.name
        assert isinstance(entry.load(), type) or entry.kind == "trainer", entry.name


def test_another_package_adds_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "added-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[safebench.algorithms]\nmine = added:Arm\nppo = added:Other\n[safebench.models]\nm = added:MODEL\n"
        "[safebench.rewards]\nlength = added:length\n"
    )
    (tmp_path / "added.py").write_text(
        "from safebench.registry import Entry\nclass Arm: ...\nlength = len\n"
        "MODEL = Entry('m', 'a model', 'hub', 'org/m', 'MIT')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert registry.find("algorithms", "mine").load().__name__ == "Arm"
    assert registry.find("algorithms", "mine").description == "from added"
    assert registry.find("algorithms", "ppo").target.startswith("safebench."), "our own names cannot be taken over"
    assert [entry.name for entry in registry.entries("algorithms")].count("ppo") == 1
    assert registry.find("models", "m").location == "org/m"
    assert (registry.find("rewards", "length").kind, registry.find("rewards", "length").location) == (
        "function",
        "added:length",
    )


def test_local_copy_looks_into_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert registry.local_copy("Qwen/Qwen2.5-3B") is None
    older, snapshot = (tmp_path / "models--Qwen--Qwen2.5-3B" / "snapshots" / name for name in ("aaa", "abc"))
    for folder in (older, snapshot):
        folder.mkdir(parents=True)
    (older / "config.json").write_text("{}")
    assert registry.local_copy("Qwen/Qwen2.5-3B") is None, "no revision is the main one"
    name_main(snapshot)
    assert registry.local_copy("Qwen/Qwen2.5-3B") is None, "an empty snapshot holds no model"
    (snapshot / "config.json").write_text("{}")
    assert registry.local_copy("Qwen/Qwen2.5-3B") == snapshot, "the main revision, not the first"
    assert registry.local_copy("no hub id at all") is None
