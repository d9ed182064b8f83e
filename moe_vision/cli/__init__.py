# SPDX-License-Identifier: Apache-2.0
"""The command line, ``moe-vision``: each command is a thin layer over what Python has under the same name."""

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Sequence

from moe_vision.cli import benchmark, convert, data, demo, export, inspect, predict, prune, train, val

# Extra to install for a module that may be missing.
EXTRAS = {
    "accelerate": "train",
    "faster_coco_eval": "train",
    "tqdm": "train",
    "contourpy": "visualize",
    "matplotlib": "visualize",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for bad input, 130 when interrupted."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    for chatty in ("accelerate", "faster_coco_eval"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    options, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        return _fail(_unknown_option(unknown[0], options.parser))
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; pip install 'moe-vision[{EXTRAS[error.name]}]'")
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="moe-vision", description="Sparse Mixture-of-Experts vision models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, data, train, val, predict, inspect, prune, convert, export, benchmark):
        own = command.add_to(commands)
        own.set_defaults(run=command.run, parser=own)
    return parser


def _unknown_option(option: str, parser: argparse.ArgumentParser) -> str:
    known = re.findall(r"--[\w-]+", parser.format_usage())
    nearest = difflib.get_close_matches(option.split("=")[0], known, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; see {parser.prog} --help"
    return f"there is no option {option}{hint}"


def _fail(message: str) -> int:
    print(f"moe-vision: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
