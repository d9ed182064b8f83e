# SPDX-License-Identifier: Apache-2.0
"""Hostile and damaged files: nothing runs, nothing fills the memory, and the error says why."""

import builtins
import functools
import operator
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.models.official.archive import TorchArchive
from moe_vision.models.official.unpickler import StandIn, Storage, StoredTensor, Unpickler
from moe_vision.models.official.weights import _from_archive
from tests.models.official_states import Call

PROTO = b"\x80\x02"
NUMBERS = st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.booleans() | st.none()
PLAIN = st.recursive(
    NUMBERS | st.text() | st.binary().filter(bool),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=20,
)


def read(data: bytes, **storage_bytes: int) -> object:
    return Unpickler(data, storage_bytes).load()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(kind: str = "FloatStorage", key: str = "0", numel: bytes = b"K\x04") -> bytes:
    """Pickle a reference to a storage, of 4 values."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + numel + b"tQ"


def tensor(offset: bytes, shape: bytes, stride: bytes, **parts: object) -> bytes:
    """Pickle a tensor; the parts are pickles too."""
    arguments = storage(**parts) + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)R"
    return PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


# Pickles that are read.


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
@settings(deadline=None, max_examples=200)
def test_plain_data_is_read_as_pickle_does(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    if protocol == 2 and "encode" in data.decode("latin1"):
        return  # bytes are a call there, see below
    assert read(data) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_stands_beside_weights_is_read_without_being_made(protocol: int) -> None:
    things = {
        "set": {3}, "frozen": frozenset({4}), "ordered": OrderedDict(a=1), "size": torch.Size([1, 2]),
        "path": Path("a"), "fitness": torch.zeros(1).numpy()[0], "device": torch.device("cpu"), "bytes": b"\xff",
    }  # fmt: skip
    found = read(pickle.dumps(things, protocol))
    assert (found["set"], found["frozen"], found["ordered"], found["size"]) == ([3], [4], {"a": 1}, (1, 2))
    assert {type(found[name]) for name in ("path", "fitness", "device")} == {StandIn}


def test_tensors_are_described() -> None:
    found = read(tensor(b"K\x01", b"K\x03\x85", b"K\x01\x85"), **{"0": 16})
    assert found == StoredTensor(Storage("0", torch.float32, 4), 1, (3,), (1,))


@pytest.mark.parametrize("package", ["ultralytics.nn.tasks", "yolo_fork.nn.modules.moe", "torch.nn.modules.conv"])
def test_layers_become_stand_ins_that_only_hold(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Layer:
        def __init__(self) -> None:
            ran.append("__init__")

        def __setstate__(self, state: dict[str, object]) -> None:
            ran.append("__setstate__")

        def __getstate__(self) -> dict[str, object]:
            return {"__class__": "int", "__reduce__": 1, "__setstate__": 2, "__dict__": {}, "width": 8}

    module = ModuleType(package)
    module.Layer, Layer.__module__, Layer.__qualname__ = Layer, package, "Layer"
    for number in range(1, package.count(".") + 1):
        monkeypatch.setitem(sys.modules, package.rsplit(".", number)[0], ModuleType("parent"))
    monkeypatch.setitem(sys.modules, package, module)
    data = pickle.dumps(Layer())
    ran.clear()
    found = read(data)
    assert (type(found), found.class_name, found.state["width"]) == (StandIn, f"{package}.Layer", 8)
    assert found.state["__class__"] == "int"
    assert not ran


# Pickles that are refused.


@pytest.mark.parametrize(
    "function",
    [
        os.system, os.popen, subprocess.Popen, subprocess.check_output, eval, exec, getattr, setattr, compile, open,
        builtins.__import__, functools.partial, operator.attrgetter, torch.load, torch.hub.load,
        torch.jit.load, torch.compile, torch.nn.functional.relu, zipfile.ZipFile, time.sleep, int, bytearray,
    ],
    ids=lambda function: f"{function.__module__}.{function.__qualname__}",
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_names_are_refused_and_named(function: Callable[..., object], protocol: int) -> None:
    data = pickle.dumps({"ema": Call(function, 0)}, protocol)
    with pytest.raises(
        ValueError, match=rf"it refers to {function.__module__}\.{function.__qualname__}, which no file"
    ):
        read(data)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn.modules.conv", "Conv2d.forward"),
        ("torch.nn.modules.module", "torch.hub.load"),
        ("torch.nn.modules_evil", "Conv2d"),
        ("torch.nn", "modules.conv.Conv2d"),
        ("os", "path.join"),
        ("subprocess.nn", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("collections", "OrderedDict.clear"),
        ("", "eval"),
    ],
)
def test_names_are_not_taken_by_their_looks(module: str, name: str) -> None:
    for data in (
        PROTO + f"c{module}\n{name}\n)R.".encode(),
        b"\x80\x04" + text(module) + text(name) + b"\x93)R.",
    ):
        with pytest.raises(ValueError, match="it refers to"):
            read(data)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cultralytics.nn\nX\n)R}X\x01\x00\x00\x00aK\x01sbK\x01\x85R.",  # calls an object
        b"X\x02\x00\x00\x00osK\x01\x85R.",  # calls a text
        b"]K\x01K\x02s.",  # a list has no such item
        b"}(K\x01u.",  # a key without a value
        b"}]K\x01s.",  # a key that can't be one
        b"})K\x01s.",
        b"}\x8a\x08" + b"\xff" * 7 + b"\x7fK\x01s.",  # a key that hashes as badly as it likes
        b"K\x01K\x02a.",
        b"0.", b"t.", b"R.", b"b.", b"h\x05.", b".", b"", b"(K\x01", b"Q.", b"K\x01Q.",
        b"ccollections\nOrderedDict\n]K\x01a\x85R.",
        b"ccopyreg\n_reconstructor\nX\x01\x00\x00\x00a\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01))tR.",
    ],
)  # fmt: skip
def test_instructions_that_do_not_fit_together(opcodes: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is truncated or damaged|its keys|pickle exhausted"):
        read(PROTO + opcodes)


@pytest.mark.parametrize("opcodes", [b"\x82\x01.", b"(ios\nsystem\n.", b"Pstorage\n.", b"I01\n.", b"(cos\nsystem\no."])
def test_other_instructions_are_refused(opcodes: bytes) -> None:
    with pytest.raises(ValueError, match=r"(has the instruction (EXT1|INST|PERSID|INT))|(refers to os.system)"):
        read(PROTO + opcodes)


# Claims that would fill the memory or the stack.


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"numel": b"\x8a\x06" + (10**12).to_bytes(6, "little")}, "declares 1000000000000 values of torch.float32"),
        ({"key": "1"}, "in storage '1', which has 0 bytes"),
        ({"kind": "LongStorage"}, "declares 4 values of torch.int64 in storage '0', which has 16 bytes"),
        ({"numel": b"J\xff\xff\xff\xff"}, "declares -1 values"),
        ({"shape": b"J\x00\x00\x00\x40\x85", "stride": b"K\x00\x85"}, r"declares a tensor of shape \(1073741824,\)"),
        ({"shape": b"K\x04\x85", "stride": b"K\x02\x85"}, r"stride \(2,\) .* in a storage of 4 values"),
        ({"offset": b"K\x01"}, "offset 1 in a storage of 4 values"),
        ({"offset": b"J\xff\xff\xff\xff"}, "offset -1"),
        ({"shape": b"J\xff\xff\xff\xff\x85"}, r"shape \(-1,\)"),
        ({"shape": b"(" + b"K\x01" * 9 + b"t", "stride": b"(" + b"K\x01" * 9 + b"t"}, "not a tensor"),
        ({"shape": b"K\x04\x85", "stride": b")"}, "not a tensor"),
        ({"shape": text("4")}, "not a tensor"),
        ({"offset": b"\x88"}, "not a tensor"),
    ],
)
def test_tensors_that_the_file_does_not_hold(parts: dict[str, bytes], message: str) -> None:
    sound = {"offset": b"K\x00", "shape": b"K\x04\x85", "stride": b"K\x01\x85"}
    assert isinstance(read(tensor(**sound), **{"0": 16}), StoredTensor)
    with pytest.raises(ValueError, match=message):
        read(tensor(**{**sound, **parts}), **{"0": 16})


@pytest.mark.parametrize(
    "opcodes",
    [
        b"K\x01r\xff\xff\xff\xff.",  # a slot for 2^32 objects
        b"\x95" + b"\xff" * 7 + b"\x0fK\x01.",  # a frame of 2^60 bytes
        b"\x96" + b"\xff" * 7 + b"\x0f.",  # a bytearray of as many
        b"\x8e" + b"\xff" * 7 + b"\x0f.",  # bytes
        b"X\xff\xff\xff\xffa.",  # a text of 4 GB
        b"\x8b\xff\xff\xff\x7f.",  # a number of 2 GB
        b"](" + b"K\x01" * 50_000 + b"eq\x00" + b"cbuiltins\nset\nh\x00\x85R" * 5_000 + b".",  # 5000 sets of 50000
    ],
    ids=lambda opcodes: f"{opcodes[:1]}",
)
def test_claims_of_memory_cost_none(opcodes: bytes) -> None:
    tracemalloc.start()
    with suppress(ValueError):
        read(b"\x80\x04" + opcodes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_nesting_without_end() -> None:
    depth = 200_000
    assert isinstance(read(PROTO + b")" + b"\x85" * depth + b"."), tuple)
    with pytest.raises(ValueError, match="keys must be text or small numbers, got tuple"):
        read(PROTO + b"})" + b"\x85" * depth + b"K\x01s.")  # hashing it would break the interpreter


def test_networks_nested_without_end() -> None:
    archive = TorchArchive.__new__(TorchArchive)
    loop = StandIn("ultralytics.nn.Loop")
    loop.state = {"_modules": {"0": loop}}
    laughs = StandIn("ultralytics.nn.Laughs", {"_modules": {}})
    for _ in range(60):
        laughs = StandIn("ultralytics.nn.Laughs", {"_modules": {"0": laughs, "1": laughs}})
    for root in (loop, {"model": loop}, laughs):
        archive.root = root
        with pytest.raises(ValueError, match="its modules are nested without end"):
            _from_archive(archive)
    archive.root = {}
    archive.root["ema"] = archive.root
    with pytest.raises(ValueError, match="must hold a network"):
        _from_archive(archive)
