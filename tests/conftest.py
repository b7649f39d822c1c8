"""What every test runs under: no network, no accounts, no caches of this user, one thread.

The environment is set while this file is imported, which is before any test module imports a library that reads it.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

CACHES = tempfile.mkdtemp(prefix="safebench-tests-")

# Nothing listens on the discard port: a child process that tries to reach the network fails at once.
NOWHERE = "http://127.0.0.1:9"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": f"{CACHES}/huggingface",
    "XDG_CACHE_HOME": f"{CACHES}/xdg",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CACHE_DIR": f"{CACHES}/wandb-cache",
    "WANDB_CONFIG_DIR": f"{CACHES}/wandb-config",
    "WANDB_DATA_DIR": f"{CACHES}/wandb-data",
    "TRACKIO_DIR": f"{CACHES}/trackio",
    "DO_NOT_TRACK": "1",
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "no_proxy": "localhost,127.0.0.1,::1",
    "NO_PROXY": "localhost,127.0.0.1,::1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "COLUMNS": "120",
}

for name in [name for name in os.environ if name.startswith("SAFEBENCH_")] + [
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "HF_TOKEN",
    "FORCE_COLOR",
]:
    os.environ.pop(name, None)
os.environ.update(ENVIRONMENT)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that are not about them: what has no device of its own then means the CPU everywhere.

    ``-m gpu`` shows them. torch reads the variable when it first looks for a device, which no import does.
    """
    if "gpu" not in str(config.getoption("markexpr")).replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class NetworkRefused(RuntimeError):
    """A test tried to leave this machine. Not an OSError, so that no retry or fallback hides it."""


def stays_here(host: object) -> bool:
    """Tell whether ``host``, a name or an address, is this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii")
    if host is None or host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_beyond(method: Callable[..., Any], address_at: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not stays_here(address_at(*arguments)[0]):
            raise NetworkRefused(f"a test reached for {address_at(*arguments)}")
        return method(self, *arguments)

    return guarded


def _getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    if not stays_here(host):
        raise NetworkRefused(f"a test looked up {host!r}")
    return GETADDRINFO(host, *arguments, **options)


GETADDRINFO = socket.getaddrinfo


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Any:
    """Refuse every connection that would leave this machine, for the whole session."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _refuse_beyond(getattr(socket.socket, name), lambda address: address))
    patch.setattr(socket.socket, "sendto", _refuse_beyond(socket.socket.sendto, lambda *arguments: arguments[-1]))
    patch.setattr(socket, "getaddrinfo", _getaddrinfo)
    yield
    patch.undo()


def pytest_unconfigure() -> None:
    """Remove the caches that the tests filled."""
    shutil.rmtree(CACHES, ignore_errors=True)
