"""What the authors of TD-MPC2 published for their own runs, by task and frames, to stand beside ours."""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class OfficialCurve:
    """The published learning curve of a task; all tuples are [points], in the order of frames."""

    name: str
    source: str
    task: str
    frames: tuple[int, ...]  # decisions times action repeat
    mean: tuple[float, ...]  # return, over seeds
    sd: tuple[float, ...]  # sample standard deviation over seeds
    num_seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """What the curve is called in pictures and tables."""
        return f"{self.name}, {max(self.num_seeds)} seeds"


def official_curve(algo: str, task: str) -> OfficialCurve | None:
    """Return the published curve of an algorithm on a task, or None where the table has none.

    Args:
        algo: as in config.toml; only tdmpc2 has a table.
        task: the id, such as `dog-run`.
    """
    table = json.loads((resources.files("gq.results") / "official_results.json").read_text(encoding="utf-8"))
    if algo != table["algorithm"] or task not in table["tasks"]:
        return None
    frames, mean, sd, num_seeds = zip(*table["tasks"][task], strict=True)
    return OfficialCurve(table["name"], table["source"], task, frames, mean, sd, num_seeds)
