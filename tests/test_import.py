# SPDX-License-Identifier: Apache-2.0
"""``import moe_vision`` costs nothing, and its layers little more than ``import torch``."""

import json
import subprocess
import sys
from statistics import median

HEAVY = {"timm", "torchvision", "matplotlib", "accelerate", "PIL", "safetensors", "huggingface_hub", "onnxruntime"}

# CPU seconds of torch, then of what moe_vision adds to it, in a process of its own.
MEASURE = """
import json, sys, time
start = time.process_time()
import torch
middle = time.process_time()
from moe_vision import ESMoE, auxiliary_loss
end = time.process_time()
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"torch": middle - start, "added": end - middle, "modules": modules}))
"""


def import_in_a_fresh_process() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_package_alone_loads_nothing() -> None:
    code = "import sys, moe_vision as mv; print({'torch', 'numpy'} & sys.modules.keys(), mv.layers.ESMoE.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() ESMoE\n"


def test_loads_torch_alone() -> None:
    assert not HEAVY & set(import_in_a_fresh_process()["modules"])


def test_takes_at_most_a_tenth_more_than_torch() -> None:
    runs = [import_in_a_fresh_process() for _ in range(3)]
    ratio = median((run["torch"] + run["added"]) / run["torch"] for run in runs)
    assert ratio <= 1.10
