# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from moe_vision.data.problems import Problem, report, summarise


def test_report_logs_the_file_once_and_keeps_the_problem(caplog: pytest.LogCaptureFixture) -> None:
    problems: list[Problem] = []
    report(problems, Problem("a.xml", "degenerate box", "(1, 1, 1, 1)"))
    assert problems == [("a.xml", "degenerate box", "(1, 1, 1, 1)")]
    assert caplog.record_tuples == [
        ("moe_vision.data.problems", logging.WARNING, "a.xml: degenerate box ((1, 1, 1, 1))")
    ]


def test_summary_counts_by_reason_most_frequent_first() -> None:
    problems = [Problem("a", "missing image"), Problem("b", "degenerate box"), Problem("b", "degenerate box")]
    assert summarise(problems) == "3 problems (2 degenerate box, 1 missing image)"
    assert summarise(problems[:1]) == "1 problem (1 missing image)"
    assert summarise([]) == "0 problems"
