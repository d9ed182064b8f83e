# SPDX-License-Identifier: Apache-2.0
"""The log of a run as TensorBoard shows it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ScalarWriter:
    """Write each line of a run's log as scalars for TensorBoard, one point an epoch.

    Its files are made with the first line, and hide whatever earlier files of the folder say of that epoch and of later
    ones, so that a run that goes on has no epoch twice. Without TensorBoard nothing is written, which is said once.

    Args:
        out: Folder of the run.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from moe_vision.train.tracking import ScalarWriter
        >>> with tempfile.TemporaryDirectory() as out:
        ...     writer = ScalarWriter(Path(out))
        ...     writer.write({"epoch": 1, "lr": 1e-3, "loss": {"box": 2.0}, "experts": {"stage2": [0.25, 0.75]}})
        ...     writer.close()
        ...     len(list(Path(out).glob("events.out.tfevents.*")))
        1
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._writer: SummaryWriter | None = None
        self._missing = False

    def write(self, line: dict[str, Any]) -> None:
        """Write a line, and see to it that it is on the disk."""
        if self._writer is None and not self._missing:
            self._open(line["epoch"])
        if self._writer is not None:
            for name, value in scalars(line):
                self._writer.add_scalar(name, value, line["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            self._missing = True
            logging.info("no files for TensorBoard, which is not installed; pip install 'moe-vision[train]'")
            return
        self._writer = SummaryWriter(self.out, purge_step=epoch)


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name the numbers of a line of the log; those that are None or -1, for want of anything to measure, are left out.

    Args:
        line: A line of a run's ``log.jsonl``.

    Examples:
        >>> from moe_vision.train.tracking import scalars
        >>> list(scalars({"epoch": 1, "lr": 1e-3, "loss": {"box": 2.0, "class": None}, "metrics": {"map": 0.1}}))
        [('loss/box', 2.0), ('metrics/map', 0.1), ('run/lr', 0.001)]
    """
    metrics = line.get("metrics", {})
    groups = {
        "loss": line["loss"],
        "metrics": {name: value for name, value in metrics.items() if not isinstance(value, dict) and value >= 0},
        "run": {name: line.get(name) for name in ("lr", "hard_gap", "skipped_steps", "seconds")},
        **{f"experts {layer}": dict(enumerate(shares)) for layer, shares in line.get("experts", {}).items()},
    }
    for group, values in groups.items():
        yield from ((f"{group}/{name}", value) for name, value in values.items() if value is not None)
