"""HTML and SVG put together so that nothing that comes from files can become markup."""

import html
from collections.abc import Iterable
from typing import Any

VOID = {"meta", "br", "img", "link", "input", "hr", "col"}


class Markup(str):
    """Text that is markup already; every other text is escaped."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as text that is safe as content and as an attribute's value."""
    if isinstance(value, Markup):
        return value
    text = str(value).encode("utf-8", "replace").decode("utf-8")  # names of files may hold what is not a character
    return Markup(html.escape(text, quote=True))


def join(*parts: Any) -> Markup:
    """Return parts one after another: markup, text, numbers, None for nothing, or iterables of these."""
    found = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, Iterable) and not isinstance(part, str):
            found.append(join(*part))
        else:
            found.append(escape(part))
    return Markup("".join(found))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        children: see `join`.
        attributes: `class_` is class and `stroke_width` stroke-width; True stands for the name alone, None and False
            for nothing; numbers are rounded to hundredths.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        words.append(attribute if value is True else f'{attribute}="{escape(number(value))}"')
    start = Markup(f"<{' '.join(words)}>")
    return start if name in VOID else Markup(f"{start}{join(*children)}</{name}>")


def number(value: Any) -> Any:
    """Return a float without more decimals than a picture needs; anything else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
