"""Lines in a terminal, in braille dots."""

import textwrap
from dataclasses import dataclass

import numpy as np

from gq.results.style import Row, brief, shorter

# The dots of a braille character, by row and column, as bits of its code.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BLANK = 0x2800
COLOURS = ("blue", "red", "green", "magenta", "yellow", "cyan", "default")
GREY = "bright_black"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MIN_WIDTH, MAX_WIDTH, HEIGHT = 20, 72, 12  # characters


@dataclass(frozen=True)
class Line:
    """A line to draw; x is increasing."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    letter: str  # that marks it and its name, for those who see no colours


def numbered(name: str, x: np.ndarray, y: np.ndarray, index: int) -> Line:
    """Return a line with the colour and letter of its index."""
    return Line(name, x, y, COLOURS[index % len(COLOURS)], LETTERS[index % len(LETTERS)])


def draw_lines(lines: list[Line], *, width: int, x_name: str, y_name: str, from_zero: bool = True) -> list[Row]:
    """Return rows of characters: the picture with its axes, then the names of the lines.

    Args:
        width: characters of the widest row; the picture itself has at least `MIN_WIDTH`.
        from_zero: the axes include 0; else only x does.
    """
    left, right = min(0.0, *(float(line.x[0]) for line in lines)), max(float(line.x[-1]) for line in lines)
    low, high = min(float(line.y.min()) for line in lines), max(float(line.y.max()) for line in lines)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    labels = [brief(value) for value in (high, (low + high) / 2, low)]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, MIN_WIDTH)
    canvas = _Canvas(columns, HEIGHT)
    scale_x, scale_y = (2 * columns - 1) / ((right - left) or 1.0), (4 * HEIGHT - 1) / ((high - low) or 1.0)
    traces = [((line.x - left) * scale_x, (high - line.y) * scale_y) for line in lines]
    for line, (x, y) in reversed(list(zip(lines, traces, strict=True))):  # the first lies on top
        canvas.draw(x, y, line.colour)
    for index, (line, (x, y)) in enumerate(zip(lines, traces, strict=True)):
        canvas.mark(float(x[-1]), float(y[-1]), line.letter, line.colour)
        if len(lines) > 1 and len(x) > 1:  # also on its way, where it may be among others
            place = x[0] + (x[-1] - x[0]) * (index + 1) / (len(lines) + 1)
            canvas.mark(float(place), float(np.interp(place, x, y)), line.letter, line.colour)
    at_row = {0: labels[0], (HEIGHT - 1) // 2: labels[1], HEIGHT - 1: labels[2]}
    picture: list[Row] = [[(y_name, "")]]
    for row, cells in enumerate(canvas.rows()):
        axis = at_row.get(row, "").rjust(margin) + ("┤" if row in at_row else "│")
        picture.append([(axis, ""), *cells])
    first = "0" if left == 0 else brief(left)
    scale = first + f"{shorter(right)} {x_name}".rjust(columns - len(first))
    picture += [[(" " * margin + "└" + "─" * columns, "")], [(" " * (margin + 1) + scale, "")]]
    return picture + [row for line in lines for row in _name_of(line, width)]


def _name_of(line: Line, width: int) -> list[Row]:
    first, *others = textwrap.wrap(line.name, max(width - 4, MIN_WIDTH - 4)) or [""]
    return [[(f"  {line.letter} ", line.colour), (first, "")], *([("    " + text, "")] for text in others)]


class _Canvas:
    """A grid of braille characters, each with the colour of what was drawn last in it, and of letters."""

    def __init__(self, columns: int, rows: int) -> None:
        self.bits = np.zeros((rows, columns), int)
        self.colours = np.full((rows, columns), "", object)
        self.letters: dict[tuple[int, int], str] = {}

    def draw(self, x: np.ndarray, y: np.ndarray, colour: str) -> None:
        for index in range(len(x)):
            start = max(index - 1, 0)
            num_dots = int(max(abs(x[index] - x[start]), abs(y[index] - y[start]))) + 2
            for share in np.linspace(0, 1, num_dots):
                self.dot(x[start] + share * (x[index] - x[start]), y[start] + share * (y[index] - y[start]), colour)

    def dot(self, x: float, y: float, colour: str) -> None:
        column, row = round(float(x)), round(float(y))
        self.bits[row // 4, column // 2] |= DOTS[row % 4][column % 2]
        self.colours[row // 4, column // 2] = colour

    def mark(self, x: float, y: float, letter: str, colour: str) -> None:
        """Put a letter where a dot would be, or as near as there is room to its left, else to its right."""
        column, row = round(x) // 2, round(y) // 4
        num_columns = self.bits.shape[1]
        places = [*range(column, -1, -1), *range(column + 1, num_columns)]
        free = next((place for place in places if (row, place) not in self.letters), column)
        self.letters[row, free] = letter
        self.colours[row, free] = colour

    def rows(self) -> list[Row]:
        return [
            [
                (self.letters.get((row, column), chr(BLANK + bits) if bits else " "), colour)
                for column, (bits, colour) in enumerate(zip(*cells, strict=True))
            ]
            for row, cells in enumerate(zip(self.bits.tolist(), self.colours.tolist(), strict=True))
        ]
