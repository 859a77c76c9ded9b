"""The preset of an algorithm by its name, which for some depends on the dataset."""

from typing import Any

from gq import presets
from gq.paths import last_dataset


def by_name(algo: str, size: str | None, given: dict[str, Any]) -> Any:
    """Return the preset of an algorithm; takes the size out of the given settings where it chooses the preset.

    Args:
        given: settings by dotted key.

    Raises:
        UsageError: an unknown size, or no dataset where the preset depends on it.
    """
    if algo == "bc":
        return presets.bc()
    in_file = given.pop("size", None)
    stated = size or in_file
    if algo == "odt":
        return presets.odt(str(stated or "tiny"), given.get("data.dataset") or last_dataset())
    if algo == "td3bc":
        from gq.datasets.loading import canonical_name

        return presets.td3bc(str(stated or "td3bc"), canonical_name(given.get("data.dataset") or last_dataset()))
    if algo == "tdmpc2":
        return presets.tdmpc2(str(stated or "5"), str(given.get("task") or given.get("environment.id") or ""))
    return presets.dt(str(stated or "1m"))
