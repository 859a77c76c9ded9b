"""Settings as people write them: TOML, `key.path=value`, and the dotted keys of nested values."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gq.errors import UsageError, suggest
from gq.files import parse_toml


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a TOML file with the layout of config.toml, whole or in part.

    Raises:
        UsageError: no such file, or not TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="--config takes a TOML file") from None
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="see config.toml in any run's folder") from None


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse `key.path=value` pairs; the value is a TOML literal, or text where it is not one.

    Raises:
        UsageError: no equals sign.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting} has no value", hint="write --set key=value, e.g. --set train.steps=2000")
        try:
            parsed[key.strip()] = parse_toml(f"value = {text}")["value"]
        except ValueError:
            parsed[key.strip()] = text.strip()
    return parsed


def assign(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key of a nested dictionary of known keys.

    Raises:
        UsageError: the key does not exist; the closest ones are named.
    """
    check_key(flatten(tree), key, origin)
    *sections, name = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[name] = value


def check_key(known: Mapping[str, Any], key: str, origin: str) -> None:
    """Raise UsageError unless the dotted key is known."""
    if key not in known:
        otherwise = "keys are those of a run's config.toml, such as train.steps, or of a corrector's corrector.json"
        short = [name for name in known if name.endswith("." + key.rsplit(".", 1)[-1])]
        hint = f"did you mean {short[0]}?" if short else suggest(key, known, otherwise=otherwise)
        raise UsageError(f"{origin}there is no setting {key}", hint=hint)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def is_flag_for_number(value: Any, usual: Any) -> bool:
    """Tell whether true or false stands where the usual value has numbers; Python takes them for 1 and 0."""
    if isinstance(usual, list | tuple):
        return isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value)
    is_number = isinstance(usual, int | float) and not isinstance(usual, bool)
    return isinstance(value, bool) and (is_number or usual == "auto")


def toml_value(value: Any) -> str:
    """Return a TOML literal of a boolean, number, string, or a list or table of them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's strings are JSON's
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
