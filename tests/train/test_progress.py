# SPDX-License-Identifier: Apache-2.0
"""The time that is left of a run."""

import pytest

from moe_vision.train import progress
from moe_vision.train.progress import Countdown, format_duration


def test_time_left_is_by_what_was_done_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    countdown = Countdown(10, 50)  # a run that goes on after 10 of 50 epochs
    assert countdown.left(10.0) == ""
    now = 130.0
    assert countdown.left(10.5) == "left 40 min"  # 30 s for half an epoch, and 39.5 to go: 39.5 min
    now = 700.0
    assert countdown.left(40.0) == "left 3 min"  # 600 s for 30 epochs, and 10 to go: 200 s
    assert countdown.left(50.0) == "left 0 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (61, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
