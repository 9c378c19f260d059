"""A picture of `wandb leet` over the runs of a home, as a terminal shows it.

    uv run --with pyte python analysis/leet.py HOME analysis/figures/leet.svg

Types what follows the file's name into it: `uv run ... leet.svg j j " "` picks the third run.
"""

import os
import pty
import re
import select
import struct
import sys
import termios
import time
from fcntl import ioctl
from itertools import groupby

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES, SETTLE = 150, 40, 4.0


def screen_of(folder: str, command: list[str], keys: list[str]) -> pyte.Screen:
    """Return what a command draws on a terminal of COLUMNS x LINES, with keys typed in turn."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    for key in ["", *keys]:
        os.write(terminal, key.encode())
        _draw(terminal, stream)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return screen


def _draw(terminal: int, stream: pyte.ByteStream) -> None:
    """Take in what is drawn until nothing has changed for SETTLE seconds, a minute at most."""
    end = time.monotonic() + 60
    while time.monotonic() < end and select.select([terminal], [], [], SETTLE)[0]:
        stream.feed(os.read(terminal, 65536))


def colour(name: str) -> str | None:
    """pyte's word for a colour as rich's."""
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    words = {"default": None, "brown": "yellow", "brightbrown": "bright_yellow"}
    return words.get(name, name.replace("bright", "bright_"))


def line_of(cells: dict[int, pyte.screens.Char]) -> Text:
    """Convert a line to rich's text: neighbours of one style are one piece."""
    text = Text()
    looks = groupby((cells[column] for column in range(COLUMNS)), key=look)
    for style, alike in looks:
        text.append("".join(cell.data for cell in alike), style)
    return text


def look(cell: pyte.screens.Char) -> Style:
    """How a cell is drawn."""
    ink, ground = colour(cell.fg), colour(cell.bg)
    return Style(color=ink, bgcolor=ground, bold=cell.bold, reverse=cell.reverse)


if __name__ == "__main__":
    home, path, *keys = sys.argv[1:]
    drawn = screen_of(home, ["wandb", "leet", "wandb"], keys)
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, legacy_windows=False)
        for number in range(LINES):
            console.print(line_of(drawn.buffer[number]), no_wrap=True, end="\n", crop=True)
        console.save_svg(path, title=f"wandb leet {os.path.basename(home)}")
