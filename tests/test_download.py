"""Names, the cache, and downloads against a server with faults."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest

from gq.data import transfer
from gq.data.datasets import load_dataset
from gq.data.download import fetch_minari
from gq.data.formats import read_trajectories
from gq.data.registry import cached, known_ids, resolve
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256

SHARED = Path(__file__).parents[1].parent / "shared"
FAKEHUB = SHARED / "tools" / "fakehub.py"
HOPPER = "mujoco/hopper/medium-v0"


# Names


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("hopper", HOPPER),
        ("Hopper", HOPPER),
        ("hopper/medium", HOPPER),
        ("hopper-medium", HOPPER),
        ("hopper/medium-v0", HOPPER),
        ("mujoco/hopper/medium", HOPPER),
        (HOPPER, HOPPER),
        ("humanoid", "mujoco/humanoid/medium-v0"),
        ("humanoid_expert", "mujoco/humanoid/expert-v0"),
        ("humanoid_medium-v2", "mujoco/humanoid/medium-v0"),
        ("ant/simple", "mujoco/ant/simple-v0"),
        ("builtin/hopper", "builtin/hopper/medium"),
        ("builtin/hopper/medium", "builtin/hopper/medium"),
        ("builtin/hopper-expert", "builtin/hopper/expert"),
    ],
)
def test_ids_and_short_forms_resolve(name, identifier):
    assert resolve(name).id == identifier
    assert identifier in known_ids()


@pytest.mark.parametrize(
    "name",
    ["hopper-medium-v2", "hopper-medium-v0", "hopper_medium_replay-v2", "walker2d-random", "d4rl/hopper-medium-v2"],
)
def test_a_d4rl_name_never_becomes_another_dataset(name):
    with pytest.raises(UsageError, match=f"{name} is a D4RL dataset") as caught:
        resolve(name)
    assert "--dataset FILE.hdf5" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("hoper", "hopper"),
        ("humanoid/meduim", "humanoid/medium"),
        ("builtin/ant", "builtin/hopper/medium"),
        ("hopper-v5", "hopper"),
        ("mujoco/hopper/medium-v2", HOPPER),
        ("builtin/hopper/simple", "builtin/hopper/medium"),
        ("zzz", "known: hopper, walker2d"),
        ("", "known: hopper, walker2d"),
    ],
)
def test_an_unknown_name_is_refused_with_suggestions(name, suggested):
    with pytest.raises(UsageError, match=f"there is no dataset {name}") as caught:
        resolve(name)
    assert suggested in caught.value.hint


def test_entries_say_task_place_and_size(monkeypatch, tmp_path):
    monkeypatch.setenv("GQ_HOME", str(tmp_path))
    assert len(known_ids()) == 17
    entry = resolve("humanoid/expert")
    assert (entry.kind, entry.task, entry.level) == ("minari", "Humanoid-v5", "expert")
    assert entry.path == tmp_path / "datasets" / "minari" / "humanoid" / "expert.hdf5"
    assert entry.remote_paths[1] == (
        "datasets/farama-minari/mujoco/resolve/main/humanoid/expert-v0/data/main_data.hdf5"
    )
    assert abs(entry.size_bytes / 2_946_805_796 - 1) < 0.05  # the hosted file
    builtin = resolve("builtin/hopper/expert")
    assert builtin.path == tmp_path / "datasets" / "builtin" / "hopper" / "expert.hdf5"
    assert builtin.remote_paths == ()


def test_the_registry_loads_nothing_heavy():
    code = "import sys, gq.data.registry; print({'numpy', 'h5py', 'torch', 'mujoco'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "set()"


# A server with faults


@pytest.fixture(scope="session")
def fakehub() -> ModuleType:
    if not FAKEHUB.exists():
        pytest.skip("the stand-in for the Hub is absent")
    specification = importlib.util.spec_from_file_location("fakehub", FAKEHUB)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def private_cache(monkeypatch, tmp_path) -> Path:
    """Keep tests away from the user's cache, Minari root and proxies, and make retries quick."""
    for name in ("HF_HUB_OFFLINE", "GQ_DATA_DIR", "GQ_RUNS_DIR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "no-minari"))
    monkeypatch.setattr(transfer, "BACK_OFF_S", 0.001)
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 4096)
    return tmp_path / "home"


def write_minari(folder: Path, *, num_episodes: int = 12, bad_value: float = 0.0) -> Path:
    """Write a small Hopper dataset as Minari does: main_data.hdf5 and metadata.json."""
    folder.mkdir(parents=True)
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


@pytest.fixture
def serve(fakehub, monkeypatch, tmp_path) -> Iterator[Callable[..., SimpleNamespace]]:
    """Return a function that serves a dataset with the given faults and points HF_ENDPOINT at it."""
    root = tmp_path / "hub"
    raw = write_minari(root / "farama-minari" / "mujoco" / "hopper" / "medium-v0" / "data")
    servers = []

    def start(**faults: object) -> SimpleNamespace:
        server, url = fakehub.serve(root, **faults)
        servers.append(server)
        monkeypatch.setenv("HF_ENDPOINT", url + "/")
        size = (raw / "main_data.hdf5").stat().st_size
        return SimpleNamespace(raw=raw, url=url, size=size, requests=lambda: data_requests(server))

    yield start
    for server in servers:  # not waited for: shutting down takes half a second
        threading.Thread(target=server.shutdown, daemon=True).start()


def data_requests(server: ThreadingHTTPServer) -> list[tuple]:
    """Return (method, path, Range, status, bytes) of the requests for data; each is logged after its last byte."""
    found: list[tuple] = []
    for _ in range(100):
        before, found = found, [request for request in server.log if "main_data" in request[1]]
        if found and found == before:
            break
        time.sleep(0.02)
    return found


def assert_fetched(entry_name: str, raw: Path) -> None:
    """Compare the cache with the served files, and check that nothing else is left."""
    entry = resolve(entry_name)
    expected, found = read_trajectories(raw), load_dataset(entry_name)
    for name in ("observations", "actions", "rewards", "terminals", "offsets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.task == "Hopper-v5"
    assert found.source == entry.id
    assert [path.name for path in entry.path.parent.iterdir() if not path.name.endswith(".lock")] == [entry.path.name]


def test_a_download_becomes_the_canonical_file_with_provenance(serve, private_cache):
    hub = serve()
    reports: list[tuple[int, int | None]] = []
    path = fetch_minari(resolve("hopper"), lambda done, total: reports.append((done, total)))
    assert path == private_cache / "datasets" / "minari" / "hopper" / "medium.hdf5"
    assert_fetched("hopper", hub.raw)
    assert reports[0] == (0, hub.size)
    assert reports[-1] == (hub.size, hub.size)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    attributes = load_dataset("hopper").attributes
    assert attributes["source_url"] == f"{hub.url}/{resolve('hopper').remote_paths[1]}"
    assert attributes["source_sha256"] == sha256(hub.raw / "main_data.hdf5")
    assert attributes["author"] == "A, B"


def test_what_is_in_the_cache_is_fetched_again_only_by_force(serve):
    hub = serve()
    path = fetch_minari(resolve("hopper"))
    assert fetch_minari(resolve("hopper")) == path
    assert len(hub.requests()) == 1
    fetch_minari(resolve("hopper"), force=True)
    assert len(hub.requests()) == 2
    assert_fetched("hopper", hub.raw)


def test_a_broken_connection_is_resumed_with_range(serve):
    hub = serve(drop_after=30_000, only="*.hdf5")
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)
    requests = hub.requests()
    assert len(requests) == -(-hub.size // 30_000)
    assert [request[2] for request in requests[:3]] == [None, "bytes=30000-", "bytes=60000-"]
    assert [request[3] for request in requests[:3]] == [200, 206, 206]
    assert sum(request[4] for request in requests) == hub.size


def test_a_later_run_resumes_what_an_interrupted_one_left(serve):
    hub = serve()
    with pytest.raises(KeyboardInterrupt):
        fetch_minari(resolve("hopper"), interrupted_after(40_000))
    assert not cached(resolve("hopper"))
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)
    first_byte = int(hub.requests()[-1][2].removeprefix("bytes=").rstrip("-"))
    assert 40_000 - transfer.CHUNK_BYTES <= first_byte <= 40_000 + transfer.CHUNK_BYTES


def test_a_server_that_ignores_range_starts_again(serve):
    hub = serve(drop_after=30_000, ignore_range=True, times=2, only="*.hdf5")
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)
    assert [request[3] for request in hub.requests()] == [200, 200, 206]
    assert [request[4] for request in hub.requests()][:2] == [30_000, 30_000]


def test_a_file_replaced_meanwhile_starts_again(serve):
    hub = serve()
    with pytest.raises(KeyboardInterrupt):
        fetch_minari(resolve("hopper"), interrupted_after(20_000))
    shutil.rmtree(hub.raw)
    write_minari(hub.raw, num_episodes=14)
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)
    assert load_dataset("hopper").num_episodes == 14
    assert hub.requests()[-1][2].startswith("bytes=")  # asked for the rest
    assert hub.requests()[-1][3] == 200  # and given all


def interrupted_after(limit_bytes: int) -> Callable[[int, int | None], None]:
    """Return a report that stops a download like Ctrl-C."""

    def report(num_bytes: int, _total: int | None) -> None:
        if num_bytes > limit_bytes:
            raise KeyboardInterrupt

    return report


def test_a_busy_server_is_asked_again(serve):
    hub = serve(fail_first=3)
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)


@pytest.mark.parametrize(
    ("faults", "reason", "num_requests"),
    [
        ({"fail_first": 99}, "503 Service", 4),
        ({"html_error": 200}, "something else, which starts with b'<!DOCTYPE html>", 4),
        ({"html_error": 403}, "403 Forbidden", 1),
        ({"wrong_size": 1000}, "the server sends .* bytes of a file that has", 4),
        ({"wrong_hash": True}, "not the sha256", 1),
        ({"drop_after": 0}, "broke off|something else", 4),
    ],
)
def test_a_lasting_fault_is_one_line_with_url_and_next_step(serve, faults, reason, num_requests):
    hub = serve(**faults, only="*.hdf5")
    with pytest.raises(GqError, match=reason) as caught:
        fetch_minari(resolve("hopper"))
    assert str(caught.value).startswith(f"cannot download {hub.url}/datasets/farama-minari/mujoco/resolve/main/hopper/")
    assert "\n" not in str(caught.value)
    assert "gq download builtin/hopper/medium" in caught.value.hint
    assert caught.value.exit_code == 1
    assert len(hub.requests()) == num_requests
    assert not cached(resolve("hopper"))


def test_a_missing_file_and_a_dead_server_are_reported(serve, monkeypatch):
    hub = serve()
    with pytest.raises(GqError, match=r"ant/medium-v0/data/metadata\.json: 404 Not Found"):
        fetch_minari(resolve("ant"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(GqError, match=r"cannot download http://127\.0\.0\.1:9/datasets/.*refused"):
        fetch_minari(resolve("hopper"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url.removeprefix("http://"))
    with pytest.raises(UsageError, match="not a web address"):
        fetch_minari(resolve("hopper"))


def test_data_unfit_to_train_on_are_refused_and_not_kept(serve):
    hub = serve()
    shutil.rmtree(hub.raw)
    write_minari(hub.raw, bad_value=float("nan"))
    for _ in range(2):
        with pytest.raises(DataError, match="observations holds NaN at episode_0, step 7, column 2"):
            fetch_minari(resolve("hopper"))
    assert len(hub.requests()) == 2
    shutil.rmtree(hub.raw)
    write_minari(hub.raw)
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", hub.raw)


def test_two_threads_that_ask_at_once_download_once(serve):
    hub = serve()
    start = threading.Barrier(2)
    found: list[Path] = []

    def ask() -> None:
        start.wait()
        found.append(fetch_minari(resolve("hopper")))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [resolve("hopper").path] * 2
    assert len(hub.requests()) == 1
    assert_fetched("hopper", hub.raw)


def test_a_redirect_is_followed_and_its_announced_hash_checked(tmp_path):
    """The Hub answers with a redirect to its storage, whose own ETag is not the file's hash."""
    content = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 100
    announced = {"digest": "0" * 64}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/file":
                self.send_response(302)
                self.send_header("X-Linked-Etag", f'"{announced["digest"]}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Location", "/storage")
                self.end_headers()
                return
            first = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.send_response(206 if first else 200)
            self.send_header("ETag", '"storage"')
            self.send_header("Content-Length", str(len(content) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[first : first + 9000])  # always breaks off

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, target = f"http://127.0.0.1:{server.server_address[1]}/file", tmp_path / "file.hdf5"
    try:
        with pytest.raises(GqError, match="not the sha256"):
            transfer.fetch(url, target, magic=b"\x89HDF")
        assert not target.exists()
        announced["digest"] = hashlib.sha256(content).hexdigest()
        assert transfer.fetch(url, target, magic=b"\x89HDF") == announced["digest"]
        assert target.read_bytes() == content
    finally:
        server.shutdown()
        server.server_close()


# Without a server


def test_an_installed_minari_root_is_read_instead_of_the_network(monkeypatch, tmp_path):
    root = tmp_path / "minari"
    raw = write_minari(root / HOPPER / "data")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", raw)
    assert load_dataset("hopper").attributes["source_path"] == str(root / HOPPER)
    assert (raw / "main_data.hdf5").exists()


def test_hf_hub_offline_is_honoured_but_the_cache_still_serves(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(GqError, match="HF_HUB_OFFLINE is set") as caught:
        fetch_minari(resolve("hopper"))
    assert "builtin/hopper/medium" in caught.value.hint
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_minari(tmp_path / "minari" / HOPPER / "data")
    fetch_minari(resolve("hopper"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "no-minari"))
    assert fetch_minari(resolve("hopper")).is_file()


def test_a_damaged_cache_is_named_when_loaded_and_mended_by_download(monkeypatch, tmp_path):
    raw = write_minari(tmp_path / "minari" / HOPPER / "data")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    path = fetch_minari(resolve("hopper"))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"medium\.hdf5 is truncated: it has 3,000 of") as caught:
        load_dataset("hopper")
    assert caught.value.hint == f"gq download {HOPPER} --force"
    fetch_minari(resolve("hopper"))
    assert_fetched("hopper", raw)


def test_a_cache_that_cannot_be_written_is_named_with_gq_home(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "file"))
    with pytest.raises(GqError, match=r"cannot write in .*file.datasets.minari.hopper: Not a directory") as caught:
        fetch_minari(resolve("hopper"))
    assert "GQ_HOME" in caught.value.hint


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_cache_is_named_with_gq_home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir(mode=0o555)
    with pytest.raises(GqError, match=r"cannot write in .*Permission denied") as caught:
        fetch_minari(resolve("hopper"))
    assert "GQ_HOME" in caught.value.hint


def test_load_dataset_takes_paths_and_names(tmp_path, monkeypatch):
    raw = write_minari(tmp_path / "minari" / HOPPER / "data")
    monkeypatch.chdir(tmp_path / "minari")
    assert load_dataset(HOPPER).source == str(raw.parent)  # a folder of that name goes first
    assert load_dataset("./mujoco/hopper/medium-v0/data/main_data.hdf5").num_episodes == 12
    for name in ("absent.hdf5", "./absent", "~/absent-dataset", str(tmp_path / "absent")):
        with pytest.raises(UsageError, match=r"there is no dataset file .*absent"):
            load_dataset(name)
    with pytest.raises(UsageError, match=r"mujoco is a folder without main_data\.hdf5"):
        load_dataset("mujoco")
    with pytest.raises(UsageError, match="mujoco/hopper/medium-v0 is not in the cache") as caught:
        load_dataset("hopper")
    assert caught.value.hint == f"gq download {HOPPER}"
    with pytest.raises(UsageError, match="there is no dataset hoper"):
        load_dataset("hoper")
