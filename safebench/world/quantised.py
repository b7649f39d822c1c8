"""Load a model from quantised weights (GGUF): the tokenizer by transformers, each tensor expanded into its place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from safebench import catalog
from safebench.errors import BadResource
from safebench.packaged import Packaged
from safebench.world.loading import loading

ROWS = 8192
"""Rows of a matrix that are expanded at once."""
SLOW = 20.0
"""Seconds of loading from which a notice tells them."""


def load(
    entry: catalog.Entry, *, what: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the model of a packaged entry in ``dtype``, in evaluation mode, its tokenizer, and what to tell of them.

    The licence is told first. Nothing stays on disk. Raises ``MissingResource`` where the package is not installed.
    """
    packaged, began = _packaged(entry), time.monotonic()
    with packaged.whole(what) as path, loading(what, packaged.distribution), _reading(path) as reader:
        tokenizer, architecture = _tokenizer(path), _text(reader, "general.architecture")
        reader.fields.clear()  # the vocabulary as a million small objects, which the tokenizer has by now
        model = _model(entry, reader, architecture, dtype, what)
    told = [
        f"{what}: its weights are under {packaged.terms}; whoever uses them agrees to these terms, "
        "and an adapter trained on them is a derivative under the same terms"
    ]
    if (taken := time.monotonic() - began) > SLOW:
        told.append(f"{what}: {taken:.0f} s to expand its weights; it is done at every start, nothing is kept on disk")
    return model, tokenizer, tuple(told)


def load_tokenizer(entry: catalog.Entry, *, what: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a packaged entry alone."""
    packaged = _packaged(entry)
    with packaged.whole(what) as path, loading(what, packaged.distribution), _reading(path):
        return _tokenizer(path)


def _packaged(entry: catalog.Entry) -> Packaged:
    assert entry.packaged is not None
    return entry.packaged


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Yield a reader of the file, which transformers takes too within this context: reading it takes seconds."""
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # gguf is Any here
        """Slices a plain array: slices of a memory map take three times as long and twice the memory."""

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


def _model(entry: catalog.Entry, reader: Any, architecture: str, dtype: torch.dtype, what: str) -> PreTrainedModel:
    """Return the catalogue's architecture with the file's tensors, one expanded at a time."""
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
