# SPDX-License-Identifier: Apache-2.0
"""What a conversion found and did."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What `moe_vision.load_official` read off a file; printed, a line each.

    Args:
        name: Name of the network, one of `moe_vision.list_models`.
        task: What it predicts.
        variant: ``paper``, ``esmoe``, ``v0_1``, or ``custom`` for other experts than theirs.
        placement: Where the MoE blocks are.
        num_experts: Experts E of each block (``v0_1``: of the first); 0 without MoE blocks.
        top_k: Experts K that an image selects; 0 without MoE blocks.
        kernel_sizes: Kernel sizes of the experts.
        num_classes: Number of classes.
        class_names: Names of the classes that the file has, or None.
        matched: Number of tensors that went into the network: all of them.
        ignored: Names of what the file has besides.
        notes: What was assumed, or left out, and why.

    Examples:
        >>> from moe_vision.models import ConversionReport
        >>> report = ConversionReport(
        ...     name="yolo_master_n", task="detect", variant="esmoe", placement="backbone", num_experts=3, top_k=3,
        ...     kernel_sizes=(3, 5, 7), num_classes=2, class_names=("cat", "dog"), matched=811,
        ... )
        >>> print(report)
        network   yolo_master_n, detect, variant esmoe
        experts   3, 3 active, kernel sizes 3 5 7, in the backbone
        classes   2: cat, dog
        tensors   811 matched, 0 ignored
    """

    name: str
    task: str
    variant: str
    placement: str
    num_experts: int
    top_k: int
    kernel_sizes: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    matched: int
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report as text."""
        names = "without names" if self.class_names is None else ", ".join(self.class_names)
        return "\n".join(
            [
                f"network   {self.name}, {self.task}, variant {self.variant}",
                f"experts   {self._experts()}",
                f"classes   {self.num_classes}: {names}",
                f"tensors   {self.matched} matched, {len(self.ignored)} ignored",
                *(f"ignored   {name}" for name in self.ignored),
                *(f"note      {note}" for note in self.notes),
            ]
        )

    def _experts(self) -> str:
        if self.placement == "none":
            return "none"
        sizes = f", kernel sizes {' '.join(map(str, self.kernel_sizes))}" if self.kernel_sizes else ""
        place = {"both": "in backbone and neck"}.get(self.placement, f"in the {self.placement}")
        return f"{self.num_experts}, {self.top_k} active{sizes}, {place}"
