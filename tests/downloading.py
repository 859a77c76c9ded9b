"""Servers with faults, and small datasets to serve."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from commandline import PATIENCE_S
from gq.data.reading import read_trajectories
from gq.datasets import fetch as transfer
from gq.datasets.loading import load_dataset
from gq.datasets.names import resolve

SHARED = Path(__file__).parents[1].parent / "shared"
FAKEHUB = SHARED / "tools" / "fakehub.py"
HOPPER = "mujoco/hopper/medium-v0"
D4RL_HOPPER = "d4rl/hopper-medium-v2"
MINARI_FILE = "farama-minari/mujoco/hopper/medium-v0/data/main_data.hdf5"
D4RL_FILE = "gym_mujoco_v2/hopper_medium-v2.hdf5"


@cache
def fakehub() -> ModuleType:
    """Return the stand-in for the Hub, or skip."""
    if not FAKEHUB.exists():
        pytest.skip("the stand-in for the Hub is absent")
    specification = importlib.util.spec_from_file_location("fakehub", FAKEHUB)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the proxies of who runs them, and make retries and chunks small."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "BACK_OFF_S", 0.001)
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 4096)


def write_minari(folder: Path, *, num_episodes: int = 12, bad_value: float = 0.0) -> Path:
    """Write a small Hopper dataset as Minari does: main_data.hdf5 and metadata.json."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with h5py.File(folder / "main_data.hdf5", "w") as root:
        for number in range(num_episodes):
            group = root.create_group(f"episode_{number}")
            length = 50 + number
            observations = generator.standard_normal((length + 1, 11))
            observations[7, 2] += bad_value
            group["observations"] = observations
            group["actions"] = generator.uniform(-1, 1, (length, 3)).astype(np.float32)
            group["rewards"] = generator.standard_normal(length)
            group["terminations"] = np.arange(length) == (length - 1 if number % 2 else -1)
            group["truncations"] = np.arange(length) == (-1 if number % 2 else length - 1)
    specification = '{"id": "Hopper-v5", "low": -Infinity}'
    metadata = {"dataset_id": HOPPER, "env_spec": specification, "author": ["A", "B"], "minari_version": "0.5.4"}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def write_d4rl(path: Path, *, widths: tuple[int, int] = (11, 3), num_episodes: int = 12, seed: int = 0) -> Path:
    """Write a small file as D4RL does: flat arrays, an end of an episode every 50 rows, by turns a terminal and not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    num_rows = 50 * num_episodes
    is_end = np.arange(num_rows) % 50 == 49
    is_odd = np.arange(num_rows) // 50 % 2 == 1
    with h5py.File(path, "w") as root:
        root["observations"] = generator.standard_normal((num_rows, widths[0])).astype(np.float32)
        root["actions"] = generator.uniform(-1, 1, (num_rows, widths[1])).astype(np.float32)
        root["rewards"] = generator.standard_normal(num_rows).astype(np.float32)
        root["terminals"] = is_end & is_odd
        root["timeouts"] = is_end & ~is_odd
    return path


class Site:
    """A folder of datasets, served by fakehub with faults that change from server to server."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch, self.servers = root, monkeypatch, []  # type: ignore[var-annotated]
        self.url = ""
        write_minari((root / MINARI_FILE).parent)
        write_d4rl(root / D4RL_FILE)

    def start(self, **faults: object) -> "Site":
        """Serve with the given faults from now on."""
        server, self.url = fakehub().serve(self.root, **faults)
        self.servers.append(counting(server))
        self.monkeypatch.setenv("HF_ENDPOINT", self.url + "/")
        self.monkeypatch.setenv("GQ_D4RL_URL", self.url)
        return self

    def close(self) -> None:
        """Stop all servers, without waiting: shutting down takes half a second."""
        for server in self.servers:
            threading.Thread(target=server.shutdown, daemon=True).start()

    @property
    def size(self) -> int:
        """Return the size of Minari's data file."""
        return (self.root / MINARI_FILE).stat().st_size

    def requests(self) -> list[tuple]:
        """Return (method, path, Range, status, bytes) of the data requests to the newest server."""
        server = self.servers[-1]
        with server.idle:
            assert server.idle.wait_for(lambda: not server.num_running, PATIENCE_S)
        return [request for request in server.log if request[1].endswith((".hdf5", ".pt"))]

    def asked_for_the_rest(self) -> tuple:
        """Return the one request with a Range; an interrupted one without may be logged before it or after it."""
        (request,) = (request for request in self.requests() if request[2] is not None)
        return request


def counting(server: Any) -> Any:
    """Let a stand-in for the Hub know how many requests it is answering: each is logged after its last byte."""
    server.num_running, server.idle = 0, threading.Condition()

    def count(change: int) -> None:
        with server.idle:
            server.num_running += change
            server.idle.notify_all()

    class Counted(server.RequestHandlerClass):  # type: ignore[misc, name-defined]
        def answer(self) -> None:
            count(1)
            try:
                super().answer()
            finally:
                count(-1)

    server.RequestHandlerClass = Counted
    return server


def assert_cached(name: str, raw: Path) -> None:
    """Compare the cache with the served file, and check that nothing but it, its record and locks is left."""
    entry = resolve(name)
    expected, found = read_trajectories(raw, task="Hopper-v5"), load_dataset(name)
    for column in ("observations", "actions", "rewards", "terminals", "offsets"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert found.task == "Hopper-v5"
    assert found.source == entry.id
    left = {path.name for path in entry.path.parent.iterdir() if not path.name.endswith(".lock")}
    assert left == {entry.path.name, entry.path.name + ".json"}


@contextmanager
def plain_server(files: dict[str, bytes], **settings: Any) -> Iterator[Any]:
    """Serve some bytes as an ordinary web server does, which announces no hashes; yield the server.

    Args:
        settings: `etag` (None for none), `modified` (Last-Modified), `ranges` (whether Range is answered), `drop_after`
            (bytes), `length` (whether Content-Length is sent), `headers` (more of them), `answers` (a list of
            (status, headers) that go out first), all of which may be changed while it runs.
    """
    defaults = {"etag": '"1-2"', "modified": None, "ranges": True, "drop_after": None, "length": True}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            settings = self.server.settings  # type: ignore[attr-defined]
            self.server.log.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
            if settings["answers"]:
                status, headers = settings["answers"].pop(0)
                self.answer(status, {"Content-Length": "0", **headers})
                return
            content = files.get(self.path)
            if content is None:
                self.answer(404, {"Content-Length": "0"})
                return
            first, given = 0, self.headers["Range"]
            validators = {settings["etag"], settings["modified"]} - {None}
            if given and settings["ranges"] and self.headers["If-Range"] in validators:
                first = int(given.removeprefix("bytes=").rstrip("-"))
            headers = {"ETag": settings["etag"], "Last-Modified": settings["modified"], **settings["headers"]}
            headers["Content-Length"] = str(len(content) - first) if settings["length"] else None
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.answer(206 if first else 200, headers)
            self.wfile.write(content[first:][: settings["drop_after"]])

        def answer(self, status: int, headers: dict[str, str | None]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.settings = {**defaults, "headers": {}, "answers": [], **settings}
    server.log, server.url = [], f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
