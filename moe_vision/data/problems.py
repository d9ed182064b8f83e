# SPDX-License-Identifier: Apache-2.0
"""Problems found in a data set: each is logged once with the file's name and counted, and the run goes on."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One thing wrong with one file.

    Attributes:
        file: Path of the file that has the problem.
        reason: The kind of problem, by which problems are counted.
        detail: What exactly was found, or empty.

    Examples:
        >>> from moe_vision.data import Problem
        >>> Problem("a.xml", "degenerate box", "cell").reason
        'degenerate box'
    """

    file: str
    reason: str
    detail: str = ""


def report(problems: list[Problem], problem: Problem) -> None:
    """Append a problem to `problems` and log it as a warning."""
    problems.append(problem)
    logger.warning("%s: %s%s", problem.file, problem.reason, f" ({problem.detail})" if problem.detail else "")


def summarise(problems: Sequence[Problem]) -> str:
    """Count problems by their reason, the most frequent first.

    Examples:
        >>> summarise([Problem("a.xml", "degenerate box"), Problem("b.jpg", "missing image")])
        '2 problems (1 degenerate box, 1 missing image)'
        >>> summarise([])
        '0 problems'
    """
    total = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    counts = Counter(problem.reason for problem in problems).most_common()
    return f"{total} ({', '.join(f'{count} {reason}' for reason, count in counts)})" if counts else total
