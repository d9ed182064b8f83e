# SPDX-License-Identifier: Apache-2.0
"""Every reader of files that others may have written, each with one sound file to start from and a way to use it whole.

A reader gives what it read, or raises ValueError or OSError with the name of the file or folder; nothing else.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save, save_file

from moe_vision import load_official, load_swapped
from moe_vision.data import ClassList, COCODetection, InstanceMasks, VOCDetection, YOLODetection, read_image
from moe_vision.data.images import image_size
from moe_vision.models import load_checkpoint
from moe_vision.models.checkpoint import FORMAT
from moe_vision.models.config import YOLOMasterConfig
from moe_vision.runtime import Runner

HEIGHT, WIDTH = 6, 8


class Border(NamedTuple):
    """A reader and what it reads.

    Attributes:
        name: Name of what is read.
        file: Path of the one file that varies, below the folder of the border.
        sound: Content of that file which is read without a complaint.
        read: Reads the folder, uses all that it gives, and returns the number of problems reported.
        pack: Makes a file of a varied content, such as the archive around a pickle.
    """

    name: str
    file: str
    sound: bytes
    read: Callable[[Path], int]
    pack: Callable[[bytes], bytes] = bytes

    def refuses_well(self, folder: Path, content: bytes) -> int | Exception:
        """Read a content and return the number of problems, or the error, which must be clear; others are raised."""
        (folder / self.file).write_bytes(self.pack(content))
        try:
            return self.read(folder)
        except (ValueError, OSError) as error:
            if str(folder) not in str(error) and not isinstance(error, FileNotFoundError):
                raise AssertionError(f"the error names no file: {error!r}") from error
            return error


def borders(folder: Path) -> dict[str, Border]:
    """Lay out the folder of each border below a folder, sound, and return the borders by name."""
    found = {border.name: border for border in (*_data_sets(), *_networks(folder))}
    for name, border in found.items():
        root = folder / name
        for inside in (
            "Annotations",
            "JPEGImages",
            "ImageSets/Main",
            "images",
            "masks",
            "train/images",
            "train/labels",
        ):
            (root / inside).mkdir(parents=True, exist_ok=True)
        for image in ("JPEGImages/a.png", "images/a.png", "train/images/a.png", "a.png"):
            (root / image).write_bytes(_picture())
        (root / "masks/a.png").write_bytes(_index_mask())
        (root / "Annotations/a.xml").write_bytes(VOC)
        (root / "ImageSets/Main/train.txt").write_text("a\n")
        (root / "train.txt").write_text("a\n")
        (root / "train/labels/a.txt").write_bytes(YOLO)
        (root / "data.yaml").write_bytes(NAMES)
        (root / border.file).write_bytes(border.pack(border.sound))
    return found


VOC = b"""<annotation><filename>a.png</filename>
<object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>4.5</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object></annotation>"""
YOLO = b"0 0.5 0.5 0.25 0.5\n1 0 0 0.9 0 0.9 0.9 0.1 0.8\n"
NAMES = b"nc: 2\nnames: [cell, 'hot dog']\n"
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "categories": [{"id": 3, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 5]]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 6], "iscrowd": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 12, 36]}},
        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 6],
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": "0<T1"}},
    ],
}  # fmt: skip


def _data_sets() -> list[Border]:
    list_of_classes = b"a.png cell\nimages/a.png dog\n"
    table = b"path,label\na.png,cell\nimages/a.png,hot dog\n"
    return [
        Border("VOC XML", "Annotations/a.xml", VOC, lambda root: _used(VOCDetection(root))),
        Border("VOC list", "ImageSets/Main/train.txt", b"a\n", lambda root: _used(VOCDetection(root))),
        Border("COCO JSON", "coco.json", json.dumps(COCO).encode(), _read_coco),
        Border("YOLO labels", "train/labels/a.txt", YOLO, lambda root: _used(YOLODetection(root, masks=True))),
        Border("YOLO names", "data.yaml", NAMES, lambda root: _used(YOLODetection(root))),
        Border("index mask", "masks/a.png", _index_mask(), lambda root: _used(InstanceMasks(root))),
        Border("class list", "list.txt", list_of_classes, lambda root: _used(ClassList(root / "list.txt"))),
        Border("class table", "list.csv", table, lambda root: _used(ClassList(root / "list.csv"))),
        Border("picture", "b.jpg", _picture("JPEG"), _read_picture),
    ]


def _networks(folder: Path) -> list[Border]:
    weights = {"model.0.conv.weight": torch.ones(8, 3, 3, 3), "model.0.bn.weight": torch.ones(8)}
    config = YOLOMasterConfig(num_classes=2, width=0.125, max_channels=512, depth=0.25)
    header = {"format": FORMAT, "config": config.to_json(), "class_names": '["a", "b"]', "image_size": "64"}
    file = io.BytesIO()
    torch.save({"model": weights, "names": {0: "cell"}, "epoch": 3}, file)
    pickled = zipfile.ZipFile(file).read("archive/data.pkl")
    swap = {
        "format": "moe_vision-swap-1",
        "arguments": {"model_name": "test_convnext", "num_classes": 5, "in_chans": 3},
    }
    recipe = {"sites": [], "init": "upcycle", "num_experts": 2, "top_k": 2, "kernel_sizes": None, "reduction": 8}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "swap.json").mkdir(exist_ok=True)
    save_file(weights, folder / "swap.json/model.safetensors")
    checkpoint, released = save(weights, header), save(weights)
    # As many tensors as its configuration has parts, so that a network is built and compared.
    buildable = save({f"{number}": torch.ones(1) for number in range(8)}, header)
    return [
        Border("checkpoint", "c.safetensors", checkpoint, lambda root: _tried(load_checkpoint, root / "c.safetensors")),
        Border("checkpoint header", "c.safetensors", _header(buildable),
               lambda root: _tried(load_checkpoint, root / "c.safetensors"), lambda text: _behind(text, buildable)),
        Border("released .pt", "r.pt", file.getvalue(), lambda root: _tried(load_official, root / "r.pt")),
        Border("released pickle", "r.pt", pickled, lambda root: _tried(load_official, root / "r.pt"), _archive),
        Border("released header", "r.safetensors", _header(released),
               lambda root: _tried(load_official, root / "r.safetensors"), lambda text: _behind(text, released)),
        Border("swap.json", "swap.json", json.dumps({**swap, "recipe": recipe}).encode(),
               lambda root: _tried(load_swapped, root)),
        Border("ONNX", "n.onnx", _graph(), lambda root: _run(root / "n.onnx")),
        Border("ONNX metadata", "n.onnx", json.dumps(FACTS).encode(), lambda root: _run(root / "n.onnx"), _described),
    ]  # fmt: skip


def _used(data: Any) -> int:
    for index in range(len(data)):
        image, target = data[index]
        if "boxes" in target:
            assert target["boxes"].isfinite().all()
            assert target["boxes"].canvas_size == tuple(image.shape[1:])
            assert "masks" not in target or target["masks"].shape == (len(target["boxes"]), *image.shape[1:])
        if hasattr(data, "crowd_regions"):
            data.crowd_regions(index)
    data.summary().encode()
    return len(data.problems)


def _read_coco(root: Path) -> int:
    return _used(COCODetection(root / "coco.json", root, masks=True))


def _read_picture(root: Path) -> int:
    image = read_image(root / "b.jpg")
    assert image_size(root / "b.jpg") == tuple(image.shape[1:])
    return 0


def _tried(load: Callable[[Path], object], path: Path) -> int:
    load(path)
    return 0


def _picture(format: str = "PNG") -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if format == "JPEG" else 1
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format, exif=exif)
    return file.getvalue()


def _index_mask() -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((HEIGHT, WIDTH), np.uint16)
    pixels[1:3, 2:5], pixels[5, 7] = 1, 300  # one of a single pixel
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _header(content: bytes) -> bytes:
    """Return the JSON at the start of a safetensors file."""
    return content[8 : 8 + struct.unpack("<Q", content[:8])[0]]


def _behind(text: bytes, content: bytes) -> bytes:
    """Put another JSON at the start of a safetensors file, with its length."""
    return struct.pack("<Q", len(text)) + text + content[8 + len(_header(content)) :]


def _archive(pickled: bytes) -> bytes:
    """Put a pickle into a file of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.ones(216, np.float32).tobytes())
        archive.writestr("archive/data/1", np.ones(8, np.float32).tobytes())
    return file.getvalue()


FACTS: dict[str, Any] = {
    "format": "moe_vision-onnx-1", "task": "detect", "class_names": ["a", "b"], "image_size": 32, "dynamic": False,
    "input": {"range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1], "letterbox": 0.5},
}  # fmt: skip


def _graph(**facts: str) -> bytes:
    """Write a graph that makes the boxes of two points of the colours of an image."""
    from onnx import TensorProto, helper

    def described(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Slice", ["images", "first", "one", "channel"], ["red"]),
        helper.make_node("Slice", ["red", "from", "to", "axes"], ["part"]),
        helper.make_node("Reshape", ["part", "box_shape"], ["boxes"]),
        helper.make_node("Reshape", ["boxes", "score_shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "from", "score_end", "axes"], ["cut"]),
        helper.make_node("Reshape", ["cut", "scores_shape"], ["scores"]),
    ]
    numbers = {
        "from": [0, 0], "to": [1, 8], "axes": [2, 3], "box_shape": [1, 2, 4], "score_shape": [1, 1, 1, 8],
        "score_end": [1, 4], "scores_shape": [1, 2, 2], "first": [0], "one": [1], "channel": [1],
    }  # fmt: skip
    constants = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in numbers.items()]
    outputs = [described("boxes", 1, 2, 4), described("scores", 1, 2, 2)]
    graph = helper.make_graph(nodes, "g", [described("images", 1, 3, 32, 32)], outputs, constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, facts or {name: _text(value) for name, value in FACTS.items()})
    return model.SerializeToString()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _described(text: bytes) -> bytes:
    """Put other metadata into the graph, as far as it is a JSON object."""
    try:
        facts = json.loads(text)
        return _graph(**{str(name): _text(value) for name, value in facts.items()})
    except (ValueError, AttributeError, RecursionError):
        return text


def _run(path: Path) -> int:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    (result,) = Runner(path, threads=1).predict(image, score=0.0)
    assert "boxes" not in result or np.isfinite(result["boxes"]).all()
    return 0
