"""JSON, TOML and numbers that others wrote: what would exhaust the stack is an error like any other."""

import json
import tomllib
from typing import Any

MAX_DEPTH = 64  # levels; no document of ours has ten
MAX_DIGITS = 18  # Python refuses to convert some thousands


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON document holds.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(document)
    return document


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML document holds.

    Raises:
        ValueError: it is not TOML, nested too deeply, or has whole numbers of more than TOML's 64 bits.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(document)
    check_numbers(document)
    return document


def parse_whole_number(text: str) -> int | None:
    """Return a number that is written in at most MAX_DIGITS digits, or None if the text is none."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def check_depth(document: Any) -> None:
    """Raise ValueError if lists and dictionaries are nested more than MAX_DEPTH levels deep."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        insides = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [item for inside in insides for item in inside if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def check_numbers(document: Any) -> None:
    """Raise ValueError if a whole number does not fit into 64 bits; in hexadecimal some thousand digits are parsed."""
    if isinstance(document, int) and not -(2**63) <= document < 2**63:
        raise ValueError("a number in it has more than 64 bits")
    if isinstance(document, dict | list):
        for item in document.values() if isinstance(document, dict) else document:
            check_numbers(item)
