# SPDX-License-Identifier: Apache-2.0
"""What an export found out about the file it wrote."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BlockReport:
    """One block with experts.

    Attributes:
        name: Name of the layer in the module.
        form: ``index`` if unselected experts do not run, else ``dense``.
        top_k: Experts that an image selects.
        images: For each expert, how many images of the check selected it.
    """

    name: str
    form: str
    top_k: int
    images: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """One run in ONNX Runtime against eager.

    Attributes:
        shape: Shape of the images.
        routing: ``chosen`` by the routers, or ``forced``: by the check, so that every expert has its turn.
        images: How many images were compared. An image is left out where rounding decides between two experts.
        error: Largest difference of an output, in units of the largest value of that output (at least 1).
    """

    shape: tuple[int, ...]
    routing: str
    images: int
    error: float


@dataclass(frozen=True)
class ExportReport:
    """What `moe_vision.export` found out about the file it wrote; ``print`` shows it as a table.

    Attributes:
        path: The file.
        num_bytes: Its size.
        tolerance: Largest error that was allowed.
        blocks: Every block with experts, in the order in which they run.
        comparisons: Every run in ONNX Runtime against eager.

    Examples:
        >>> from moe_vision.exporting.report import BlockReport, Comparison, ExportReport
        >>> block = BlockReport("moe", "index", 2, (6, 6, 5, 7))
        >>> run = Comparison((1, 3, 64, 64), "forced", 1, 1e-7)
        >>> print(ExportReport(Path("net.onnx"), 4_000_000, 1e-4, (block,), (run,)))
        net.onnx: 4.0 MB
        block    form   experts  images that selected each
        moe      index  2 of 4   6 6 5 7
        images            routing  compared  error, at most 1e-04
        (1, 3, 64, 64)    forced   1         1.0e-07
    """

    path: Path
    num_bytes: int
    tolerance: float
    blocks: tuple[BlockReport, ...]
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.num_bytes / 1e6:.1f} MB"]
        if self.blocks:
            width = max(8, *(len(block.name) for block in self.blocks))
            lines.append(f"{'block':{width}} form   experts  images that selected each")
        for block in self.blocks:
            experts = f"{block.top_k} of {len(block.images)}"
            lines.append(
                f"{block.name or 'itself':{width}} {block.form:6} {experts:8} {' '.join(map(str, block.images))}"
            )
        lines.append(f"{'images':17} routing  compared  error, at most {self.tolerance:.0e}")
        runs = [f"{run.shape!s:17} {run.routing:8} {run.images:<9} {run.error:.1e}" for run in self.comparisons]
        return "\n".join(lines + runs)
