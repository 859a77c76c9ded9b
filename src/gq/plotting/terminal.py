"""Learning curves in a terminal, in braille dots."""

from dataclasses import dataclass

import numpy as np

from gq.plotting.curves import Learning, compact

# The dots of a braille character, by row and column, as bits of its code.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BLANK = 0x2800
COLOURS = ("blue", "red", "green", "magenta", "yellow", "cyan", "default")
OFFICIAL_COLOUR = "bright_black"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MIN_WIDTH, MAX_WIDTH, HEIGHT = 20, 72, 12  # characters
MAX_RANK = 1  # see gq.plotting.records.MAIN; single episodes would hide all else


@dataclass(frozen=True)
class Line:
    """A line to draw."""

    name: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    letter: str  # that marks its end and its name


Cell = tuple[str, str]  # a character and its colour


def lines_of(learning: Learning, task: str) -> list[Line]:
    """Return a task's lines without those of single episodes; what counts most is first, the official one last."""
    lines = []
    curves = [curve for curve in learning.shown(task) if curve.rank <= MAX_RANK]
    for index, curve in enumerate(curves):
        colour, letter = COLOURS[index % len(COLOURS)], LETTERS[index % len(LETTERS)]
        lines.append(Line(curve.name, colour, curve.x, curve.mean, letter))
    if official := learning.official.get(task):
        longest = max(float(curve.x[-1]) for curve in curves)
        num_points = max(sum(frames <= longest for frames in official.frames), 1)
        x, y = np.array(official.frames[:num_points], float), np.array(official.mean[:num_points], float)
        lines.append(Line(official.label, OFFICIAL_COLOUR, x, y, "*"))
    return lines


def draw_lines(lines: list[Line], *, width: int, x_name: str) -> list[list[Cell]]:
    """Return rows of characters: the picture with its axes, then the names of the lines.

    Args:
        width: characters of the widest row; the picture itself has at least `MIN_WIDTH`.
    """
    right = max(float(line.x[-1]) for line in lines)
    low = min(0.0, *(float(line.y.min()) for line in lines))
    high = max(float(line.y.max()) for line in lines)
    labels = [f"{value:.0f}" for value in (high, (low + high) / 2, low)]
    margin = max(map(len, labels))
    columns = max(width - margin - 2 - len(lines), MIN_WIDTH)
    canvas = Canvas(columns, HEIGHT)
    scale_x, scale_y = (2 * columns - 1) / (right or 1.0), (4 * HEIGHT - 1) / ((high - low) or 1.0)
    ends: list[list[Cell]] = [[] for _ in range(HEIGHT)]
    for line in reversed(lines):  # the first lies on top
        end = canvas.draw(line.x * scale_x, (high - line.y) * scale_y, line.colour)
        ends[end // 4].append((line.letter, line.colour))
    at_row = {0: labels[0], (HEIGHT - 1) // 2: labels[1], HEIGHT - 1: labels[2]}
    picture = []
    for row, cells in enumerate(canvas.rows()):
        axis = [(at_row.get(row, "").rjust(margin) + (" ┤" if row in at_row else " │"), "")]
        picture.append([*axis, *cells, *ends[row]])
    scale = "0" + f"{compact(right)} {x_name}".rjust(columns - 1)
    picture += [[(" " * margin + " └" + "─" * columns, "")], [(" " * (margin + 2) + scale, "")]]
    names = [[(f"{' ' * margin}  {line.letter} ", line.colour), (line.name, "")] for line in lines]
    return [*picture, *names]


class Canvas:
    """A grid of braille characters, each with the colour of what was drawn last in it."""

    def __init__(self, columns: int, rows: int) -> None:
        self.bits = np.zeros((rows, columns), int)
        self.colours = np.full((rows, columns), "", object)

    def draw(self, x: np.ndarray, y: np.ndarray, colour: str) -> int:
        """Draw a line through points, in dots from the upper left; return the dot row of its end."""
        for index in range(len(x)):
            start = max(index - 1, 0)
            num_dots = int(max(abs(x[index] - x[start]), abs(y[index] - y[start]))) + 2
            for share in np.linspace(0, 1, num_dots):
                self.dot(x[start] + share * (x[index] - x[start]), y[start] + share * (y[index] - y[start]), colour)
        return round(float(y[-1]))

    def dot(self, x: float, y: float, colour: str) -> None:
        """Set one dot."""
        column, row = round(float(x)), round(float(y))
        self.bits[row // 4, column // 2] |= DOTS[row % 4][column % 2]
        self.colours[row // 4, column // 2] = colour

    def rows(self) -> list[list[Cell]]:
        """Return the characters."""
        return [
            [(chr(BLANK + bits) if bits else " ", colour) for bits, colour in zip(*row, strict=True)]
            for row in zip(self.bits.tolist(), self.colours.tolist(), strict=True)
        ]
