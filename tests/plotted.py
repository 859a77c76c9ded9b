"""Runs to plot, whose every number is known."""

import json
from pathlib import Path
from typing import Any

from gq import presets
from gq.config import RunConfig, to_toml

TASK = "cartpole-swingup"


def write_run(folder: Path, config: RunConfig, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def world_run(folder: Path, *, scale: float = 1.0, num_points: int = 4, every: int = 20_000, **settings: Any) -> Path:
    """Write a TD-MPC2 run whose plans earn 100, 200, ... times `scale`, evaluated every so many decisions."""
    records: list[dict[str, Any]] = [{"step": 0, "decisions": 500, "frames": 1000, "episode/return_mean": 7.0}]
    for index in range(1, num_points + 1):
        position = {"step": index * every - 10, "decisions": index * every, "frames": 2 * index * every}
        records.append({**position, "loss": 0.5})
        earned = {"eval/return_mean": 100 * index * scale, "eval/policy_return_mean": 50 * index * scale}
        records.append(position | earned | {"eval/return_std": 1.0})
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    return write_run(folder, presets.tdmpc2("1").replace({"task": TASK, **changes}), records)


def transformer_run(folder: Path, *, algo: str = "dt", shift: float = 0.0, **settings: Any) -> Path:
    """Write a run on Hopper that is asked for 1000 and 3000, and earns 900 and 2000 more or less."""
    records: list[dict[str, Any]] = [{"step": 50, "loss": 1.0}]
    for step in (100, 200):
        earned = {"eval/target_1000/return_mean": 900.0 + shift, "eval/target_3000/return_mean": 2000.0 + step + shift}
        records.append({"step": step, **earned, "eval/target_1000/return_std": 3.0})
    config = presets.dt("1m") if algo == "dt" else presets.bc()
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    return write_run(folder, config.replace({"task": "Hopper-v5", "data.dataset": "d", **changes}), records)
