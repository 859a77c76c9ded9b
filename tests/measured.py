"""Runs on disk with evaluations of known returns and no weights, for what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gq import presets
from gq.config import RunConfig, to_toml
from gq.envs.engines import installed_engines

ENGINES = {**installed_engines("Hopper-v5"), "gq": "0.1.0"}
BEST, LAST = "step-000000100", "step-000000200"


def dt_config(**settings: Any) -> RunConfig:
    """Return a configuration on Hopper that asks for 1000 and 3000."""
    base = {"task": "Hopper-v5", "data.dataset": "/nowhere/d.hdf5", "eval.targets": [1000.0, 3000.0]}
    return presets.dt("1m").replace(base | {key.replace("__", "."): value for key, value in settings.items()})


def write_run(folder: Path, config: RunConfig, *, sha256: str = "d" * 64) -> Path:
    """Write a finished run with a best checkpoint at step 100 and a last one at 200, and two evaluations on record."""
    for name in (BEST, LAST):
        checkpoint = folder / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        (checkpoint / "MANIFEST.json").write_text('{"files": {"model.safetensors": {"sha256": "abc"}}}')
        (checkpoint / "state.json").write_text(json.dumps({"step": int(name[5:]), "progress": {}}))
    for which, name in (("best", BEST), ("last", LAST)):
        (folder / "checkpoints" / f"{which}.json").write_text(json.dumps({"checkpoint": name}))
    (folder / "config.toml").write_text(to_toml(config))
    facts = {"dataset_sha256": sha256, "parameters": 721_731, "versions": ENGINES, "compute": "cpu, float32"}
    (folder / "environment.json").write_text(json.dumps(facts))
    records = [
        {"step": step, "eval/target_1000/return_mean": 900.0, "eval/target_3000/return_mean": 2000.0 + step}
        for step in (100, 200)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def write_evaluation(
    run: Path,
    returns: Mapping[float | str, Sequence[float]],
    *,
    checkpoint: str = BEST,
    seed: int = 0,
    versions: Mapping[str, str] = ENGINES,
    name: str = "20260101-000000-000000",
    **changes: Any,
) -> Path:
    """Write an evaluation; `returns` are those of the episodes by target or mode."""
    episodes = [
        {"seed": seed + index, "episode_return": value, "length": 500, "terminated": index % 2 == 0}
        | ({"mode": way} if isinstance(way, str) else {"target_return": way})
        for way, values in returns.items()
        for index, value in enumerate(values)
    ]
    document = {"checkpoint": checkpoint, "versions": dict(versions), "seed": seed, "episodes": episodes, **changes}
    path = run / "evals" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path
