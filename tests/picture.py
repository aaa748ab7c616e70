"""A picture of ``fabrictap top`` on a simulated node: ``python tests/picture.py docs/pictures/top.svg``.

What it paints on a real terminal (terminal.py), drawn cell by cell: text stays text.
"""

from __future__ import annotations

import sys
import tempfile
from html import escape
from pathlib import Path

from simulated_agent import Agent
from terminal import Terminal

COLUMNS, LINES = 132, 43
#: Of a cell, in pixels.
WIDTH, HEIGHT = 8, 17
PAPER, INK = "#12161c", "#d6dbe1"
COLOURS = {
    "default": INK,
    "red": "#ff6b6b",
    "brown": "#e5c07b",  # pyte's name for 33
    "green": "#98c379",
    "magenta": "#d58cff",
    "cyan": "#56b6c2",
}


def svg(screen):
    wide, high = screen.columns * WIDTH + 16, screen.lines * HEIGHT + 16
    size = f'viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"'
    font = 'font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{wide}" height="{high}" rx="6" fill="{PAPER}"/>',
        f'<g {font} fill="{INK}">',
    ]
    for number in range(screen.lines):
        line = screen.buffer[number]
        start = 0
        while start < screen.columns:
            style = key(line[start])
            end = start
            while end < screen.columns and key(line[end]) == style:
                end += 1
            parts += run(number, start, "".join(line[at].data for at in range(start, end)), style)
            start = end
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def key(cell):
    return cell.fg, cell.bold, cell.reverse


def run(number, start, text, style):
    colour, bold, reverse = style
    ink, x, y = COLOURS.get(colour, INK), 8 + start * WIDTH, 8 + number * HEIGHT
    if reverse:
        yield f'<rect x="{x}" y="{y}" width="{len(text) * WIDTH}" height="{HEIGHT}" fill="{ink}"/>'
        ink = PAPER
    if text.strip():
        # Not every browser keeps ordinary spaces.
        shown = text.rstrip().replace(" ", "\N{NO-BREAK SPACE}")
        weight = ' font-weight="bold"' if bold else ""
        fill = f' fill="{ink}"' if ink != INK else ""
        # The width of the text is said, so that columns stand below each other in any font.
        yield (
            f'<text x="{x}" y="{y + 13}" textLength="{len(shown) * WIDTH}" lengthAdjust="spacingAndGlyphs"'
            f"{weight}{fill}>{escape(shown)}</text>"
        )


def main(target):
    with tempfile.TemporaryDirectory() as directory:
        # Long enough for the theft that the simulated node has, three minutes after its start.
        agent = Agent(Path(directory) / "ring", "hgx-h100", 215)
        try:
            command = [sys.executable, "-m", "fabrictap", "top", "--file", str(agent.path)]
            with Terminal(command, COLUMNS, LINES) as terminal:
                terminal.until("remote_read_egress", "the finding", 120)
                while terminal.read(0.3):
                    pass
                Path(target).write_text(svg(terminal.screen))
        finally:
            agent.kill()


if __name__ == "__main__":
    main(sys.argv[1])
