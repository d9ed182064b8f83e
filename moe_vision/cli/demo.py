# SPDX-License-Identifier: Apache-2.0
"""``moe-vision demo``: train on generated scenes and show the detections."""

import argparse
import time
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("demo", help="train on generated scenes and show the detections, in minutes")
    command.add_argument(
        "--out", type=Path, default=Path("moe-vision-demo"), help="folder for the results (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of scenes and weights (%(default)s)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Run the demonstration, and print what it found and wrote."""
    from moe_vision.demo import run_demo

    start = time.perf_counter()
    result = run_demo(options.out, seed=options.seed)
    print(f"\nOn held-out scenes: mAP 50 {result['map50']:.3f}, mAP 50:95 {result['map']:.3f}")
    print(f"Done in {time.perf_counter() - start:.0f} s. Written:")
    for path in result["files"]:
        print(f"  {path}")
