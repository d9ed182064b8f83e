# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact, whole or not at all, and never code."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moe_vision import create_model
from moe_vision.models import YOLOMaster, load_checkpoint, save_checkpoint


@pytest.fixture
def model() -> YOLOMaster:
    model = create_model("yolo_master_n", num_classes=2, class_names=["cat", "dög"], image_size=96, top_k=3, dfl=True)
    model.train()(torch.rand(2, 3, 64, 64))  # moves the statistics of the norms
    return model


@pytest.fixture
def path(model: YOLOMaster, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "last.safetensors")
    return tmp_path / "last.safetensors"


def test_round_trip_is_exact(model: YOLOMaster, path: Path) -> None:
    loaded = load_checkpoint(path)
    assert (loaded.config, loaded.class_names, loaded.image_size) == (model.config, ("cat", "dög"), 96)
    assert not loaded.training
    expected, state = model.state_dict(), loaded.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert list(path.parent.iterdir()) == [path]


def test_channels_last_weights_are_stored(model: YOLOMaster, path: Path) -> None:
    save_checkpoint(model.to(memory_format=torch.channels_last), path)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(load_checkpoint(path)(images).boxes, model.eval()(images).boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 20_000, 2_000_000, -1])
def test_truncated_file(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"last.safetensors is truncated or not a safetensors file"):
        load_checkpoint(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {path} does not exist"):
            load_checkpoint(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="must have format 'moe_vision-1' in its header, got None"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, header: weights.pop("head.box_towers.0.2.bias"), "Missing key.*head.box_towers.0.2.bias"),
        (lambda weights, header: weights.update(stranger=torch.ones(1)), "Unexpected key.*stranger"),
        (lambda weights, header: header.pop("config"), "config"),
        (lambda weights, header: header.update(config="{"), "Expecting property name"),
        (lambda weights, header: header.update(config='{"top_q": 2}'), "unknown fields"),
        (lambda weights, header: header.update(config='{"num_classes": 2.5}'), "num_classes must be a value like 80"),
        (lambda weights, header: header.update(config='{"num_classes": 4}'), "class_names must name num_classes=4"),
        (lambda weights, header: header.update(config='{"num_classes": 2, "num_experts": 2, "kernel_sizes": [3, 5]}'),
         "Unexpected key"),
        (lambda weights, header: header.update(class_names="5"), "class_names must be a list of texts, got a int"),
        (lambda weights, header: header.update(image_size="100"), "image_size must be a multiple of 32"),
        (lambda weights, header: header.update(image_size='"x"'), "not supported"),
    ],
)  # fmt: skip
def test_weights_and_header_must_agree(path: Path, change: Callable[[dict, dict], object], message: str) -> None:
    weights = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    change(weights, header)
    save_file(weights, path, metadata=header)
    with pytest.raises(ValueError, match=rf"(?s)last.safetensors does not describe its weights: .*{message}"):
        load_checkpoint(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(path)
    torch.save({"model": Trap()}, path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_path_must_say_what_it_is(model: YOLOMaster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got last.pt"):
        save_checkpoint(model, tmp_path / "last.pt")


def test_a_failed_write_leaves_the_previous_file(path: Path) -> None:
    before = path.read_bytes()
    path.with_suffix(".partial").mkdir()  # no file can be written under this name
    with pytest.raises(OSError, match=r"last.safetensors can't be written"):
        save_checkpoint(create_model("yolo_master_n", num_classes=5), path)
    assert path.read_bytes() == before


def test_a_folder_that_does_not_exist(model: YOLOMaster, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none/last.safetensors can't be written"):
        save_checkpoint(model, tmp_path / "none" / "last.safetensors")


def test_what_a_killed_run_left_is_written_over(model: YOLOMaster, path: Path) -> None:
    path.with_suffix(".partial").write_bytes(b"half a checkpoint")
    save_checkpoint(model, path)
    assert load_checkpoint(path).config == model.config
    assert not path.with_suffix(".partial").exists()


SAVE_FOREVER = """
import sys, torch
from moe_vision import create_model
from moe_vision.models import save_checkpoint
model = create_model("yolo_master_n", num_classes=2)
save_checkpoint(model, sys.argv[1])
print("saved", flush=True)
input()
while True:
    save_checkpoint(model, sys.argv[1])
"""


def being_written(path: Path, size: int) -> bool:
    """Tell whether a file has not got its size yet, or there is another, which is to take its place."""
    with suppress(FileNotFoundError):  # it took it meanwhile
        return any(file != path or file.stat().st_size < size for file in path.parent.iterdir())
    return False


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    for _ in range(3):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path)], bufsize=0, **pipes) as process:
            assert process.stdout.readline() == b"saved\n"
            size = path.stat().st_size
            process.stdin.write(b"\n")
            while not being_written(path, size):
                pass
            process.send_signal(signal.SIGKILL)
        assert load_checkpoint(path).config.num_classes == 2
