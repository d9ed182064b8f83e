# SPDX-License-Identifier: Apache-2.0
"""How long a run still takes."""

import time


class Countdown:
    """Tell the time that is left of a run, by how long what has been done of it took.

    Args:
        start: Epochs that were done before.
        epochs: Epochs of the run.

    Examples:
        >>> from moe_vision.train.progress import Countdown
        >>> countdown = Countdown(0, 50)
        >>> countdown.left(0.0)
        ''
    """

    def __init__(self, start: int, epochs: int) -> None:
        self.start, self.epochs = start, epochs
        self._started = time.perf_counter()

    def left(self, done: float) -> str:
        """Return for instance ``left 12 min``, or nothing as long as nothing is known.

        Args:
            done: Epochs that are done, with the part of the epoch that goes on.
        """
        if done <= self.start:
            return ""
        elapsed = time.perf_counter() - self._started
        return f"left {format_duration(elapsed / (done - self.start) * (self.epochs - done))}"


def format_duration(seconds: float) -> str:
    """Write a time in its one or two largest units.

    Examples:
        >>> from moe_vision.train.progress import format_duration
        >>> format_duration(42.3), format_duration(754), format_duration(2 * 3600 + 300)
        ('42 s', '13 min', '2 h 05 min')
    """
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
