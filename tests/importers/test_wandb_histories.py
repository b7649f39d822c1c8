"""The reader of W&B run files against W&B itself: what it writes, we read, without its library."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from safebench.errors import BadResource, UsageError
from safebench.importers import history
from safebench.importers.history import read

CONFIG = {"vf_coef": 0.1, "algorithm": {"adv_estimator": "gae"}, "text": "é\n", "none": None, "list": [1, "two"]}
MANY = 300
"""Rows enough for several blocks of 32 KiB, so that records are broken at their edges."""

SCRIPT = """
import json, sys
import wandb
folder, count, config = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True)
run = wandb.init(project="p", mode="offline", dir=folder, config=config, settings=settings)
run.config.update({"later": 7})
for step in range(count):
    row = {f"train/key-{i}": step + i / 7 for i in range(20)} | {"actor": {"pg_loss": -step}}
    if step == 3:
        row |= {"nan": float("nan"), "inf": float("-inf"), "text": "ok", "flag": True, "long": "x" * 40_000}
    run.log(row, step=step + 1)
run.finish()
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let W&B write an offline run, in a process of its own: the library leaves threads behind."""
    folder = tmp_path_factory.mktemp("wandb")
    command = [sys.executable, "-c", SCRIPT, str(folder), str(MANY), json.dumps(CONFIG)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


def test_all_that_was_logged_is_read_back(one: Path) -> None:
    before = set(sys.modules)
    (file,) = one.rglob("*.wandb")
    found = history.read_wandb_file(file)
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "wandb"}
    assert not found.truncated
    assert len(found.rows) == MANY
    assert file.stat().st_size > 4 * 32768
    for step, row in enumerate(found.rows):
        expected = {f"train/key-{i}": step + i / 7 for i in range(20)} | {"actor/pg_loss": -step, "_step": step + 1}
        assert {key: row[key] for key in expected} == expected
    odd = found.rows[3]
    assert (odd["text"], odd["flag"], odd["long"]) == ("ok", True, "x" * 40_000)
    assert math.isnan(float(odd["nan"])) and float(odd["inf"]) == -math.inf
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    assert found.config["later"] == 7


@pytest.mark.parametrize("place", [".", "wandb", "wandb/offline-run", "wandb/offline-run/file"])
def test_the_file_its_folder_and_those_above_it_are_the_same_history(one: Path, place: str) -> None:
    (file,) = one.rglob("*.wandb")
    path = {".": one, "wandb": one / "wandb", "wandb/offline-run": file.parent}.get(place, file)
    found = read(path)
    assert (found.path, len(found.rows)) == (file, MANY)
    assert found.config["vf_coef"] == 0.1


def test_several_runs_in_a_folder_are_to_be_chosen_from(one: Path, tmp_path: Path) -> None:
    (file,) = one.rglob("*.wandb")
    for name in ("left", "right"):
        shutil.copytree(file.parent, tmp_path / "wandb" / f"offline-run-{name}")
    with pytest.raises(UsageError, match=r"holds 2 W&B runs: wandb/offline-run-left, wandb/offline-run-right"):
        read(tmp_path)


def test_a_file_whose_writer_was_killed_gives_what_is_whole(one: Path, tmp_path: Path) -> None:
    (file,) = one.rglob("*.wandb")
    data = file.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 40_000):
        path = tmp_path / f"{cut}.wandb"
        path.write_bytes(data[:cut])
        found = history.read_wandb_file(path)
        assert found.truncated
        assert found.rows == history.read_wandb_file(file).rows[: len(found.rows)]
    assert "middle of a record" in read(path).notices[0]
    reserved = tmp_path / "reserved.wandb"
    reserved.write_bytes(data + bytes(100_000))
    assert len(history.read_wandb_file(reserved).rows) == MANY and history.read_wandb_file(reserved).truncated


def test_damage_and_strangers_are_refused(one: Path, tmp_path: Path) -> None:
    (file,) = one.rglob("*.wandb")
    data = bytearray(file.read_bytes())
    data[50_000] ^= 1
    path = tmp_path / "damaged.wandb"
    path.write_bytes(data)
    with pytest.raises(BadResource, match=r"damaged at byte \d+: wrong checksum"):
        history.read_wandb_file(path)
    path.write_bytes(b"something else")
    with pytest.raises(BadResource, match="no W&B run file"):
        history.read_wandb_file(path)


def test_the_field_numbers_are_those_of_the_installed_library() -> None:
    internal: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    declared = {
        "Record": history.RECORD,
        "HistoryRecord": history.HISTORY,
        "HistoryItem": {**history.ITEM, **history.TYPED},
        "HistoryStep": history.STEP,
        "RunRecord": history.RUN,
        "ConfigRecord": history.CONFIG,
        "ConfigItem": history.ITEM,
    }
    for name, numbers in declared.items():
        fields = getattr(internal, name).DESCRIPTOR.fields_by_name
        assert {field: fields[field].number for field in numbers} == numbers, name


def test_values_of_every_type_are_read_as_the_library_writes_them() -> None:
    internal: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    values = {"integer": -3, "number": -0.1, "text": "NaN", "json": '{"a": [1]}', "boolean": False}
    record = internal.HistoryRecord()
    for kind, value in values.items():
        record.item.add(key=kind, **{kind: value})
    record.item.add(key="large", integer=2**62)
    record.item.add(key="nothing").none = 0
    record.item.add(nested_key=["a", "b"], value_json="-1.5e-7")
    read_back = history._items(record.SerializeToString(), history.HISTORY["item"])
    expected = {**values, "json": {"a": [1]}, "large": 2**62, "nothing": None, "a/b": -1.5e-7}
    assert read_back == expected


@pytest.mark.parametrize("left", range(9))
def test_records_break_at_the_edge_of_a_block_wherever_that_falls(tmp_path: Path, left: int) -> None:
    """A header does not fit into the last six bytes of a block: they stay zero, and the next one begins a block."""
    first = b"a" * (BLOCK - HEAD - HEAD - left)
    second = b"b" * 2 * BLOCK
    path = tmp_path / "edge.wandb"
    path.write_bytes(framed(first, second, b"c"))
    assert history.frames(path) == ([first, second, b"c"], False)


BLOCK, HEAD = 32768, 7


def framed(*records: bytes) -> bytes:
    """Write records as LevelDB's log format has it, a header of W&B's before them."""
    data = b":W&B" + bytes(3)
    for record in records:
        begun = False
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < HEAD:
                data += bytes(room)
                continue
            part, record = record[: room - HEAD], record[room - HEAD :]
            kind = (3 if record else 4) if begun else (2 if record else 1)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            begun = True
            if not record:
                break
    return data
