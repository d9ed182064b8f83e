# SPDX-License-Identifier: Apache-2.0
"""``moe-vision convert``: turn released weights into a checkpoint."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser(
        "convert", help="turn a released file of weights into a checkpoint; runs no code of it"
    )
    command.add_argument("source", type=Path, help="a released .pt, or a state_dict in .pt or .safetensors")
    command.add_argument("out", type=Path, help="checkpoint to write, ending in .safetensors")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Convert the file, and print what was found in it."""
    from moe_vision.models import load_official, save_checkpoint

    model, report = load_official(options.source)
    save_checkpoint(model, options.out)
    print(f"{report}\nWritten to {options.out}")
