"""Load models whole: embedded, local, adapter folders, from the hub or a package, or with random weights."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from safebench import catalog
from safebench import settings as s
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.world import adapters, encoder, noise, quantised
from safebench.world.loading import loading, trusted


class LoadedModel(NamedTuple):
    """A language model, its tokenizer, and what the user should know of them."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notices: tuple[str, ...] = ()


def load_model(
    model: s.Model, seed: int, device: torch.device, *, trust: Collection[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and its tokenizer (``load_with_notices``)."""
    return load_with_notices(model, seed, device, trust=trust)[:2]


def load_with_notices(model: s.Model, seed: int, device: torch.device, *, trust: Collection[str] = ()) -> LoadedModel:
    """Return the language model and its tokenizer, with a pad token; of an adapter folder, base and adapter merged.

    Its own code runs only if its name is in ``trust``. Raises ``BadResource`` where weights are missing; without hub
    access and without a local copy the error names the model and the way to give a directory.
    """
    dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
    source = catalog.model_source(model.name)
    if model.random_weights:
        return LoadedModel(*_random(source, dtype, seed, device))
    what, code = f"model {model.name}", trusted(source, trust)
    if source.kind == "package":
        base, tokenizer, notices = quantised.load(source, what=what, dtype=dtype)
    else:
        base, notices = load_whole(AutoModelForCausalLM, source.location, what=what, dtype=dtype, trust=code)
        tokenizer = load_tokenizer(source.location, what, trust=code)
    padded = padding_within(tokenizer, rows := int(base.get_input_embeddings().weight.shape[0]))
    if padded is not tokenizer:
        beyond = f"padding token {tokenizer.pad_token_id} is beyond its embedding's {rows} rows"
        notices = (*notices, f"{what}: its {beyond}; {padded.pad_token} pads in its place, masked as ever")
    return LoadedModel(base.to(device), padded, notices)


def load_whole(
    auto_class: Any, location: str, *, what: str, dtype: torch.dtype, trust: bool = False, **options: Any
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model of a folder or hub id, on the CPU, in evaluation mode, and what its file held in vain.

    An adapter folder is its base with the adapter folded in. ``options`` go to ``from_pretrained``. Raises
    ``BadResource`` where a weight is missing, of another shape, or was saved as another kind of model.
    """
    return _load(auto_class, location, {}, what=what, dtype=dtype, trust=trust, **options)


def _load(
    auto_class: Any, location: str, provided: dict[str, Tensor], *, what: str, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model of a folder; weights that adapters on it hold whole, ``provided``, may be missing there."""
    if (entry := catalog.packaged_model(location)) is not None and auto_class is AutoModelForCausalLM:
        base, _, notices = quantised.load(entry, what=what, dtype=dtype)
        return base, notices
    with loading(what, location):
        adapter = adapters.config_of(location)
        if adapter is None:
            return _load_base(auto_class, location, provided, what=what, dtype=dtype, **options)
    with loading(what, location, _ADAPTER_HINT):
        stored = adapters.weights_of(location)
        place = base_of(location, str(adapter.base_model_name_or_path))
        if auto_class is not AutoModelForCausalLM and (labels := _labels(stored)) is not None:
            options = {"num_labels": labels} | options
    whole = {**stored, **provided}
    base, notices = _load(auto_class, place, whole, what=f"{what}: its adapter's base", dtype=dtype, **options)
    with loading(what, location, _ADAPTER_HINT):
        _resize(base, stored)
        adapted = adapters.load(base, location, stored)
        told = adapters.left_out(adapted, location)
        return adapters.merged(adapted, location), (*notices, *told)


_ADAPTER_HINT = "Load it with the model and the peft that it was trained with: adapter_config.json names them."


def load_tokenizer(location: str, what: str, *, trust: bool = False) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, with a pad token; an adapter folder without one has its base's."""
    if (entry := catalog.packaged_model(location)) is not None:
        return quantised.load_tokenizer(entry, what=what)
    with loading(what, location):
        adapter = adapters.config_of(location)
    folder = Path(location)
    if adapter is not None and not (folder.is_dir() and (folder / "tokenizer_config.json").exists()):
        return load_tokenizer(base_of(location, str(adapter.base_model_name_or_path)), what, trust=trust)
    with loading(what, location):
        tokenizer = with_pad(AutoTokenizer.from_pretrained(location, trust_remote_code=trust))
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise BadResource(
            f"{what}: {location} holds no tokenizer: {type(tokenizer).__name__} came out of it without a single word",
            "Copy the tokenizer's files (tokenizer.json, tokenizer_config.json) into it.",
        )
    return tokenizer


def base_of(location: str, name: str) -> str:
    """Return where the base of the adapter in ``location`` lies: a folder here, beside the adapter, or elsewhere."""
    if name == encoder.NAME:
        return str(encoder.folder())
    for place in (Path(name), Path(location) / name, Path(location).parent / name):
        if place.is_dir():
            _refuse_circle(location, place)
            return str(place)
    entry = next((e for e in catalog.entries("models") if e.name == name), None)
    if entry is not None:
        return entry.location
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise MissingResource(
            f"{location} is an adapter of {name}, which is not there",
            "Write where its base lies as base_model_name_or_path into adapter_config.json.",
        )
    return name


def _refuse_circle(location: str, base: Path) -> None:
    """Refuse an adapter whose bases lead back to itself."""
    seen = [Path(location).resolve()]
    while (file := base / "adapter_config.json").is_file():
        if base.resolve() in seen:
            raise BadResource(
                f"{location} is an adapter whose base is itself" + (" in the end" if len(seen) > 1 else ""),
                "Write where its base lies as base_model_name_or_path into adapter_config.json.",
            )
        seen.append(base.resolve())
        name = str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
        places = [place for place in (Path(name), base / name, base.parent / name) if name and place.is_dir()]
        if not places:
            return  # met where it is loaded
        base = places[0]


def _load_base(
    auto_class: Any,
    location: str,
    provided: dict[str, Tensor],
    *,
    what: str,
    dtype: torch.dtype,
    trust: bool,
    **options: Any,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model of ``location``; weights that the adapter's ``provided`` hold whole may be missing."""
    config = AutoConfig.from_pretrained(location, trust_remote_code=trust)
    _refuse_other_kind(auto_class, config, location, what)
    # Weights of another shape are refused below, by name; transformers' own error has none.
    reports = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = auto_class.from_pretrained(location, dtype=dtype, trust_remote_code=trust, **reports, **options)
    missing = [name for name in found["missing_keys"] if not any(key.endswith(f".{name}") for key in provided)]
    mismatched = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in found["mismatched_keys"]]
    if missing or mismatched:
        raise BadResource(
            f"{what}: {location} is not whole as a {type(model).__name__}: "
            f"{_some('missing', missing)}{'; ' * bool(missing and mismatched)}{_some('of another shape', mismatched)}",
            "Name a folder that holds these weights: they would be random numbers, other ones at every load.",
        )
    _tell_untied(model)
    unused = sorted(found["unexpected_keys"])
    _refuse_other_head(auto_class, model, unused, location, what)
    told = [f"{what}: {_some('weights without a place in the model', unused)}"] if unused else []
    own = (getattr(config, "auto_map", None) or {}).get(auto_class.__name__)
    if own and not trust:
        told.append(f"{what}: its own code ({own}) is not run, but transformers' {type(model).__name__}")
    return model.eval(), tuple(told)


def _refuse_other_head(auto_class: Any, model: PreTrainedModel, unused: list[str], location: str, what: str) -> None:
    """Refuse a language model whose file holds another head and none for tokens: it was saved as something else.

    A value head, as TRL saves one beside a language model, is none of these.
    """
    if auto_class is not AutoModelForCausalLM:
        return
    other = re.compile(r"(score|classifier|\w*classification_head|qa_outputs)(\.\w+)*")
    heads = [key for key in unused if other.fullmatch(key)]
    if heads:
        raise BadResource(
            f"{what}: {location} was saved as another kind of model than a language model: it holds the head "
            f"{', '.join(heads[:2])}",
            "Name the language model that it was made from.",
        )


def _refuse_other_kind(auto_class: Any, config: Any, location: str, what: str) -> None:
    """A language model made from a classifier's file has a head that nobody trained, or none."""
    if auto_class is not AutoModelForCausalLM:
        return
    mappings = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    )
    classifiers = {name for mapping in mappings for name in mapping.values()}
    saved = set(getattr(config, "architectures", None) or ())
    if saved & classifiers:
        raise BadResource(
            f"{what}: {location} was saved as {', '.join(sorted(saved))}, which is no language model",
            "Name the language model that it was made from.",
        )


def _tell_untied(model: PreTrainedModel) -> None:
    """Let the configuration say what is: where the file's head differs from its embedding, the two are not tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embedding is not None and getattr(head, "weight", None) is not embedding.weight:
        config = model.config.get_text_config()
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _labels(stored: dict[str, Tensor]) -> int | None:
    """Return how many labels the trained head of a classifier's adapter has."""
    # Of a head of several layers the last has fewest rows.
    rows = [w.shape[0] for name, w in stored.items() if _HEAD.search(name) and w.dim() == 2]
    return int(min(rows)) if rows else None


_HEAD = re.compile(r"\.(score|summary|classifier|classification_head|logits_proj)(\.(?!lora_)\w+)*\.weight$")


def _resize(base: PreTrainedModel, stored: dict[str, Tensor]) -> None:
    """Give the base as many tokens as the adapter was trained with, where it holds the embedding."""

    def _weights_of(name: str) -> tuple[str, ...]:
        return tuple(f".{name}.{part}weight" for part in ("", "base_layer.", "modules_to_save."))

    embedding = base.get_input_embeddings()
    name = next(path for path, module in base.named_modules() if module is embedding)
    rows = next((w.shape[0] for key, w in stored.items() if key.endswith(_weights_of(name))), None)
    if rows is not None and rows != embedding.weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)


def _some(what: str, names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return f"{what}: {', '.join(listed[:4])}{more}" if listed else ""


def _random(
    source: catalog.Entry, dtype: torch.dtype, seed: int, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the named architecture at full size with random weights and the embedded tokenizer.

    The embedded tokenizer's ids are a part of any larger vocabulary, so nothing is downloaded.
    """
    config = dict(source.architecture)
    if not config:
        raise UsageError(
            f"--random-weights needs the dimensions of {source.name}, and the catalogue has none",
            "Use a model that `safebench models` lists with its size.",
        )
    tokenizer = AutoTokenizer.from_pretrained(str(catalog.WORLD / "policy"))
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with noise.initial_weights(seed):
            base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(config | ids)))
    finally:
        torch.set_default_dtype(before)
    return base.to(device), with_pad(tokenizer)


def with_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer without pad token its end token for padding; masks come from lengths, not from ids."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadResource("the tokenizer has neither pad nor end token", "Set pad_token in tokenizer_config.json.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def padding_within(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose pad token the model can read; the given one where it is so, else a copy.

    Masks come from lengths, so any id may pad. ``rows``: of the model's embedding, which a token added to the
    tokenizer alone lies beyond.
    """
    pad = tokenizer.pad_token_id
    if pad is not None and pad < rows:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = None
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
        changed.pad_token = tokenizer.convert_ids_to_tokens(0)
    return with_pad(changed)
