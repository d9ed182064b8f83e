# SPDX-License-Identifier: Apache-2.0
"""Files that are hostile, damaged or of another make: each an error that says why, and nothing of them runs."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision import create_model, load_official
from moe_vision.models import save_checkpoint
from moe_vision.models.official.archive import TorchArchive
from moe_vision.models.official.unpickler import StandIn, Unpickler
from tests.models.official_states import Call, fixture_state, save_pickled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostile.pt"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is read as a network, though it is none of ours."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    state = {
        name: value for name, value in fixture_state("det-n").items() if name.startswith(("model.0.", "model.3.n"))
    }
    save_pickled(state, path, {"": {"names": {0: "cell"}}})
    with TorchArchive(path) as archive:
        assert isinstance(archive.root["ema"], StandIn)
    return path


def test_no_command_runs(path: Path, tmp_path: Path) -> None:
    state = fixture_state("det-n")
    names = "posix.system|nt.system|builtins.eval|torch.serialization.load"
    for call in (
        Call(os.system, f"touch {tmp_path}/sprung"),
        Call(eval, f"open('{tmp_path}/sprung', 'w')"),
        Call(torch.load, str(path)),
    ):
        for content in ({"ema": call}, {**state, "model.0.conv.weight": call}, {"model": state, "optimizer": call}):
            torch.save(content, path)
            with pytest.raises(ValueError, match=rf"hostile.pt can't be converted: it refers to ({names}), which"):
                load_official(path)
    assert not (tmp_path / "sprung").exists()


def test_foreign_files(path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"tensors must be named .*\{layer\}.\{name\}, got conv1.weight"):
        load_official(path)
    for content in ({}, {"model": None}, [1, 2], {"epoch": 3}, {"model": {"model": {}}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="must hold a network or a state_dict, alone or under one of the keys ema"):
            load_official(path)


def test_files_that_are_not_there_or_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pt does not exist"):
        load_official(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="path must be a file, got"):
        load_official(tmp_path)
    ours = tmp_path / "ours.safetensors"
    save_checkpoint(create_model("yolo_master_n", num_classes=1), ours)
    with pytest.raises(ValueError, match="is a checkpoint of moe_vision, which load_checkpoint reads"):
        load_official(ours)
    ours.write_bytes(ours.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        load_official(ours)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_flipped_bits_never_break_the_reader(small: Path, data: st.DataObject) -> None:
    broken, path = bytearray(small.read_bytes()), small.with_name("broken.pt")
    for place in data.draw(st.lists(st.integers(0, len(broken) * 8 - 1), min_size=1, max_size=3)):
        broken[place // 8] ^= 1 << place % 8
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"broken.pt can't be converted: "):
        load_official(path)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_flipped_bits_of_the_pickle_never_break_the_reader(small: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(small) as archive:
        pickled = bytearray(archive.read("small/data.pkl"))
        sizes = {Path(entry.filename).name: entry.file_size for entry in archive.infolist()}
    place = data.draw(st.integers(0, len(pickled) * 8 - 1))
    pickled[place // 8] ^= 1 << place % 8
    with suppress(ValueError):
        Unpickler(bytes(pickled), sizes).load()


def test_truncated_files(small: Path) -> None:
    content, path = small.read_bytes(), small.with_name("truncated.pt")
    for part in range(20):
        path.write_bytes(content[: len(content) * part // 20])
        with pytest.raises(ValueError, match=r"truncated.pt can't be converted: it is (empty|truncated)"):
            load_official(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no weights"), "it is no file of torch.save"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), r"torch.save\(torch.load\(path\)"),
        (lambda path: _zip(path, {"a/data.pkl": b"]."}, zipfile.ZIP_DEFLATED), "compressed zip file"),
        (lambda path: _zip(path, {"a/other.pkl": b"]."}), "must hold one data.pkl"),
        (lambda path: _zip(path, {"a/data.pkl": b"].", "b/data.pkl": b"]."}), "must hold one data.pkl"),
        (lambda path: _zip(path, {"a/data.pkl": b"].", "a/byteorder": b"big"}), "byte order must be little"),
        (lambda path: _zip(path, {"a/data.pkl": b"]" * 2**22 + b"."}), "its pickle must have at most 4194304 bytes"),
        (lambda path: _zip(path, {"a/data.pkl": b"]"}), "its pickle|exhausted"),
    ],
)  # fmt: skip
def test_files_of_another_make(path: Path, write: Callable[[Path], None], message: str) -> None:
    write(path)
    with pytest.raises(ValueError, match=f"hostile.pt can't be converted: .*({message})"):
        load_official(path)


def test_entries_that_lie_over_each_other(path: Path) -> None:
    _zip(path, {"a/data.pkl": b"].", "a/data/0": bytes(10_000)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")  # the list of entries names each one and where it lies
    entries, end = content[start : content.index(b"PK\x05\x06")], content[content.index(b"PK\x05\x06") :]
    count, size = struct.pack("<HH", 200, 200), struct.pack("<I", len(entries) * 100)
    path.write_bytes(content[:start] + entries * 100 + end[:8] + count + size + end[16:])
    with pytest.raises(ValueError, match="its entries claim more bytes than it has"):
        load_official(path)


def _zip(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def test_a_bare_pickle_is_refused_by_the_name_that_it_refers_to(tmp_path: Path) -> None:
    marker, bare = tmp_path / "marker", tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps({"model": Call(os.system, f"touch {marker}")}))
    with pytest.raises(ValueError, match=r"it refers to (posix|nt).system, which no file of weights needs"):
        load_official(bare)
    assert not marker.exists()
