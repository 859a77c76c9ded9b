"""Downloads of several processes at once, and of processes that are killed at any point."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commandline import PATIENCE_S, child_environment
from downloading import (
    D4RL_FILE,
    D4RL_HOPPER,
    HOPPER,
    MINARI_FILE,
    Site,
    assert_cached,
    write_d4rl,
    write_minari,
)
from gq.data.reading import read_trajectories
from gq.datasets.loading import download, load_dataset
from gq.datasets.names import resolve
from gq.errors import UsageError

CHUNK_BYTES = 16_384
FILES = {HOPPER: MINARI_FILE, D4RL_HOPPER: D4RL_FILE}
# Downloads argv[1] when told to; kills itself at the argv[2]-th touch of the file system, or after argv[3] bytes.
CHILD = f"""
import json, os, signal, sys
import h5py
from gq.datasets import fetch as transfer
from gq.datasets.loading import download
name, kill_at_event, kill_at_byte = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
transfer.CHUNK_BYTES = {CHUNK_BYTES}
events = 0
EVENTS = ("open", "os.", "shutil.")

def watch(event, arguments):
    global events
    if event.startswith(EVENTS):
        events += 1
        if events == kill_at_event:
            os.kill(os.getpid(), signal.SIGKILL)

def report(num_done, total):
    if kill_at_byte and num_done >= kill_at_byte:
        os.kill(os.getpid(), signal.SIGKILL)

print("ready", flush=True)
sys.stdin.readline()
sys.addaudithook(watch)
size = {{"num_transitions": 1000}} if name.startswith("builtin/") else {{}}
done = download(name, progress=report, **size)
print(json.dumps({{"was_cached": done.was_cached, "sha256": done.sha256, "events": events}}), flush=True)
"""


class Child:
    """A process that is ready to download."""

    def __init__(self, name: str, *, kill_at_event: int = 0, kill_at_byte: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, name, str(kill_at_event), str(kill_at_byte)],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]

    def go(self) -> None:
        """Begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def finish(self) -> dict | None:
        """Wait for the end; return what it printed, or None if it was killed."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        if self.process.returncode == -signal.SIGKILL:
            return None
        assert self.process.returncode == 0, stderr
        return json.loads(stdout)


@pytest.fixture
def site(site: Site) -> Site:
    write_minari((site.root / MINARI_FILE).parent, num_episodes=60)
    write_d4rl(site.root / D4RL_FILE, num_episodes=400)
    return site


def check_after_kill(site: Site, name: str) -> None:
    """Nothing partial is read; the next run succeeds, and its result is equal to that of an undisturbed one."""
    raw = site.root / FILES[name]
    if not resolve(name).path.exists():
        with pytest.raises(UsageError, match="is not in the cache"):
            load_dataset(name)
    else:
        found = load_dataset(name)
        np.testing.assert_array_equal(found.observations, read_trajectories(raw, task="Hopper-v5").observations)
    download(name)
    assert_cached(name, raw)


def kill_at_random_times(site: Site, monkeypatch: pytest.MonkeyPatch, homes: Path, num_kills: int) -> int:
    """Kill downloads at random times, the first at once; check each, and return how many were not finished yet."""
    site.start()
    chance = random.Random(0)
    longest = {}
    for name in FILES:  # how long it takes
        monkeypatch.setenv("GQ_HOME", str(homes / f"whole-{name.replace('/', '-')}"))
        child = Child(name)
        started = time.monotonic()
        child.go()
        child.finish()
        longest[name] = time.monotonic() - started
    num_unfinished = 0
    for number in range(num_kills):
        name = list(FILES)[number % 2]
        monkeypatch.setenv("GQ_HOME", str(homes / f"home-{number}"))
        child = Child(name)
        child.go()
        time.sleep(chance.uniform(0, longest[name]) if number else 0)
        child.process.kill()
        is_unfinished = child.finish() is None
        num_unfinished += is_unfinished
        if not is_unfinished:  # the machine has less to do than when the whole was measured
            longest[name] *= 0.7
        check_after_kill(site, name)
    return num_unfinished


def test_kills_at_random_times(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert kill_at_random_times(site, monkeypatch, tmp_path / "homes", 5) >= 1


@pytest.mark.slow
def test_kills_at_fifty_random_times(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert kill_at_random_times(site, monkeypatch, tmp_path / "homes", 50) >= 10


def kill_at_events(site: Site, monkeypatch: pytest.MonkeyPatch, homes: Path, name: str, num_kills: int | None) -> None:
    """Kill downloads at touches of the file system, spread over all of them or (None) at each."""
    site.start()
    monkeypatch.setenv("GQ_HOME", str(homes / "whole"))
    whole = Child(name)
    whole.go()
    result = whole.finish()
    assert result is not None
    num_events = result["events"]
    assert num_events > 20
    step = 1 if num_kills is None else num_events // num_kills
    for event in range(1, num_events - 3, step):  # their number differs a little from run to run
        monkeypatch.setenv("GQ_HOME", str(homes / f"home-{event}"))
        child = Child(name, kill_at_event=event)
        child.go()
        assert child.finish() is None, f"event {event} of {num_events} did not come"
        check_after_kill(site, name)


def test_kills_between_steps(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kill_at_events(site, monkeypatch, tmp_path / "homes", D4RL_HOPPER, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_kills_between_all_steps(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    kill_at_events(site, monkeypatch, tmp_path / "homes", name, None)


@pytest.mark.parametrize("name", FILES)
def test_a_killed_download_fetches_at_most_a_chunk_again(site: Site, name: str) -> None:
    site.start()
    child = Child(name, kill_at_byte=200_000)
    child.go()
    assert child.finish() is None
    download(name)
    assert_cached(name, site.root / FILES[name])
    first, second = site.requests()
    assert (first[3], second[3]) == (200, 206)
    first_byte = int(second[2].removeprefix("bytes=").rstrip("-"))
    assert first_byte >= 200_000 - CHUNK_BYTES
    assert second[4] == (site.root / FILES[name]).stat().st_size - first_byte


@pytest.mark.parametrize("name", [*FILES, "builtin/hopper/medium"])
def test_two_processes_that_ask_at_once_do_it_once(site: Site, name: str) -> None:
    site.start()
    children = [Child(name) for _ in range(2)]
    for child in children:
        child.go()
    results = [child.finish() for child in children]
    assert sorted(result["was_cached"] for result in results if result) == [False, True]
    assert len({result["sha256"] for result in results if result}) == 1
    if name in FILES:
        assert len(site.requests()) == 1
        assert_cached(name, site.root / FILES[name])
    assert load_dataset(name).source == resolve(name).id
