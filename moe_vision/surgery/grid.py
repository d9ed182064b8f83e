# SPDX-License-Identifier: Apache-2.0
"""The grid of a convolution: on which pixels its kernel is centred."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

# timm's convolutions with the padding of TensorFlow; by name, so that a model that is not timm's does not load timm.
SAME = ("Conv2dSame", "Conv2dSameExport")


@dataclass(frozen=True)
class Grid:
    """Size, stride, dilation and padding of a square kernel.

    Attributes:
        kernel_size: Side of the kernel.
        stride: Pixels from one centre to the next.
        dilation: Pixels from one tap of the kernel to the next.
        padding: Zeros before and after each side; ``same``: as many as TensorFlow adds, which depends on the size.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.surgery.grid import Grid
        >>> Grid.of(nn.Conv2d(8, 8, 3, padding=1)).padding_kind
        'centred'
    """

    kernel_size: int
    stride: int
    dilation: int
    padding: int | Literal["same"]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Grid":
        """Return the grid of a convolution with a square kernel."""
        same = type(conv).__name__ in SAME or conv.padding == "same"
        padding = "same" if same else 0 if conv.padding == "valid" else conv.padding[0]
        return cls(conv.kernel_size[0], conv.stride[0], conv.dilation[0], padding)  # type: ignore[arg-type]

    @property
    def reach(self) -> int:
        """Pixels from the kernel's centre to its end."""
        return self.dilation * (self.kernel_size // 2)

    @property
    def padding_kind(self) -> Literal["centred", "same", "other"]:
        """Whether the first centre is the first pixel, depends on the size as TensorFlow has it, or is another."""
        if self.padding == self.reach or (self.padding == "same" and self.stride == 1):
            return "centred"
        return "same" if self.padding == "same" else "other"

    def alignment(self, size: int) -> tuple[int, int, slice]:
        """Return how a centred convolution of the same stride comes to have this grid.

        Zeros before a side of ``size`` pixels move it so that the pixels under our centres come to lie under those of
        the other, zeros after it make room for the last; the slice leaves out what we don't have.
        """
        before, after = self._zeros(size)
        count = (size + before + after - 2 * self.reach - 1) // self.stride + 1
        centre = self.reach - before  # the pixel under our first centre
        skipped = max(-(-centre // self.stride), 0)
        shift = skipped * self.stride - centre
        missing = (skipped + count - 1) * self.stride + 1 - (size + shift)
        return shift, max(missing, 0), slice(skipped, skipped + count)

    def _zeros(self, size: int) -> tuple[int, int]:
        if self.padding != "same":
            return self.padding, self.padding
        total = max((-(-size // self.stride) - 1) * self.stride + 2 * self.reach + 1 - size, 0)
        return total // 2, total - total // 2
