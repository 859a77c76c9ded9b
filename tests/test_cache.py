"""What the cache holds against its records: damage, verification, removal, and files without a record."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from commandline import PATIENCE_S
from downloading import D4RL_FILE, D4RL_HOPPER, HOPPER, MINARI_FILE, Site, assert_cached, write_minari
from gq import __version__
from gq.datasets import cache
from gq.datasets.cache import holding, in_cache, read_record, record_path, remove, state_of, verify
from gq.datasets.loading import download, load_dataset
from gq.datasets.names import resolve
from gq.errors import DataError, GqError
from gq.files import sha256

BUILTIN = "builtin/hopper/medium"


@pytest.fixture
def cached_hopper(tmp_path: Path) -> Path:
    """Put Minari's Hopper into the cache, from an installed Minari, and return the file."""
    write_minari(tmp_path / "minari" / HOPPER / "data")
    return download("hopper").path


def flip_byte(path: Path, *, keep_time: bool) -> None:
    """Change a byte in the middle of a file."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_record_lies_beside_the_file(site: Site) -> None:
    site.start()
    for name, file in ((HOPPER, MINARI_FILE), (D4RL_HOPPER, D4RL_FILE)):
        done = download(name)
        document = json.loads(record_path(resolve(name)).read_text())
        assert document["id"] == name
        source, stored = document["source"], document["stored"]
        assert source["where"] == f"{site.url}/{resolve(name).remote_paths[-1]}"
        assert source["sha256"] == sha256(site.root / file)
        assert source["num_bytes"] == (site.root / file).stat().st_size
        assert stored["sha256"] == sha256(done.path)
        assert stored["num_bytes"] == done.path.stat().st_size
        assert stored["mtime_ns"] == done.path.stat().st_mtime_ns
        assert (stored["num_episodes"], stored["gq_version"]) == (12, __version__)
        assert source["time"][:2] == stored["time"][:2] == "20"
        assert state_of(resolve(name)) == "intact"


def test_a_truncated_file_is_named_when_loaded_and_mended_by_download(cached_hopper: Path, tmp_path: Path) -> None:
    cached_hopper.write_bytes(cached_hopper.read_bytes()[:3000])
    assert state_of(resolve("hopper")) == "changed"
    with pytest.raises(DataError, match=r"medium\.hdf5 is truncated: it has 3,000 of") as caught:
        load_dataset("hopper")
    assert caught.value.hint == f"gq download {HOPPER}"
    notes: list[str] = []
    assert not download("hopper", note=notes.append).was_cached
    assert notes == [f"{cached_hopper} is damaged; getting it again"]
    assert_cached("hopper", tmp_path / "minari" / HOPPER)


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_flipped_byte_is_found_and_mended_by_download(cached_hopper: Path, tmp_path: Path, keep_time: bool) -> None:
    flip_byte(cached_hopper, keep_time=keep_time)
    assert state_of(resolve("hopper")) == ("intact" if keep_time else "touched")
    (found,) = verify([resolve("hopper")])
    assert (found.problem, found.fix) == ("its content is not what was put there", f"gq download {HOPPER}")
    if not keep_time:
        with pytest.raises(DataError, match="has changed since gq put it there") as caught:
            load_dataset("hopper")
        assert caught.value.hint == f"gq download {HOPPER}"
    assert not download("hopper").was_cached
    assert_cached("hopper", tmp_path / "minari" / HOPPER)
    assert [one.problem for one in verify([resolve("hopper")])] == [""]


def test_a_longer_file_that_can_be_read_is_refused(cached_hopper: Path) -> None:
    with cached_hopper.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="has changed since gq put it there"):
        load_dataset("hopper")


def test_a_file_that_was_only_touched_is_accepted_and_noted(cached_hopper: Path) -> None:
    os.utime(cached_hopper)
    assert state_of(resolve("hopper")) == "touched"
    load_dataset("hopper")
    assert state_of(resolve("hopper")) == "intact"
    os.utime(cached_hopper)
    assert download("hopper").was_cached
    assert state_of(resolve("hopper")) == "intact"


@pytest.mark.usefixtures("cached_hopper")
def test_an_intact_file_is_not_hashed_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "sha256", None)
    assert load_dataset("hopper").source == HOPPER


@pytest.mark.parametrize(
    "damage", [None, "", "{", "[]", '{"id": 1}', '{"id": "x", "source": null, "stored": {"a": 1}}']
)
@pytest.mark.usefixtures("cached_hopper")
def test_a_file_without_a_record_is_read_and_gets_one(damage: str | None) -> None:
    record = record_path(resolve("hopper"))
    before = read_record(resolve("hopper"))
    record.unlink()
    if damage is not None:
        record.write_text(damage)
    assert state_of(resolve("hopper")) == "unrecorded"
    assert [one.problem for one in verify([resolve("hopper")])] == [""]
    load_dataset("hopper")
    assert download("hopper").was_cached
    after = read_record(resolve("hopper"))
    assert after.source == before.source  # it is in the file's attributes
    assert after.stored is not None
    assert before.stored is not None
    assert after.stored.sha256 == before.stored.sha256
    assert after.stored.num_episodes == 12


def test_a_damaged_file_without_a_record_is_fetched_again(cached_hopper: Path, tmp_path: Path) -> None:
    record_path(resolve("hopper")).unlink()
    cached_hopper.write_bytes(cached_hopper.read_bytes()[:3000])
    (found,) = verify([resolve("hopper")])
    assert "truncated" in found.problem
    assert not download("hopper").was_cached
    assert_cached("hopper", tmp_path / "minari" / HOPPER)


@pytest.mark.usefixtures("own_home")
def test_simulated_datasets_are_recorded_too() -> None:
    done = download(BUILTIN, num_transitions=60)
    stored = read_record(resolve(BUILTIN)).stored
    assert stored is not None
    assert (stored.num_requested_transitions, stored.num_transitions) == (60, done.num_transitions)
    assert read_record(resolve(BUILTIN)).source is None
    flip_byte(done.path, keep_time=True)
    assert [one.problem for one in verify(in_cache())] == ["its content is not what was put there"]
    again = download(BUILTIN, num_transitions=60)
    assert (again.was_cached, again.sha256) == (False, done.sha256)


def test_verify_names_what_is_not_there() -> None:
    assert in_cache() == []
    (found,) = verify([resolve("hopper")])
    assert (found.problem, found.fix) == ("it is not in the cache", f"gq download {HOPPER}")


def test_removal_frees_everything_but_keeps_the_hash_of_the_source(site: Site) -> None:
    site.start()
    done = download(D4RL_HOPPER)
    entry = resolve(D4RL_HOPPER)
    raw = entry.raw_folder
    raw.mkdir()
    (raw / "hopper_medium-v2.hdf5.part").write_bytes(b"0" * 1000)
    source = read_record(entry).source
    assert remove(entry) == done.size_bytes + 1000
    assert not done.path.exists()
    assert not raw.exists()
    assert (read_record(entry).source, read_record(entry).stored) == (source, None)
    assert state_of(entry) == "absent"
    assert remove(entry) == 0
    write_minari((site.root / MINARI_FILE).parent)
    (site.root / D4RL_FILE).write_bytes((site.root / MINARI_FILE).read_bytes())
    with pytest.raises(GqError, match="not the file that it should be"):
        download(D4RL_HOPPER)


def test_removal_of_a_simulation_leaves_nothing() -> None:
    path = download(BUILTIN, num_transitions=60).path
    assert remove(resolve(BUILTIN)) > 0
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == []


def test_one_dataset_is_removed_and_no_other(site: Site) -> None:
    site.start()
    download("hopper")
    download(D4RL_HOPPER)
    remove(resolve("hopper"))
    assert [entry.id for entry in in_cache()] == [D4RL_HOPPER]
    load_dataset(D4RL_HOPPER)


def test_what_killed_processes_left_is_cleared_away(cached_hopper: Path) -> None:
    folder = cached_hopper.parent
    (folder / ".medium.hdf5.99.partial").write_bytes(b"half a file")
    (folder / ".medium.hdf5.json.99.partial").write_bytes(b"half a record")
    (folder / ".expert.hdf5.99.partial").write_bytes(b"of another dataset")
    (folder / "medium.download").mkdir()
    (folder / "medium.download" / "main_data.hdf5").write_bytes(b"raw")
    assert download("hopper").was_cached
    left = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    assert left == {"medium.hdf5", "medium.hdf5.json", ".expert.hdf5.99.partial"}


def test_who_has_to_wait_is_told() -> None:
    entry = resolve("hopper")
    notes: list[str] = []
    told, entered = threading.Event(), threading.Event()

    def note(text: str) -> None:
        notes.append(text)
        told.set()

    def wait() -> None:
        with holding(entry, note):
            entered.set()

    with holding(entry):
        thread = threading.Thread(target=wait)
        thread.start()
        assert told.wait(PATIENCE_S)
        assert notes == [f"waiting for another process that is getting {HOPPER}"]
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_cache_can_be_loaded_from(cached_hopper: Path) -> None:
    os.utime(cached_hopper)
    cached_hopper.parent.chmod(0o555)
    try:
        assert load_dataset("hopper").num_episodes == 12
    finally:
        cached_hopper.parent.chmod(0o755)


@pytest.mark.usefixtures("cached_hopper")
def test_a_cache_that_was_moved_is_still_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tmp_path / "home", tmp_path / "elsewhere", copy_function=shutil.copyfile)  # with new times
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "elsewhere"))
    assert load_dataset("hopper").num_episodes == 12
    assert [one.problem for one in verify(in_cache())] == [""]
