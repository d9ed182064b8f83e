# SPDX-License-Identifier: Apache-2.0
"""The table of all networks: parameters, operations and strides, for the documentation.

    python benchmarks/model_table.py

writes benchmarks/results/models.md.
"""

import torch
from measure import RESULTS

from moe_vision import create_model, list_models
from moe_vision.diagnostics import Cost, count_flops, count_parameters
from moe_vision.models.anchors import STRIDES
from moe_vision.models.config import TASKS, VARIANTS

NUM_CLASSES = {"detect": 80, "segment": 80, "classify": 1000}
COLUMNS = ["model", "task", "variant", "parameters, M (active)", "GFLOPs (active)", "image", "strides"]


def main() -> None:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for task in TASKS:
        for name in sorted(list_models(), key=lambda name: "nsmlx".index(name[-1])):
            lines.extend(row(name, task, variant) for variant in VARIANTS)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    (RESULTS / "models.md").write_text(text)
    print(text)


def row(name: str, task: str, variant: str) -> list[str]:
    with torch.device("meta"):
        model = create_model(name, task=task, variant=variant, num_classes=NUM_CLASSES[task])
    side = model.image_size
    strides = STRIDES[-1:] if task == "classify" else STRIDES
    costs = [_cell(count_parameters(model), 1e6), _cell(count_flops(model, (3, side, side)), 1e9)]
    return [name, task, variant, *costs, f"{side}²", ", ".join(map(str, strides))]


def _cell(cost: Cost, unit: float) -> str:
    return f"{cost.total / unit:.2f} ({cost.active / unit:.2f})"


if __name__ == "__main__":
    main()
