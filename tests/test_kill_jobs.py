"""How the program that kills training compares runs: bit by bit, but for the times."""

import json
import sys
from pathlib import Path

import pytest

from commandline import copy_run
from gq.files import write_json

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from kill_jobs import differences

STATE_AND_WEIGHTS = ("model.safetensors", "state.json")


@pytest.fixture
def run(trained: Path, own_home: Path) -> Path:
    return copy_run(trained, own_home / "runs" / "hopper-a")


def test_a_difference_between_runs_is_found(run: Path, trained: Path) -> None:
    assert differences(run, trained) == []
    folder = run / "checkpoints" / "step-000000004"
    state = json.loads((folder / "state.json").read_text())
    write_json(folder / "state.json", state | {"progress": state["progress"] | {"seconds": 1e6}, "times_bytes": 7})
    assert differences(run, trained) == [], "times do not count"
    write_json(folder / "state.json", state | {"step": 5})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x99")
    (run / "metrics.jsonl").open("ab").write(b"\n")
    (run / "checkpoints" / ".step-5.partial").mkdir()
    (run / "replay").mkdir()
    (run / "replay" / "steps.bin").write_bytes(b"")
    names = ["checkpoints/.step-5.partial", *(f"checkpoints/{folder.name}/{name}" for name in STATE_AND_WEIGHTS)]
    assert differences(run, trained) == [*names, "metrics.jsonl", "replay/steps.bin"]
