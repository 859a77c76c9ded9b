"""What becomes of D4RL's files, of checkpoints and of an installed Minari; caches without a network or permission."""

import http.server
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from downloading import (
    D4RL_FILE,
    D4RL_HOPPER,
    HOPPER,
    SHARED,
    Site,
    assert_cached,
    plain_server,
    write_d4rl,
    write_minari,
)
from gq.data import old_columns
from gq.datasets.cache import cached, read_record
from gq.datasets.catalog import ENTRIES
from gq.datasets.download import offline_hint
from gq.datasets.fetch import RemoteFile, fetch
from gq.datasets.loading import download, load_dataset
from gq.datasets.names import resolve
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256

# What D4RL's files are like


def test_known_defects_are_said_with_the_command_that_shows_them(site: Site) -> None:
    site.start()
    write_d4rl(site.root / "gym_mujoco_v2" / "hopper_medium_replay-v2.hdf5")
    notes: list[str] = []
    download("hopper-medium-replay-v2", note=notes.append)
    (note,) = notes
    assert note.startswith("known of d4rl/hopper-medium-replay-v2: timeouts follow the sampling iteration")
    assert note.endswith("; look at it: gq repair d4rl/hopper-medium-replay-v2")
    notes.clear()
    download(D4RL_HOPPER, note=notes.append)
    assert notes == []


def write_old_ant(path: Path, *, world: float = 0.0) -> np.ndarray:
    """Write an Ant file of 111 columns, and return its observations."""
    write_d4rl(path, widths=(111, 8))
    with h5py.File(path, "r+") as root:
        observations = root["observations"][()]
        observations[:, 27:33] = world
        root["observations"][...] = observations
    return observations


def test_old_ant_observations_become_those_of_ant_v5(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gq.data.old_columns.BLOCK_ROWS", 70)
    site.start()
    observations = write_old_ant(site.root / "gym_mujoco_v2" / "ant_medium-v2.hdf5")
    notes: list[str] = []
    done = download("ant-medium-v2", note=notes.append)
    found = load_dataset("ant-medium-v2")
    assert (found.task, found.observations.shape, done.num_episodes) == ("Ant-v5", (600, 105), 12)
    np.testing.assert_array_equal(found.observations, np.delete(observations, range(27, 33), axis=1))
    assert found.attributes["observation_columns"] == "0 to 26 and 33 to 110 of the 111 of Ant-v2"
    assert "contact forces are all zero (#143)" in notes[0]


def test_old_ant_observations_that_cannot_be_mapped_are_refused(site: Site) -> None:
    site.start()
    write_old_ant(site.root / "gym_mujoco_v2" / "ant_medium-v2.hdf5", world=0.5)
    with pytest.raises(DataError, match="columns 27 to 32 of the observations are not all zero"):
        download("ant-medium-v2")
    assert not cached(resolve("ant-medium-v2"))


def test_old_ant_observations_in_another_file_are_refused(tmp_path: Path) -> None:
    write_old_ant(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "ant.hdf5", "w") as root:
        root["observations"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "observations")
    for missing in (False, True):
        if missing:
            (tmp_path / "other.hdf5").unlink()
        with pytest.raises(DataError, match="observations is a link to elsewhere"):
            old_columns.read_old_ant(tmp_path / "ant.hdf5", "d4rl/ant-medium-v2")


def test_data_of_another_width_are_refused(site: Site) -> None:
    site.start()
    write_d4rl(site.root / "gym_mujoco_v2" / "ant_medium-v2.hdf5", widths=(27, 8))
    with pytest.raises(DataError, match="27 observation and 8 action columns, Ant-v5 has 105 and 8"):
        download("ant-medium-v2")


def test_a_file_that_names_another_environment_is_said_and_recorded(site: Site) -> None:
    site.start()
    with h5py.File(site.root / D4RL_FILE, "r+") as root:
        root.attrs["env_id"] = "Hopper-v4"
    notes: list[str] = []
    download(D4RL_HOPPER, note=notes.append)
    assert notes == [
        f"{site.url}/{D4RL_FILE} says it is of Hopper-v4, gq takes it for Hopper-v5",
    ]
    assert load_dataset(D4RL_HOPPER).attributes["source_env_id"] == "Hopper-v4"
    assert load_dataset(D4RL_HOPPER).task == "Hopper-v5"


@pytest.mark.usefixtures("shared_data")
def test_a_real_file_of_the_v0_layout(site: Site) -> None:
    site.start()
    source = SHARED / "data" / "hopper-medium-v0layout.hdf5"
    (site.root / "gym_mujoco").mkdir()
    shutil.copy(source, site.root / "gym_mujoco" / "hopper_medium.hdf5")
    done = download("d4rl/hopper-medium-v0")
    assert (done.num_episodes, done.num_transitions) == (74, 50_000 - 109)
    assert load_dataset("hopper-medium-v0").attributes["num_dropped_rows"] == 109


# Checkpoints


def write_checkpoint(path: Path) -> Path:
    """Write a ZIP archive, as PyTorch's files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dog-run-1/data.pkl", b"never read")
        archive.writestr("dog-run-1/data/0", os.urandom(30_000))
    return path


def test_a_checkpoint_is_kept_as_it_is(site: Site, own_home: Path) -> None:
    site.start(drop_after=9_000, only="*.pt")
    source = write_checkpoint(site.root / "nicklashansen" / "tdmpc2" / "dmcontrol" / "dog-run-1.pt")
    done = download("tdmpc2/dog-run-1")
    assert done.path == own_home / "datasets" / "tdmpc2" / "dog-run-1.pt"
    assert done.path.read_bytes() == source.read_bytes()
    assert (done.num_transitions, done.return_mean, done.task) == (None, None, "dog-run")
    assert read_record(resolve("tdmpc2/dog-run-1")).source.sha256 == done.sha256 == sha256(source)
    assert not (own_home / "datasets" / "last.json").exists()  # it is nothing to train on
    with pytest.raises(UsageError, match="is a TD-MPC2 checkpoint, not a dataset"):
        load_dataset("tdmpc2/dog-run-1")
    assert download("tdmpc2/dog-run").was_cached


def test_what_is_no_pytorch_file_is_refused(site: Site) -> None:
    site.start()
    source = site.root / "nicklashansen" / "tdmpc2" / "dmcontrol" / "dog-run-1.pt"
    write_checkpoint(source).write_bytes(b"\x80\x02old pickle")
    with pytest.raises(GqError, match="something else, which starts with"):
        download("tdmpc2/dog-run-1")


def test_the_token_is_for_the_hub_only(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "dog-run-1.pt").read_bytes()
    files = {"/nicklashansen/tdmpc2/resolve/main/dmcontrol/dog-run-1.pt": checkpoint}
    files[f"/{D4RL_FILE}"] = (site.root / D4RL_FILE).read_bytes()
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    with plain_server(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("GQ_D4RL_URL", server.url)
        download("tdmpc2/dog-run-1")
        download(D4RL_HOPPER)
        assert [headers.get("Authorization") for _, headers in server.log] == ["Bearer hf_secret", None]
        monkeypatch.setenv("HF_TOKEN", "hf secret")
        with pytest.raises(UsageError, match="HF_TOKEN holds characters that no token has") as caught:
            download("tdmpc2/dog-run-2")
        assert "secret" not in str(caught.value) + caught.value.hint
        assert len(server.log) == 2


# Without a server


def test_an_installed_minari_root_is_read_instead_of_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "minari"
    raw = write_minari(root / HOPPER / "data")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    download("hopper", offline=True)
    assert_cached("hopper", raw)
    assert load_dataset("hopper").attributes["source_path"] == str(root / HOPPER)
    assert (raw / "main_data.hdf5").exists()


def test_offline_is_honoured_but_the_cache_still_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("hopper", "hopper-medium-v2", "tdmpc2/dog-run-1"):
        with pytest.raises(GqError, match="--offline forbids the network"):
            download(name, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("hopper", "hopper-medium-v2"):
        with pytest.raises(GqError, match="HF_HUB_OFFLINE is set") as caught:
            download(name)
        assert "builtin/hopper/medium" in caught.value.hint
    write_minari(tmp_path / "minari" / HOPPER / "data")
    download("hopper")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "no-minari"))
    assert download("hopper").was_cached


def test_a_cache_that_cannot_be_written_is_named_with_gq_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "file"))
    with pytest.raises(GqError, match=r"cannot write in .*file.datasets.minari.hopper: Not a directory") as caught:
        download("hopper")
    assert "GQ_HOME" in caught.value.hint


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_cache_is_named_with_gq_home(own_home: Path) -> None:
    own_home.mkdir(mode=0o555)
    with pytest.raises(GqError, match=r"cannot write in .*Permission denied") as caught:
        download("hopper")
    assert "GQ_HOME" in caught.value.hint


def test_load_dataset_takes_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("mujoco/humanoid/expert-v0", "builtin/humanoid/expert"),
        ("mujoco/walker2d/simple-v0", "builtin/walker2d/medium"),
        ("d4rl/hopper-full-replay-v2", "builtin/hopper/medium-replay"),
        ("d4rl/ant-expert-v2", "builtin/ant/expert"),
        ("mujoco/reacher/medium-v0", "builtin/hopper/medium"),
    ],
)
def test_whoever_is_offline_is_offered_the_same_robot(name: str, offered: str) -> None:
    assert offline_hint(ENTRIES[name]).endswith(f"gq download {offered}")


def test_a_host_that_there_is_not_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_host(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_host)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(GqError, match=r"cannot find the host data\.invalid"):
        fetch(RemoteFile(url="http://data.invalid/a.hdf5", magic=b"x", hint="try again"), tmp_path / "a")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a", "FILE:///etc/passwd"])
def test_what_is_not_on_the_web_is_not_read(target: str, tmp_path: Path) -> None:
    with pytest.raises(GqError, match="is not a web address"):
        fetch(RemoteFile(url=target, magic=b"x"), tmp_path / "a")

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(GqError):
            fetch(RemoteFile(url=f"http://127.0.0.1:{server.server_port}/a", magic=b"x"), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
