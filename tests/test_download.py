"""Downloads of Minari's and D4RL's datasets and of checkpoints, against servers with every fault."""

import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from downloading import (
    D4RL_FILE,
    D4RL_HOPPER,
    HOPPER,
    MINARI_FILE,
    Site,
    assert_cached,
    plain_server,
    write_d4rl,
    write_minari,
)
from gq.data.reading import read_trajectories
from gq.datasets import fetch as transfer
from gq.datasets.cache import cached, read_record
from gq.datasets.loading import download, load_dataset
from gq.datasets.names import resolve
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256
from gq.paths import last_dataset

FILES = {HOPPER: MINARI_FILE, D4RL_HOPPER: D4RL_FILE}
KINDS = pytest.mark.parametrize("name", FILES)


def interrupted_after(limit_bytes: int) -> Callable[[int, int | None], None]:
    """Return a report that stops a download like Ctrl-C."""

    def report(num_bytes: int, _total: int | None) -> None:
        if num_bytes > limit_bytes:
            raise KeyboardInterrupt

    return report


@KINDS
def test_a_download_becomes_the_canonical_file_with_provenance(site: Site, own_home: Path, name: str) -> None:
    site.start()
    raw = site.root / FILES[name]
    reports: list[tuple[int, int | None]] = []
    done = download(name, progress=lambda num_bytes, total: reports.append((num_bytes, total)))
    assert done.path == resolve(name).path
    assert done.path.is_relative_to(own_home / "datasets")
    assert_cached(name, raw)
    size = raw.stat().st_size
    assert reports[0] == (0, size)
    assert reports[-1] == (size, size)
    assert [one for one, _ in reports] == sorted(one for one, _ in reports)
    attributes = load_dataset(name).attributes
    assert attributes["source_url"] == f"{site.url}/{resolve(name).remote_paths[-1]}"
    assert attributes["source_sha256"] == sha256(raw)
    assert attributes["source_bytes"] == size
    assert attributes["licence"] == {HOPPER: "none declared", D4RL_HOPPER: "CC BY 4.0"}[name]
    assert attributes["env_id"] == "Hopper-v5"
    assert last_dataset() == name


def test_the_result_counts_what_is_in_the_file(site: Site) -> None:
    site.start()
    done = download("hopper")
    expected = read_trajectories(site.root / MINARI_FILE)
    assert (done.num_transitions, done.num_episodes) == (sum(range(50, 62)), 12)
    assert done.return_mean == pytest.approx(float(expected.returns.mean()))
    assert done.return_std == pytest.approx(float(expected.returns.std()))
    assert (done.size_bytes, done.sha256) == (done.path.stat().st_size, sha256(done.path))
    assert not done.was_cached
    assert download("hopper").was_cached
    assert load_dataset("hopper").attributes["author"] == "A, B"


def test_what_is_in_the_cache_is_fetched_again_only_by_force(site: Site) -> None:
    site.start()
    notes: list[str] = []
    download("hopper")
    assert download("hopper", note=notes.append).was_cached
    assert notes == [f"{HOPPER} is in the cache already"]
    assert len(site.requests()) == 1
    assert not download("hopper", force=True).was_cached
    assert len(site.requests()) == 2
    assert_cached("hopper", site.root / MINARI_FILE)


# Resuming


@KINDS
def test_a_broken_connection_is_resumed_with_range(site: Site, name: str) -> None:
    site.start(drop_after=9_000, only="*.hdf5")
    download(name)
    raw = site.root / FILES[name]
    assert_cached(name, raw)
    requests = site.requests()
    assert len(requests) == -(-raw.stat().st_size // 9_000)
    assert [request[2] for request in requests[:3]] == [None, "bytes=9000-", "bytes=18000-"]
    assert [request[3] for request in requests[:3]] == [200, 206, 206]
    assert sum(request[4] for request in requests) == raw.stat().st_size


def test_a_later_run_resumes_what_an_interrupted_one_left(site: Site) -> None:
    site.start()
    with pytest.raises(KeyboardInterrupt):
        download("hopper", progress=interrupted_after(40_000))
    assert not cached(resolve("hopper"))
    download("hopper")
    assert_cached("hopper", site.root / MINARI_FILE)
    first_byte = int(site.asked_for_the_rest()[2].removeprefix("bytes=").rstrip("-"))
    assert 40_000 - transfer.CHUNK_BYTES <= first_byte <= 40_000 + transfer.CHUNK_BYTES


def test_a_server_that_ignores_range_starts_again(site: Site) -> None:
    site.start(drop_after=30_000, ignore_range=True, times=2, only="*.hdf5")
    download("hopper")
    assert_cached("hopper", site.root / MINARI_FILE)
    assert [request[3] for request in site.requests()] == [200, 200, 206]
    assert [request[4] for request in site.requests()][:2] == [30_000, 30_000]


@KINDS
def test_a_file_replaced_meanwhile_starts_again(site: Site, name: str) -> None:
    site.start()
    with pytest.raises(KeyboardInterrupt):
        download(name, progress=interrupted_after(20_000))
    write_minari((site.root / MINARI_FILE).parent, num_episodes=14)
    write_d4rl(site.root / D4RL_FILE, num_episodes=14)
    download(name)
    assert_cached(name, site.root / FILES[name])
    assert load_dataset(name).num_episodes == 14
    assert site.asked_for_the_rest()[3] == 200  # and given all


# Faults


@KINDS
@pytest.mark.parametrize(
    ("faults", "reason", "num_requests"),
    [
        ({"fail_first": 99}, "503 Service", 4),
        ({"html_error": 200}, "something else, which starts with b'<!DOCTY", 4),
        ({"html_error": 403}, "403 Forbidden", 1),
        ({"html_error": 404}, "404 Not Found", 1),
        ({"wrong_size": 1000}, "the server sends .* bytes of a file that has", 4),
        ({"wrong_hash": True}, "not have the sha256", 1),
        ({"drop_after": 0}, "broke off|something else", 4),
        ({"drop_after": 9_000, "ignore_range": True}, "broke off after 9,000 of", 4),
        ({"drop_after": 9_000, "change_etag": 1}, "not have the sha256", None),
    ],
)
def test_a_lasting_fault_is_one_line_and_leaves_no_wrong_file(
    site: Site, name: str, faults: dict, reason: str, num_requests: int | None
) -> None:
    site.start(**faults, only="*.hdf5")
    with pytest.raises(GqError, match=reason) as caught:
        download(name)
    assert str(caught.value).startswith(f"cannot download {site.url}/{resolve(name).remote_paths[-1]}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 1
    assert num_requests in (None, len(site.requests()))
    assert not cached(resolve(name))
    with pytest.raises(UsageError, match="is not in the cache"):
        load_dataset(name)
    site.start()
    download(name)
    assert_cached(name, site.root / FILES[name])


@KINDS
@pytest.mark.parametrize(
    "faults",
    [
        {"fail_first": 3},
        {"fail_first": 2, "retry_after": "0"},
        {"html_error": 200, "times": 2},
        {"html_error": 502, "times": 1},
        {"wrong_size": 1000, "times": 1},
        {"drop_after": 9_000, "times": 3},
    ],
)
def test_a_passing_fault_is_survived(site: Site, name: str, faults: dict) -> None:
    site.start(**faults, only="*.hdf5")
    download(name)
    assert_cached(name, site.root / FILES[name])


@KINDS
def test_what_was_wrong_is_not_kept_for_the_next_run(site: Site, name: str) -> None:
    site.start(wrong_hash=True, times=1, only="*.hdf5")
    with pytest.raises(GqError, match="not have the sha256"):
        download(name)
    download(name)
    assert [request[2] for request in site.requests()] == [None, None]
    assert_cached(name, site.root / FILES[name])


def test_a_missing_file_and_a_dead_server_are_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start()
    with pytest.raises(GqError, match=r"ant/medium-v0/data/metadata\.json: 404 Not Found") as caught:
        download("ant")
    assert "gq download --list" in caught.value.hint
    with pytest.raises(GqError, match=r"gym_mujoco/walker_mixed\.hdf5: 404 Not Found"):
        download("walker2d-medium-replay-v0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(GqError, match=r"cannot download http://127\.0\.0\.1:9/datasets/.*refused") as caught:
        download("hopper")
    assert "gq download builtin/hopper/medium" in caught.value.hint
    for variable, name in (("HF_ENDPOINT", "hopper"), ("GQ_D4RL_URL", "hopper-medium-v2")):
        monkeypatch.setenv(variable, site.url.removeprefix("http://"))
        with pytest.raises(UsageError, match=f"{variable} is .*, not a web address"):
            download(name)


@KINDS
def test_data_unfit_to_train_on_are_refused_and_kept_aside(site: Site, name: str) -> None:
    site.start()
    write_minari((site.root / MINARI_FILE).parent, bad_value=float("nan"))
    with h5py.File(site.root / D4RL_FILE, "r+") as root:
        root["observations"][7, 2] = np.nan
    bad = (site.root / FILES[name]).read_bytes()
    aside = resolve(name).refused_path
    for _ in range(2):
        with pytest.raises(DataError, match=f"^{site.url}/.*observations holds NaN at .*7, column 2") as caught:
            download(name)
        assert caught.value.hint.endswith(f"it is kept aside: gq repair {aside}")
        assert aside.read_bytes() == bad
        assert not cached(resolve(name))
    assert len(site.requests()) == 2
    write_minari((site.root / MINARI_FILE).parent)
    write_d4rl(site.root / D4RL_FILE)
    download(name)
    assert_cached(name, site.root / FILES[name])  # which leaves nothing else in the folder


def test_two_threads_that_ask_at_once_download_once(site: Site) -> None:
    site.start()
    start = threading.Barrier(2)
    notes: list[str] = []
    found = []

    def ask() -> None:
        start.wait()
        found.append(download("hopper", note=notes.append))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.was_cached for done in found) == [False, True]
    assert len(site.requests()) == 1
    assert_cached("hopper", site.root / MINARI_FILE)


# An ordinary web server, which announces no hashes


def test_d4rl_from_an_ordinary_server_is_resumed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (site.root / D4RL_FILE).read_bytes()
    with plain_server({f"/base/{D4RL_FILE}": content}, drop_after=20_000) as server:
        monkeypatch.setenv("GQ_D4RL_URL", f"{server.url}/base/")
        download(D4RL_HOPPER)
    assert [headers.get("Range") for _, headers in server.log[:2]] == [None, "bytes=20000-"]
    assert server.log[1][1]["If-Range"] == '"1-2"'
    assert_cached(D4RL_HOPPER, site.root / D4RL_FILE)


@pytest.mark.parametrize("position", [0.3, 0.99])
def test_a_truncated_file_that_looks_whole_to_http_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, position: float
) -> None:
    content = (site.root / D4RL_FILE).read_bytes()
    files = {f"/{D4RL_FILE}": content[: int(len(content) * position)]}
    with plain_server(files) as server:
        monkeypatch.setenv("GQ_D4RL_URL", server.url)
        with pytest.raises(
            DataError, match=f"^{server.url}/gym_mujoco_v2/hopper_medium-v2.hdf5 is truncated"
        ) as caught:
            download(D4RL_HOPPER)
        assert caught.value.hint.endswith("gq download d4rl/hopper-medium-v2")
        assert not cached(resolve(D4RL_HOPPER))
        files[f"/{D4RL_FILE}"] = content
        download(D4RL_HOPPER)
    assert_cached(D4RL_HOPPER, site.root / D4RL_FILE)


def test_the_hash_of_the_first_download_is_checked_ever_after(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (site.root / D4RL_FILE).read_bytes()
    other = write_d4rl(site.root / "other.hdf5", seed=1).read_bytes()
    files = {f"/{D4RL_FILE}": content}
    entry = resolve(D4RL_HOPPER)
    with plain_server(files) as server:
        monkeypatch.setenv("GQ_D4RL_URL", server.url)
        download(D4RL_HOPPER)
        first = read_record(entry).source
        assert first is not None
        assert (first.sha256, first.num_bytes) == (sha256(site.root / D4RL_FILE), len(content))
        files[f"/{D4RL_FILE}"] = other
        for _ in range(2):
            with pytest.raises(
                GqError, match=r"not the file that it should be: .* the first download, of 20"
            ) as caught:
                download(D4RL_HOPPER, force=True)
            assert f"delete {entry.path}.json" in caught.value.hint
        np.testing.assert_array_equal(
            load_dataset(D4RL_HOPPER).rewards, read_trajectories(site.root / D4RL_FILE).rewards
        )
        files[f"/{D4RL_FILE}"] = content
        download(D4RL_HOPPER, force=True)
        assert read_record(entry).source == first
        files[f"/{D4RL_FILE}"] = other
        entry.path.with_name(entry.path.name + ".json").unlink()
        download(D4RL_HOPPER, force=True)
        assert read_record(entry).source.sha256 == sha256(site.root / "other.hdf5")


def test_a_changed_file_is_refused_before_it_is_transferred_where_the_hash_is_announced(site: Site) -> None:
    site.start()
    download("hopper")
    write_minari((site.root / MINARI_FILE).parent, num_episodes=14)
    with pytest.raises(GqError, match="not the file that it should be"):
        download("hopper", force=True)
    assert site.requests()[-1][4] <= site.size
    assert load_dataset("hopper").num_episodes == 12


@pytest.mark.usefixtures("site")
def test_a_pinned_hash_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "minari" / "mujoco" / "humanoid" / "expert-v0" / "data"
    write_minari(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with pytest.raises(GqError, match="the file that gq knows has 8253be69") as caught:
        download("humanoid/expert")
    assert "train from its path" in caught.value.hint
    assert not cached(resolve("humanoid/expert"))
