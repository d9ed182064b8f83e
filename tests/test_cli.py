# SPDX-License-Identifier: Apache-2.0
"""The command line, in processes of its own."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from moe_vision import create_model, load_official, predict
from moe_vision.cli import benchmark, build_parser, main
from moe_vision.cli.options import print_metrics
from moe_vision.diagnostics import count_flops, count_parameters, measure_flops
from moe_vision.models import YOLOMaster, load_checkpoint, save_checkpoint
from moe_vision.models.config import SCALES
from tests.data.conftest import VOCFolder
from tests.models.official_states import fixture_state
from tests.models.reference_detector import busy_detector, busy_segmenter

COMMANDS = ("demo", "data", "train", "val", "predict", "inspect", "prune", "convert", "export", "benchmark")


class Run(NamedTuple):
    """What a finished command left."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Run:
    command = [sys.executable, "-m", "moe_vision", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    return Run(done.returncode, done.stdout, done.stderr)


def complaint(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail in this process, and return its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("moe-vision: ")]
    return line


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A VOC folder with a cell in each of 12 images, 4 of them for validation, and four broken items."""
    folder = VOCFolder(tmp_path / "cells")
    names = [f"cell{index:02d}" for index in range(12)]
    for index, name in enumerate(names):
        folder.image(name)
        folder.xml(name, [("cell", (4 + index, 3, 32 + index, 27))])
    folder.xml(names[0], [("cell", (4, 3, 32, 27)), ("cell", (30, 10, 30, 40))])  # the second has no width
    folder.xml("gone", [("cell", (1, 1, 9, 9))])
    folder.image("torn")
    folder.raw_xml("torn", b"<annotation><object>")
    folder.image("noise").write_bytes(b"no image")
    folder.xml("noise", [("cell", (1, 1, 9, 9))])
    folder.split("train", [*names[:8], "gone", "torn", "noise"])
    folder.split("val", names[8:])
    return folder.root


@pytest.fixture
def busy(tmp_path: Path) -> tuple[Path, Path]:
    """Weights, and a VOC folder that holds what the detector of those weights finds in two images."""
    model, weights, folder = busy_detector(), tmp_path / "busy.safetensors", VOCFolder(tmp_path / "busy")
    save_checkpoint(model, weights)
    for seed, name in enumerate(("wide", "tall")):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 40, 3), dtype=np.uint8)
        pixels = pixels.swapaxes(0, 1) if name == "wide" else pixels
        Image.fromarray(pixels).save(folder.root / "JPEGImages" / f"{name}.png")
        (found,) = predict(model, np.ascontiguousarray(pixels), score=0.5, max_detections=20)
        labels = [model.class_names[label] for label in found["labels"].tolist()]
        folder.xml(name, list(zip(labels, found["boxes"].tolist(), strict=True)), filename=f"{name}.png")
    folder.split("val", ["wide", "tall"])
    return weights, folder.root


def test_help() -> None:
    done = run("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--" in capsys.readouterr().out


def test_every_argument_says_what_it_is_and_its_default() -> None:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert tuple(commands.choices) == COMMANDS
    for name, command in commands.choices.items():
        for action in command._actions[1:]:  # after --help
            assert action.help, (name, action.dest)
            said = action.help % {"default": action.default}
            if action.default is not None and action.default is not False:
                assert said.endswith(f"({action.default})"), (name, said)  # where the reference takes it from


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["val", "none.safetensors", "--data", "none"], "checkpoint none.safetensors does not exist"),
        (["predict", "none.safetensors", "a.jpg"], "checkpoint none.safetensors does not exist"),
        (["train", "--data", "none"], "path must be a folder or file, got 'none', which does not exist"),
        (["data", "none", "--task", "segment"], "path must be a folder or file, got 'none', which does not exist"),
        (["train", "--data", "none", "--epoch-count", "3"], "there is no option --epoch-count; did you mean --epochs?"),
        (["val", "w", "--data", "none", "--xyz"], "there is no option --xyz; see moe-vision val --help"),
        (["train", "--data", "none", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "--data", "none", "--image-size", "100"], "image_size must be a multiple of 32, got 100"),
        (["benchmark", "yolo_master_q"], "model must be a checkpoint or one of yolo_master_l, yolo_master_m, "),
        (["benchmark", "yolo_master_n", "--image-size", "100"], "image_size must be a multiple of 32, got 100"),
        (["benchmark", "yolo_master_n", "--image-size", "64", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["benchmark", "yolo_master_n", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["benchmark", "yolo_master_n", "--threads", "-1"], "threads must be at least 1, got -1"),
        (["train", "--data", "none", "--precision", "fp8"], "precision must be no, bf16 or fp16, got fp8"),
    ],
)
def test_errors_are_one_line(arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(arguments, capsys)
    assert line.startswith("moe-vision: error: ")
    assert message in line


def test_an_error_ends_a_process_without_a_traceback() -> None:
    done = run("val", "none.safetensors", "--data", "none")
    assert (done.code, done.out) == (2, "")
    assert done.err == "moe-vision: error: checkpoint none.safetensors does not exist\n"


def test_unknown_names_list_the_known_ones(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(["train", "--data", cells, "--model", "yolo_master_q"], capsys)
    assert f"name must be one of {', '.join(SCALES)}, got 'yolo_master_q'" in line
    line = complaint(["train", "--data", cells, "--variant", "papier"], capsys)
    assert "variant must be one of paper, esmoe, v0_1, got 'papier'" in line
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", str(cells), "--task", "juggle"])


def test_nothing_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, empty, text = tmp_path / "weights.safetensors", tmp_path / "empty", tmp_path / "text.jpg"
    save_checkpoint(create_model("yolo_master_n", num_classes=1, image_size=64), weights)
    empty.mkdir()
    text.write_text("no image")
    for images, count in (([empty], 0), ([text, tmp_path / "none.jpg"], 2)):
        line = complaint(["predict", weights, *images, "--out", tmp_path / "out"], capsys)
        assert line.endswith(f"images must hold at least one that can be read, got {count} that can't")
    assert complaint(["predict", weights, text, "--score", "2"], capsys)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    assert "is truncated" in complaint(["predict", cut, text], capsys)


@pytest.mark.slow
def test_train_reports_what_is_broken_and_goes_on(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = ["--epochs", "2", "--image-size", "64", "--batch-size", "4", "--num-workers", "0"]
    done = run("train", "--data", cells, "--out", out, *sizes)
    assert done.code == 0, done.err
    assert "train: 8 images, 8 boxes, 4 problems" in done.out
    assert "val:   4 images, 4 boxes, 0 problems" in done.out
    for file, reason in (
        ("Annotations/cell00.xml", "degenerate box"),
        ("JPEGImages/gone.jpg", "missing image"),
        ("Annotations/torn.xml", "broken xml"),
        ("JPEGImages/noise.jpg", "unreadable image"),
    ):
        lines = [line for line in done.err.splitlines() if line.startswith(f"WARNING {cells / file}: {reason}")]
        assert len(lines) == 1, done.err
        assert f"1 {reason}" in done.out
    assert "Traceback" not in done.err
    names = ["best.safetensors", "last.safetensors", "log.jsonl", "settings.json", "training.png"]
    assert {*names, "state-2"} <= {path.name for path in out.iterdir()}
    written = next(line for line in done.out.splitlines() if line.startswith(f"Written to {out}: "))
    assert all(name in written for name in names)
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "settings.json").read_text())["epochs"] == 2
    model = load_checkpoint(out / "last.safetensors")
    assert (model.class_names, model.image_size) == (("cell",), 64)

    done = run("val", out / "last.safetensors", "--data", cells)
    assert done.code == 0, done.err
    logged = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["metrics"]
    assert f"mAP 50               {logged['map50']:.4f}" in done.out


def test_ctrl_c_says_how_to_go_on(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def press(module: torch.nn.Module, inputs: object) -> None:
        if isinstance(module, YOLOMaster) and module.training:
            signal.raise_signal(signal.SIGINT)

    small = ["--image-size", "64", "--epochs", "1", "--num-workers", "0", "--out", str(tmp_path / "run")]
    with register_module_forward_pre_hook(press):
        assert main(["train", "--data", str(cells), *small]) == 130
    assert f"Interrupted; --resume goes on after the last whole epoch of {tmp_path / 'run'}" in capsys.readouterr().err


@pytest.mark.slow
def test_seed_seeds_the_weights_too(cells: Path, tmp_path: Path) -> None:
    sizes = ["--epochs", "1", "--image-size", "64", "--num-workers", "0", "--warmup-epochs", "0"]
    biases = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        assert main(["train", "--data", str(cells), "--out", str(tmp_path / name), "--seed", str(seed), *sizes]) == 0
        biases.append(load_checkpoint(tmp_path / name / "last.safetensors").backbone.stem.conv.weight)
    assert torch.equal(biases[0], biases[1])
    assert (biases[0] - biases[2]).abs().max() > 0.05  # more than one step of training moves


def test_tables_by_class(capsys: pytest.CaptureFixture[str]) -> None:
    by_class = {
        "map": {"a": 0.5, "b": -1.0},
        "map50": {"a": 0.75, "b": -1.0},
        "precision": {"a": 1.0, "b": -1.0},
        "recall": {"a": 0.7, "b": -1.0},
    }
    metrics = {"map": 0.5, "map50": 0.75, "mask_map": 0.25, "mask_map50": 0.5, "experts": {}}
    metrics |= {"class_images": {"a": 3, "b": 0}, "class_objects": {"a": 12, "b": 0}}
    metrics |= {f"{kind}class_{name}": values for name, values in by_class.items() for kind in ("", "mask_")}
    print_metrics(metrics)
    table = [
        "  class                   images    objects  mAP 50:95     mAP 50  precision     recall",
        "  a                            3         12     0.5000     0.7500     1.0000     0.7000",
        "  b                            0          0          -          -          -          -",
    ]
    boxes, masks = ["mAP 50:95            0.5000", "mAP 50               0.7500"], ["mask mAP 50:95       0.2500"]
    expected = [*boxes, *table, *masks, "mask mAP 50          0.5000", *table]
    assert capsys.readouterr().out.splitlines() == expected


def test_val_draws_and_writes(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out"
    model = create_model("yolo_master_n", num_classes=1, class_names=["cell"], image_size=64)
    save_checkpoint(model, weights)
    options = ["--out", str(out), "--json", str(out / "val.json")]
    assert main(["val", str(weights), "--data", str(cells), *options]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines() if "  cell " in line] == [
        ["cell", "4", "4"]
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png",
        "precision-recall.png",
        "predictions.jpg",
        "val.json",
    ]
    assert json.loads((out / "val.json").read_text())["class_objects"] == {"cell": 4}


def test_inspect_writes_a_page_and_a_json(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "model.safetensors", tmp_path / "routing"
    save_checkpoint(create_model("yolo_master_n", num_classes=1, class_names=["cell"], image_size=64), weights)
    assert main(["inspect", str(weights), "--data", str(cells), "--out", str(out)]) == 0
    assert "backbone.stage5.moe        2.00" in capsys.readouterr().out
    written = json.loads((out / "routing.json").read_text())
    assert written["layers"]["backbone.stage5.moe"]["by_class"]["cell"]["images"] == 4
    assert (out / "routing.html").read_text().count("<svg") == 13


@pytest.mark.slow
def test_prune_writes_a_smaller_checkpoint(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "model.safetensors", tmp_path / "model-pruned.safetensors"
    save_checkpoint(create_model("yolo_master_n", num_classes=1, class_names=["cell"], image_size=64), weights)
    command = ["prune", str(weights), "--data", str(cells), "--keep", "3", "--json", str(tmp_path / "report.json")]
    assert main(command) == 0
    assert f"Written to {out}" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["removed"]) == 4
    pruned = load_checkpoint(out)
    assert count_parameters(pruned).total == report["parameters"]["after"]["total"]
    assert main(["val", str(out), "--data", str(cells)]) == 0


@pytest.mark.slow
def test_val_gives_the_same_with_sparse_and_dense_experts(busy: tuple[Path, Path]) -> None:
    weights, data = busy
    tables = []
    for dispatch in ("auto", "dense"):
        done = run("val", weights, "--data", data, "--dispatch", dispatch)
        assert done.code == 0, done.err
        count, cost, time, *table = done.out.splitlines()
        assert count.startswith("2 images, ")
        assert cost.startswith("parameters ")
        assert time.endswith(" ms for an image of 64 x 64")
        tables.append(table)
    assert tables[0][0] == "mAP 50:95            1.0000"  # the objects are what this detector finds
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_predict_writes_pictures_and_skips_what_it_can_not_read(busy: tuple[Path, Path], tmp_path: Path) -> None:
    (weights, data), out = busy, tmp_path / "out"
    noise = tmp_path / "noise.jpg"
    noise.write_text("no image")
    chosen = [data / "JPEGImages" / "wide.png", noise, tmp_path / "none.jpg", data / "JPEGImages"]
    done = run("predict", weights, *chosen, "--out", out, "--score", "0.5", "--max-detections", "20")
    assert done.code == 0, done.err
    for name in ("noise.jpg", "none.jpg"):
        assert sum(name in line and line.endswith("; skipped") for line in done.err.splitlines()) == 1
    records = json.loads((out / "detections.json").read_text())
    # One by name, then those of the folder in order of their names: "good" is the fixture's own.
    assert [Path(record["image"]).name for record in records] == ["wide.png", "good.jpg", "tall.png", "wide.png"]
    pictures = [record["picture"] for record in records]
    assert pictures == ["0000-wide.jpg", "0001-good.jpg", "0002-tall.jpg", "0003-wide.jpg"]
    assert sorted(path.name for path in out.iterdir()) == [*pictures, "detections.json"]
    total = sum(len(record["detections"]) for record in records)
    assert f"{total} detections in 4 images, 2 skipped" in done.out
    for record in records:
        with Image.open(record["image"]) as image, Image.open(out / record["picture"]) as picture:
            width, height = picture.size
            assert image.size == picture.size
        assert 5 < len(record["detections"]) <= 20
        for found in record["detections"]:
            assert 0.5 <= found["score"] <= 1
            assert found["class"] in map(str, range(80))
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "released.pt", tmp_path / "converted.safetensors"
    torch.save(fixture_state("det-n"), source)
    assert main(["convert", str(source), str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "network   yolo_master_n, detect, variant esmoe"
    assert printed[-1] == f"Written to {out}"
    model, converted = load_official(source)[0], load_checkpoint(out)
    assert converted.config == model.config
    assert torch.equal(converted(torch.ones(1, 3, 64, 64)).scores, model(torch.ones(1, 3, 64, 64)).scores)
    assert "path must end in .safetensors, got out.pt" in complaint(["convert", source, tmp_path / "out.pt"], capsys)
    source.write_bytes(source.read_bytes()[:5000])
    assert "released.pt can't be converted: it is truncated" in complaint(["convert", source, out], capsys)


def test_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, file = tmp_path / "weights.safetensors", tmp_path / "benchmark.json"
    save_checkpoint(create_model("yolo_master_n", task="classify", num_classes=3, image_size=64), weights)
    options = ["--batch-size", "2", "--rounds", "2", "--threads", str(torch.get_num_threads()), "--json", str(file)]
    shapes = set()

    def note(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, YOLOMaster) and not inputs[0].is_meta:  # on meta, operations are counted
            shapes.add(tuple(inputs[0].shape))

    with register_module_forward_pre_hook(note):
        assert main(["benchmark", str(weights), *options]) == 0
    assert shapes == {(2, 3, 64, 64)}
    figures = json.loads(file.read_text())
    model = load_checkpoint(weights)
    assert (figures["image_size"], figures["batch_size"], figures["threads"]) == (64, 2, torch.get_num_threads())
    assert (figures["parameters"], figures["active_parameters"]) == count_parameters(model)
    assert (figures["flops"], figures["active_flops"]) == count_flops(model, (3, 64, 64))
    cost, header, *rows = capsys.readouterr().out.splitlines()
    assert cost.endswith(f"; 2 x 64 x 64, {torch.get_num_threads()} threads")
    assert header.split() == ["median,", "ms", "quartiles,", "ms", "images/s"]
    for row, name in zip(rows, ("as built", "fused", "every expert"), strict=True):
        time = figures["milliseconds"][name]
        assert 0 < time["lower"] <= time["median"] <= time["upper"]
        rate = 2 / (time["median"] / 1e3)  # two images a forward
        assert figures["images_per_second"][name] == pytest.approx(rate)
        assert row.startswith(name)
        assert [float(cell) for cell in row.removeprefix(name).split() if cell != "-"] == pytest.approx(
            [time["median"], time["lower"], time["upper"], rate], abs=0.051
        )


def test_benchmark_times_the_network_with_and_without_the_unselected_experts() -> None:
    model = create_model("yolo_master_n", num_classes=3)
    shape = (3, 64, 64)
    ran = {name: measure_flops(way, torch.rand(1, *shape)) for name, way in benchmark.ways_to_run(model.eval()).items()}
    assert ran["every expert"] == [count_flops(model, shape).total]
    assert ran["as built"] == ran["fused"] < ran["every expert"]


def test_predict_outlines_what_it_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, photo, out = tmp_path / "weights.safetensors", tmp_path / "photo.png", tmp_path / "out"
    save_checkpoint(busy_segmenter(), weights)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    assert main(["predict", str(weights), str(photo), "--out", str(out), "--max-detections", "9"]) == 0
    (found,) = predict(busy_segmenter(), pixels, max_detections=9, polygons=True)
    line = f"{len(found['boxes'])} detections in 1 images, 0 skipped; written to {out}"
    assert line in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["0000-photo.jpg", "detections.json"]
    (record,) = json.loads((out / "detections.json").read_text())
    expected = [[polygon.flatten().tolist() for polygon in polygons] for polygons in found["polygons"]]
    assert [detection["polygons"] for detection in record["detections"]] == expected
    assert any(expected)


def test_predict_names_the_five_likeliest_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
    model = create_model("yolo_master_n", task="classify", num_classes=7, class_names=names, image_size=64)
    weights, photo, out = tmp_path / "weights.safetensors", tmp_path / "photo.png", tmp_path / "out"
    save_checkpoint(model, weights)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    assert main(["predict", str(weights), str(photo), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["classes.json"]
    (record,) = json.loads((out / "classes.json").read_text())
    scores = predict(model, pixels)[0]["scores"]
    best = scores.argsort(descending=True)[:5].tolist()
    assert [row["class"] for row in record["classes"]] == [names[label] for label in best]
    assert [row["score"] for row in record["classes"]] == pytest.approx(scores[best].tolist(), abs=1e-4)
    assert record["image"] == str(photo)


def test_data_finds_what_is_broken_and_shows_samples(cells: Path, tmp_path: Path) -> None:
    done = run("data", cells, "--out", tmp_path / "check")
    assert done.code == 0, done.err
    assert "broken XML" in done.out or "torn" in done.out
    found = json.loads((tmp_path / "check" / "data.json").read_text())
    assert found["images"] == 8
    assert {Path(problem["file"]).stem for problem in found["problems"]} >= {"torn", "noise", "gone"}
    with Image.open(tmp_path / "check" / "samples.jpg") as sheet:
        assert sheet.size == (4 * 260 + 4, 2 * 260 + 4)


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Folders of dark and bright images, to train on and to validate."""
    for split, count in (("train", 8), ("val", 4)):
        for name, value in (("dark", 40), ("bright", 200)):
            folder = tmp_path / "shades" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (48, 40), (value, value + index, value)).save(folder / f"{index}.png")
    return tmp_path / "shades"


@pytest.mark.slow
def test_classification_from_data_to_prediction(shades: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ("--epochs", 1, "--image-size", 64, "--num-workers", 0)
    done = run("train", "--task", "classify", "--data", shades, "--out", out, *small)
    assert done.code == 0, done.err
    assert "top-1 accuracy" in done.out
    assert load_checkpoint(out / "last.safetensors").config.task == "classify"
    assert json.loads((out / "settings.json").read_text())["batch_size"] == 32  # the task's own default
    done = run("val", out / "last.safetensors", "--data", shades, "--json", tmp_path / "val.json")
    assert done.code == 0, done.err
    assert "top-5 accuracy       1.0000" in done.out
    written = json.loads((tmp_path / "val.json").read_text())
    assert written["top5"] == 1.0
    assert f"parameters {written['parameters'] / 1e6:.2f} M, " in done.out
    assert 0 < written["active_flops"] < written["flops"]
    done = run("predict", out / "last.safetensors", shades / "val" / "dark", "--out", tmp_path / "classes")
    assert done.code == 0, done.err
    assert len(json.loads((tmp_path / "classes" / "classes.json").read_text())) == 4


def test_a_run_that_is_done_is_resumed_without_training(shades: Path, tmp_path: Path) -> None:
    small = ["--epochs", "1", "--image-size", "64", "--batch-size", "4", "--num-workers", "0", "--out", str(tmp_path)]
    command = ["train", "--task", "classify", "--data", str(shades), *small, "--resume"]
    assert main([*command, "--grad-checkpointing"]) == 0
    assert json.loads((tmp_path / "settings.json").read_text())["grad_checkpointing"] is True
    written = (tmp_path / "last.safetensors").stat().st_mtime_ns
    assert main(command) == 0  # less memory or more, the run is the same
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_train_on_another_backbone(cells: Path, tmp_path: Path) -> None:
    small = ("--epochs", 1, "--image-size", 64, "--batch-size", 4, "--num-workers", 0)
    done = run("train", "--data", cells, "--backbone", "test_efficientnet", "--out", tmp_path / "run", *small)
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").config.backbone == "test_efficientnet"
