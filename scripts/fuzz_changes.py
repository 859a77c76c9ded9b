"""How files and texts are damaged for `fuzz.py`: blindly, byte by byte, and by what their format means."""

import json
import math
import struct
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

EDGES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
PATHS = ("../../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\evil", "~", "/dev/zero", "x\x00y", "-x", "")
TEXTS = (
    *PATHS,
    "\ud800",
    "\x1b[2J",
    "a\nb\nc\nd\ne\nf",
    "x" * 5_000,
    "é\u202e",
    "1" * 5_000,
    "nan",
    "inf",
    "%s%n{0}",
    " ",
)
NUMBERS = (
    0,
    1,
    -1,
    0.5,
    1e308,
    -1e308,
    math.inf,
    -math.inf,
    math.nan,
    10**6,
    10**9,
    10**12,
    10**400,
    2**31,
    2**63,
    2**64,
)
TOML_VALUES = (
    *("true", "[]", "{}", "''", "-1", "0", "1", "0.5", "1e308", "inf", "-inf", "nan", "1_000_000_000", "9" * 5_000),
    *(
        "99999999999999999999",
        "0x7fffffffffffffff",
        "1979-05-27",
        "07:32:00",
        "'''",
        '"\\u0000"',
        '"\\n\\n\\n\\n\\n\\n"',
    ),
    *(
        '["a", 1]',
        "[[1], [2]]",
        "{ a = { b = 1 } }",
        "[" * 3_000,
        "[" * 60 + "]" * 60,
        "nonsense",
        '"\\u001b[2J"',
        "10000000",
    ),
)


def change_bytes(random: Random, data: bytes) -> bytes:
    """Return a file with one to four damages: flipped bits, other lengths, cuts, repeated and exchanged blocks."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(DAMAGES)(random, changed)
    return bytes(changed)


def flip(random: Random, data: bytearray) -> None:
    """Flip a few bits."""
    for _ in range(random.choice((1, 1, 3, 16)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def set_byte(random: Random, data: bytearray) -> None:
    """Set a byte to an edge value, near the beginning more often: headers are there."""
    if data:
        end = min(len(data), random.choice((16, 128, 1024, len(data))))
        data[random.randrange(end)] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))


def set_number(random: Random, data: bytearray) -> None:
    """Overwrite what may be a length or an address."""
    if len(data) > 8:
        size, code = random.choice(((2, "<H"), (4, "<I"), (8, "<Q"), (4, ">I"), (8, ">Q")))
        number = random.choice((*EDGES, len(data), len(data) + 1, random.randrange(len(data) * 2)))
        place = random.randrange(len(data) - size)
        data[place : place + size] = struct.pack(code, number % 2 ** (8 * size))


def cut(random: Random, data: bytearray) -> None:
    """Truncate."""
    del data[random.randrange(len(data) + 1) :]


def take_out(random: Random, data: bytearray) -> None:
    """Remove a block."""
    start, size = block(random, data)
    del data[start : start + size]


def repeat(random: Random, data: bytearray) -> None:
    """Insert a block of the file at another place, up to thousands of times."""
    start, size = block(random, data)
    place = random.randrange(len(data) + 1)
    data[place:place] = bytes(data[start : start + size]) * random.choice((1, 1, 2, 100, 3_000 // (size + 1)))


def splice(random: Random, data: bytearray) -> None:
    """Write a block of the file over another one."""
    start, size = block(random, data)
    place = random.randrange(len(data) + 1)
    data[place : place + size] = data[start : start + size]


def fill(random: Random, data: bytearray) -> None:
    """Overwrite a block with one value or with noise."""
    start, size = block(random, data)
    data[start : start + size] = (
        random.randbytes(size) if random.random() < 0.5 else bytes([random.choice((0, 255))]) * size
    )


def insert(random: Random, data: bytearray) -> None:
    """Insert noise."""
    place = random.randrange(len(data) + 1)
    data[place:place] = random.randbytes(random.choice((1, 2, 8, 64)))


def block(random: Random, data: bytearray) -> tuple[int, int]:
    """Return the start and the size of a piece of a file."""
    return random.randrange(len(data) + 1), random.choice((1, 2, 4, 8, 16, 64, 512))


DAMAGES: tuple[Callable[[Random, bytearray], None], ...] = (
    *(flip, set_byte, set_number, set_number, cut, take_out, repeat, splice, fill, insert),
)


def change_json(random: Random, data: bytes) -> bytes:
    """Return a JSON document with some of its values replaced, removed or renamed; sometimes not JSON any more."""
    if random.random() < 0.15:
        return change_bytes(random, data)
    if random.random() < 0.05:
        return nested(random)
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        document = change_tree(random, document)
    text = json.dumps(document)
    if random.random() < 0.1:
        text = text.replace("1", "1" * 5_000, 1)
    return text.encode("utf-8", "surrogatepass")


def nested(random: Random) -> bytes:
    """Return JSON so deep that a reader which calls itself for each level runs out of stack."""
    depth = random.choice((50, 900, 5_000, 100_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    return (opening * depth + "1" + closing * depth).encode()


def change_tree(random: Random, tree: Any) -> Any:
    """Return nested lists and dictionaries with one change at a random place."""
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.08:
        return any_value(random)
    if isinstance(tree, list):
        place = random.randrange(len(tree))
        if random.random() < 0.7:
            return [change_tree(random, item) if index == place else item for index, item in enumerate(tree)]
        return tree[:place] if random.random() < 0.5 else tree + tree[place:] * random.choice((1, 50))
    key = random.choice(list(tree))
    if random.random() < 0.7:
        return {name: change_tree(random, value) if name == key else value for name, value in tree.items()}
    if random.random() < 0.5:
        return {name: value for name, value in tree.items() if name != key}
    return {any_text(random) if name == key else name: value for name, value in tree.items()}


def any_value(random: Random) -> Any:
    """Return a value that a reader may not expect."""
    kind = random.randrange(5)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return any_text(random)
    if kind == 2:
        return random.choice((None, True, False, [], {}, [[]], [None], {"": None}, "", 0, -1))
    if kind == 3:
        return [random.choice(NUMBERS) for _ in range(random.choice((1, 2, 3, 200)))]
    return {any_text(random): random.choice(NUMBERS), "a": {"b": {"c": random.choice(TEXTS)}}}


def any_text(random: Random) -> str:
    """Return a text that somebody malicious, or Hypothesis, may think of."""
    return random.choice(TEXTS) if random.random() < 0.5 else random.choice(hypothesis_texts())


@cache
def hypothesis_texts(number: int = 1_500) -> tuple[str, ...]:
    """Return texts that Hypothesis makes, the same ones always."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    made: list[str] = []

    @seed(0)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(st.text(), st.text(st.characters()), st.text("abcdefghijklmnop0123456789+@_-=./:[]{}\"'\n ")))
    def collect(text: str) -> None:
        made.append(text)

    collect()
    return tuple(made)


def change_toml(random: Random, data: bytes) -> bytes:
    """Return a TOML document with other values, keys and sections; sometimes not TOML any more."""
    if random.random() < 0.15:
        return change_bytes(random, data)
    lines = data.decode().splitlines()
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(lines))
        key, equals, _ = lines[place].partition("=")
        kind = random.randrange(6)
        if kind < 3 and equals:
            lines[place] = f"{key}= {any_toml(random)}"
        elif kind == 3:
            del lines[place]
        elif kind == 4:
            lines.insert(place, lines[random.randrange(len(lines))])
        else:
            lines.insert(
                place, random.choice((f"{any_text(random)} = 1", f"[{any_text(random)}]", "[model.x]", "a.b = 1"))
            )
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def any_toml(random: Random) -> str:
    """Return what may stand behind an equals sign."""
    if random.random() < 0.7:
        return random.choice(TOML_VALUES)
    text = any_text(random)
    return json.dumps(text) if random.random() < 0.5 else text


def change_text(random: Random, text: str) -> str:
    """Return a name or setting with parts doubled, removed, exchanged or added, or another text altogether."""
    if random.random() < 0.2:
        return any_text(random)
    for _ in range(random.choice((1, 1, 2, 4))):
        start, stop = sorted((random.randrange(len(text) + 1), random.randrange(len(text) + 1)))
        piece = random.choice(
            ("", text[start:stop] * 2, random.choice("0123456789+@_-=./: é\x00\n٣²"), any_text(random))
        )
        text = text[:start] + piece + text[stop:]
    return text
