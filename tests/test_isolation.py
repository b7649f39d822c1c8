"""The tests' own surroundings: no way out of this machine, no account, no cache of this user."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

# 192.0.2.0/24 and 2001:db8::/32 are set aside for documentation: nobody answers there.


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("2001:db8::1", 80, 0, 0))],
)
@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_connections_beyond_this_machine_are_refused(family: int, address: tuple, method: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as out, pytest.raises(RuntimeError, match="reached for"):
        getattr(out, method)(address)


def test_datagrams_beyond_this_machine_are_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        with pytest.raises(RuntimeError, match="reached for"):
            out.sendto(b"?", ("192.0.2.1", 53))
        with pytest.raises(RuntimeError, match="reached for"):
            out.sendto(b"?", 0, ("192.0.2.1", 53))


def test_names_of_other_machines_are_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"looked up 'example\.invalid'"):
        socket.create_connection(("example.invalid", 80))


def test_the_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(1) == b"x"


def test_libraries_are_offline_and_know_no_account() -> None:
    import huggingface_hub.constants as hub

    assert hub.HF_HUB_OFFLINE
    assert hub.HF_HUB_DISABLE_TELEMETRY
    assert Path(hub.HF_HOME).is_relative_to(Path(os.environ["WANDB_CACHE_DIR"]).parent)
    assert os.environ["WANDB_MODE"] == "offline"
    assert not {"HF_TOKEN", "WANDB_API_KEY"} & set(os.environ)
