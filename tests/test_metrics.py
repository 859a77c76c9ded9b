"""metrics.jsonl is the truth; its mirrors can fail without stopping anything."""

import sys
import types
from pathlib import Path

import pytest

from gq.config import LogConfig
from gq.engine.metrics import MetricsLog, open_mirrors


def test_the_log_is_cut_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.5})
    size = log.size
    log.write({"step": 2, "loss": float("nan")})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    again = MetricsLog(path, size=size)
    assert again.size == size
    again.write({"step": 2, "loss": 0.25})
    again.close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'


def test_a_log_that_lost_lines_is_not_padded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, size=1000)
    log.write({"step": 1})
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_mirror_that_is_not_installed_is_reported_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notes: list[str] = []
    mirrors = open_mirrors(LogConfig(tensorboard=True, wandb=True), tmp_path, {}, notes.append)
    mirrors.write(1, {"loss": 1.0})
    assert ["gym-qwen[tensorboard]" in notes[0], "gym-qwen[wandb]" in notes[1], len(notes)] == [True, True, 2]


def test_a_mirror_that_fails_is_dropped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    def log(metrics: dict[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("no network")
        logged.append((step, metrics))

    asked: dict[str, object] = {}

    def init(**arguments: object) -> types.SimpleNamespace:
        asked.update(arguments)
        return types.SimpleNamespace(log=log)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    notes: list[str] = []
    mirrors = open_mirrors(LogConfig(wandb=True), tmp_path / "run-a", {"algo": "dt"}, notes.append)
    for step in (1, 2, 3):
        mirrors.write(step, {"loss": 0.5, "note": "text", "bad": float("inf")})
    assert logged == [(1, {"loss": 0.5})]
    assert notes == ["W&B is off: no network"]
    assert (asked["id"], asked["resume"]) == ("run-a", "allow"), "a resumed run goes on in the same W&B run"
