"""TensorBoard, W&B and trackio, the real ones: one run stays one run, and none of them can stop it."""

import json
import sqlite3
import subprocess
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest

from commandline import TINY, child_environment, gq
from gq.config import LogConfig
from gq.training import trackers as tracking
from gq.training.trackers import Trackers, identity
from tiny import write_hopper_file


def trackers(run: Path, notes: list[str], **settings: object) -> Trackers:
    run.mkdir(exist_ok=True)
    return Trackers(LogConfig(**settings), run, {"algo": "dt", "train": {"steps": 4}}, notes.append)  # type: ignore[arg-type]


def board_scalars(run: Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


# --- what fails -------------------------------------------------------------------------------------------------------


def test_what_is_not_installed_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    notes: list[str] = []
    opened = trackers(tmp_path / "run", notes, tensorboard=True, wandb=True, trackio=True)
    with opened.opened(0):
        opened.write(1, {"loss": 1.0})
    found = [next(name for name in ("tensorboard", "wandb", "trackio") if f"'gym-qwen[{name}]'" in n) for n in notes]
    assert found == ["tensorboard", "wandb", "trackio"]


@pytest.mark.parametrize("where", ["start", "log", "close"])
def test_a_tracker_that_fails_says_so_once(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[int] = []

    class Failing:
        def __init__(self, *_: object) -> None:
            self.fail("start")

        def fail(self, now: str) -> None:
            if now == where:
                raise ConnectionError("no network\nand a long story")

        def log(self, step: int, numbers: dict[str, float]) -> None:
            self.fail("log")
            logged.append(step)

        def close(self, *, failed: bool) -> None:
            self.fail("close")

    monkeypatch.setattr(tracking, "WandB", Failing)
    notes: list[str] = []
    opened = trackers(tmp_path / "run", notes, wandb=True)
    with opened.opened(0):
        for step in (1, 2, 3):
            opened.write(step, {"loss": 0.5})
    text = "W&B could not be closed: no network" if where == "close" else "W&B is off: no network"
    assert notes == [text]
    assert logged == ([1, 2, 3] if where == "close" else [])


def test_only_finite_numbers_are_sent_and_the_outcome_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: heard.append((step, numbers)), finish=lambda exit_code: heard.append(exit_code)
    )
    fake = types.SimpleNamespace(init=lambda **_: run, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    opened = trackers(tmp_path / "run", [], wandb=True)
    with suppress(RuntimeError), opened.opened(0):
        opened.write(1, {"loss": 0.5, "note": "text", "bad": float("inf")})
        raise RuntimeError("training failed")
    assert heard == [(1, {"loss": 0.5}), 1]
    with opened.opened(1):
        pass
    assert heard[-1] == 0


def test_training_goes_on_without_its_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    data = write_hopper_file(tmp_path / "data.hdf5")
    command = ("train", "dt", "--dataset", data, "--steps", 2, "--out", tmp_path / "run", *TINY)
    result = gq(*command, "--set", "log.wandb=true", "--set", "eval.every=0", "--json")
    assert result.exit_code == 0
    assert result.stderr.count("W&B is off") == 1
    assert json.loads(result.stdout)["steps"] == 2


# --- identity ---------------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_identity_and_folders_of_one_name_differ(tmp_path: Path, own_home: Path) -> None:
    for folder in (tmp_path / "x" / "a", tmp_path / "y" / "a", own_home / "runs" / "hopper-1"):
        folder.mkdir(parents=True)
    first = identity(tmp_path / "x" / "a")
    assert first == identity(tmp_path / "x" / "a")
    assert first != identity(tmp_path / "y" / "a")
    assert first[1].startswith("a-")
    assert identity(own_home / "runs" / "hopper-1")[1] == "hopper-1"
    (tmp_path / "x" / "a" / "tracking.json").write_text("{}")
    assert identity(tmp_path / "x" / "a")[0] != first[0]


# --- the real ones ----------------------------------------------------------------------------------------------------


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run, notes = tmp_path / "run", []  # type: tuple[Path, list[str]]
    for start, steps, value in ((0, (1, 2, 3, 4), 1.0), (2, (3, 5), 2.0)):
        opened = trackers(run, notes, tensorboard=True)
        with opened.opened(start):
            for step in steps:
                opened.write(step, {"loss": value})
    assert board_scalars(run, "loss") == [(1, 1.0), (2, 1.0), (3, 2.0), (5, 2.0)]
    assert notes == []


def test_a_resumed_training_goes_on_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    data, run = write_hopper_file(tmp_path / "data.hdf5"), tmp_path / "run"
    settings = [*TINY, "--set", "log.tensorboard=true", "--set", "train.log_every=1", "--set", "eval.every=0"]
    assert gq("train", "dt", "--dataset", data, "--steps", 3, "--out", run, *settings).exit_code == 0
    assert gq("train", "dt", "--out", run, "--resume", "--steps", 5).exit_code == 0
    assert [step for step, _ in board_scalars(run, "loss")] == [1, 2, 3, 4, 5]
    count = len(list((run / "tensorboard").iterdir()))
    assert gq("train", "dt", "--out", run, "--resume").exit_code == 0
    assert len(list((run / "tensorboard").iterdir())) == count, "a finished run has nothing to say"


SCRIPT = """
import json, sys
from pathlib import Path
from gq.config import LogConfig
from gq.training.trackers import Trackers
run, start, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
notes = []
trackers = Trackers(LogConfig(**settings), run, {"algo": "dt", "train": {"steps": 4}}, notes.append)
with trackers.opened(start):
    for step in (start + 1, start + 2):
        trackers.write(step, {"loss": 1 / step})
print(json.dumps(notes))
"""


def track_in_child(run: Path, start: int, settings: dict[str, object], **environment: str) -> None:
    """Track two steps in a process of its own; nothing but the notes, of which there are none, may be on stdout."""
    run.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(run), str(start), json.dumps(settings)]
    result = subprocess.run(command, env=child_environment(**environment), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr[-2000:]


def test_wandb_needs_no_login_and_no_network_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    nobody = {"HOME": str(tmp_path), "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    track_in_child(run, 0, {"wandb": True}, **nobody)
    track_in_child(run, 2, {"wandb": True}, **nobody)
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    identifier = json.loads((run / "tracking.json").read_text())["id"]
    assert [file.name for file in files] == [f"run-{identifier}.wandb"] * 2, "both are parts of one run"
    steps = [[numbers["_step"] for numbers in records(file)] for file in files]
    assert steps == [["1", "2"], ["3", "4"]]


def records(file: Path) -> list[dict[str, str]]:
    """Return the numbers of each step in a file that W&B wrote, which is a LevelDB log after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, found = file.read_bytes(), 7, []
    while position + 7 <= len(content) and content[position + 6] == 1:  # whole records; this short file has no others
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[position + 7 : position + 7 + length])
        if record.HasField("history"):
            found.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
        position += 7 + length
    return found


def test_trackio_goes_on_in_the_run_of_the_same_name(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run, home = tmp_path / "run", {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    settings: dict[str, object] = {"trackio": True, "trackio_project": "mine"}
    track_in_child(run, 0, settings, **home)
    track_in_child(run, 2, settings, **home)
    (database,) = (tmp_path / "trackio").glob("mine*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [row[2] for row in rows] == [1, 2, 3, 4]
    assert len({row[0] for row in rows}) == 1, "one run"
    assert {row[1] for row in rows} == {json.loads((run / "tracking.json").read_text())["name"]}
    assert [round(json.loads(row[3])["loss"], 4) for row in rows] == [1.0, 0.5, 0.3333, 0.25]
