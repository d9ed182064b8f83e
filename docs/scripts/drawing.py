# SPDX-License-Identifier: Apache-2.0
"""Boxes and arrows as SVG, on a light ground that shows on a dark page too."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

INK, LINE, GROUND = "#1f2937", "#475569", "#f8fafc"
PLAIN, EXPERTS, IDLE = "#dbe4f0", "#3568a3", "#eef1f5"

Point = tuple[float, float]


class Drawing:
    """A picture that is drawn piece by piece; sizes are its own units, a letter being about 13 of them."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13" text-anchor="middle">',
            f"<title>{escape(title)}</title>",
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker>',
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{GROUND}"/>',
        ]

    def box(self, left: float, top: float, width: float, height: float, lines: Sequence[str], fill: str) -> None:
        """Draw a box with centred lines of text; one that is idle has a broken border."""
        border = f'stroke="{LINE}" stroke-dasharray="4 3"' if fill == IDLE else ""
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" {border}/>'
        )
        first = top + height / 2 - 16 * (len(lines) - 1) / 2 + 4.5
        for number, line in enumerate(lines):
            self.text(left + width / 2, first + 16 * number, line, "white" if fill == EXPERTS else INK)

    def text(self, x: float, y: float, text: str, colour: str = INK) -> None:
        """Write a line of text, centred."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" fill="{colour}">{escape(text)}</text>')

    def arrow(self, *points: Point, idle: bool = False) -> None:
        """Draw an arrow through points."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = 'stroke-dasharray="4 3"' if idle else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{LINE}" stroke-width="1.3" {dashes} marker-end="url(#tip)"/>'
        )

    def save(self, path: Path) -> None:
        """Write the picture."""
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n")
