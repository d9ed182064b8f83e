# SPDX-License-Identifier: Apache-2.0
"""What mkdocs adds to the pages while it builds: the options of the command line, and formulas as MathML.

Browsers draw MathML by themselves, so a page needs no script and no font for it. A formula stands in a fence ``math``,
which GitHub draws too.
"""

import argparse
import re
from typing import Any

from latex2mathml.converter import convert

from moe_vision.cli import build_parser

FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = "<!-- commands -->"  # reference/cli.md has the place


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write formulas and the list of commands into a page."""
    markdown = FORMULA.sub(lambda found: formula(found[1].strip()), markdown)
    return markdown.replace(COMMANDS, describe_commands(build_parser()))


def formula(latex: str) -> str:
    """Write a formula as MathML, in a box that scrolls by itself where the page is narrow."""
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def describe_commands(parser: argparse.ArgumentParser) -> str:
    """Write a section for every command, with a table of its arguments."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in commands._choices_actions}
    sections = []
    for name, command in commands.choices.items():
        help_text = str(helps[name])
        sections += [f"## moe-vision {name}", "", f"{help_text[0].upper()}{help_text[1:]}.", ""]
        sections += ["| argument | default | what it is |", "|---|---|---|"]
        sections += [_row(action) for action in command._actions if action.dest != "help"]
        sections.append("")
    return "\n".join(sections)


def _row(action: argparse.Action) -> str:
    """Write a row; the default is what stands in parentheses at the end of the help."""
    text = str(action.help) % {"default": action.default}
    meaning, default = re.fullmatch(r"(.*?)(?: \(([^()]*)\))?", text).groups()  # type: ignore[union-attr]
    name = ", ".join(action.option_strings) or action.dest.upper()
    choices = f" {{{','.join(action.choices)}}}" if action.choices else ""
    if default is None:
        default = "required" if action.required else "off"
    return f"| `{name}{choices}` | {default} | {meaning} |"
