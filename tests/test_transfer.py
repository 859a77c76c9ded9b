"""One file over HTTP: redirects and tokens, waiting, resuming with what a server offers, room on the disk."""

import errno
import hashlib
import json
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from downloading import isolate, plain_server
from gq.datasets import fetch as transfer
from gq.datasets.fetch import Expected, RemoteFile, fetch
from gq.errors import GqError

MAGIC = b"\x89HDF\r\n\x1a\n"
CONTENT = MAGIC + bytes(range(256)) * 100
OTHER = MAGIC + bytes(range(255, -1, -1)) * 100
DATE, LATER = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not wait, and return how long it would have been."""
    isolate(monkeypatch)
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    return waits


def get(url: str, target: Path, **settings: object) -> str:
    return fetch(RemoteFile(url=url, magic=MAGIC, hint="next", **settings), target)  # type: ignore[arg-type]


# Redirects


def test_a_redirect_is_followed_and_its_announced_hash_checked(tmp_path: Path) -> None:
    """The Hub answers with a redirect to its storage, whose own ETag is not the file's hash."""
    linked = {"X-Linked-Size": str(len(CONTENT)), "Location": "/storage"}
    wrong, right = '"' + "0" * 64 + '"', f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    target = tmp_path / "file.hdf5"
    with plain_server({"/storage": CONTENT}) as server:
        server.settings["answers"] = [(302, {"X-Linked-Etag": wrong, **linked})]
        with pytest.raises(GqError, match="not have the sha256"):
            get(f"{server.url}/file", target)
        assert list(tmp_path.iterdir()) == []
        server.settings["answers"] = [(302, {"X-Linked-Etag": right, **linked})]
        assert get(f"{server.url}/file", target) == hashlib.sha256(CONTENT).hexdigest()
        assert target.read_bytes() == CONTENT


def authorizations(server: object) -> list[str | None]:
    return [headers.get("Authorization") for _, headers in server.log]  # type: ignore[attr-defined]


def test_a_token_goes_to_its_host_and_to_no_other(tmp_path: Path) -> None:
    with plain_server({"/storage": CONTENT}) as storage, plain_server({}) as hub:
        hub.settings["answers"] = [(302, {"Location": f"{storage.url}/storage"})]
        get(f"{hub.url}/file", tmp_path / "file", token="secret")
        assert authorizations(hub) == ["Bearer secret"]
        assert authorizations(storage) == [None]


def test_a_token_goes_along_where_a_redirect_stays_on_its_host(tmp_path: Path) -> None:
    with plain_server({"/renamed": CONTENT}) as hub:
        hub.settings["answers"] = [(307, {"Location": "/renamed"})]
        get(f"{hub.url}/file", tmp_path / "file", token="secret")
        assert authorizations(hub) == ["Bearer secret"] * 2


def test_without_a_token_none_is_sent_and_401_names_the_variable(tmp_path: Path) -> None:
    with plain_server({"/file": CONTENT}, answers=[(401, {})]) as server:
        with pytest.raises(GqError, match="401") as caught:
            get(f"{server.url}/file", tmp_path / "file")
        assert "HF_TOKEN" in caught.value.hint
        assert authorizations(server) == [None]


# Waiting


def test_retry_after_is_honoured(tmp_path: Path, quick: list[float]) -> None:
    in_ten_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    answers = [(503, {"Retry-After": "7"}), (429, {"Retry-After": in_ten_seconds}), (503, {"Retry-After": "soon"})]
    notes: list[str] = []
    with plain_server({"/file": CONTENT}, answers=answers) as server:
        fetch(RemoteFile(url=f"{server.url}/file", magic=MAGIC), tmp_path / "file", note=notes.append)
    assert quick[0] == 7
    assert 8 < quick[1] <= 10
    assert quick[2] == 4 * transfer.BACK_OFF_S
    assert notes[0] == "the server answers 503 Service Unavailable; trying again in 7 s"
    assert len(notes) == 2


def test_a_wait_that_is_too_long_ends_the_download(tmp_path: Path, quick: list[float]) -> None:
    with plain_server({"/file": CONTENT}, answers=[(503, {"Retry-After": "3600"})]) as server:
        with pytest.raises(GqError, match=r"503 .* and asks to wait 3,600 s"):
            get(f"{server.url}/file", tmp_path / "file")
        assert len(server.log) == 1
    assert quick == []


def test_attempts_are_spaced_further_and_further(
    tmp_path: Path, quick: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BACK_OFF_S", 1.0)
    with plain_server({}, answers=[(500, {})] * 9) as server, pytest.raises(GqError, match="500"):
        get(f"{server.url}/file", tmp_path / "file")
    assert quick == [1, 2, 4]


# Resuming


@pytest.mark.parametrize(
    ("settings", "if_range"),
    [
        ({}, '"1-2"'),
        ({"etag": None, "modified": DATE}, DATE),
        ({"etag": 'W/"1"', "modified": DATE}, DATE),  # weak ones are not for If-Range
        ({"etag": None}, None),  # nothing to know the file by: from the start
        ({"etag": 'W/"1"'}, None),
    ],
)
def test_what_identifies_a_file_decides_whether_it_is_resumed(
    tmp_path: Path, settings: dict, if_range: str | None
) -> None:
    target = tmp_path / "file"
    with plain_server({"/file": CONTENT}, drop_after=9000, **settings) as server:
        if if_range is None:
            with pytest.raises(GqError, match="broke off after 9,000 of"):
                get(f"{server.url}/file", target)
            server.settings["drop_after"] = None
        assert get(f"{server.url}/file", target) == hashlib.sha256(CONTENT).hexdigest()
        assert server.log[1][1].get("If-Range") == if_range
        assert server.log[1][1].get("Range") == (if_range and "bytes=9000-")
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("before", "after"), [({"etag": '"1"'}, {"etag": '"2"'}), ({"modified": DATE}, {"modified": LATER})]
)
def test_a_file_that_changes_between_attempts_is_fetched_whole(tmp_path: Path, before: dict, after: dict) -> None:
    target, files = tmp_path / "file", {"/file": CONTENT}
    with plain_server(files, etag=None) as server:
        server.settings |= {**before, "drop_after": 9000, "ranges": False}
        with pytest.raises(GqError, match="broke off"):
            get(f"{server.url}/file", target)
        files["/file"] = OTHER
        server.settings |= {**after, "drop_after": None, "ranges": True}
        get(f"{server.url}/file", target)
    assert target.read_bytes() == OTHER


def test_a_server_that_goes_on_in_a_changed_file_all_the_same_is_noticed(tmp_path: Path) -> None:
    target, files = tmp_path / "file", {"/file": CONTENT}
    with plain_server(files, drop_after=9000, ranges=False) as server:
        with pytest.raises(GqError, match="broke off"):
            get(f"{server.url}/file", target)
        files["/file"] = OTHER + b"longer"  # the same ETag, as a server may give that makes it of the name
        server.settings |= {"drop_after": None, "ranges": True}
        get(f"{server.url}/file", target)
    assert target.read_bytes() == OTHER + b"longer"


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path: Path) -> None:
    target = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    note = {"validator": '"1-2"', "num_bytes": len(CONTENT) + 100, "sha256": None}
    (tmp_path / "file.part.json").write_text(json.dumps(note))
    with plain_server({"/file": CONTENT}, answers=[(416, {})]) as server:
        get(f"{server.url}/file", target)
        assert [headers.get("Range") is None for _, headers in server.log] == [False, True]
    assert target.read_bytes() == CONTENT


def test_a_part_without_its_announcement_is_fetched_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(OTHER[:5000])
    for damaged in (None, "{", '{"unknown": 1}'):
        if damaged is not None:
            (tmp_path / "file.part.json").write_text(damaged)
        with plain_server({"/file": CONTENT}) as server:
            get(f"{server.url}/file", tmp_path / "file")
            assert server.log[0][1].get("Range") is None
        assert (tmp_path / "file").read_bytes() == CONTENT
        (tmp_path / "file").rename(tmp_path / "file.part")


def test_a_server_that_does_not_say_how_long_the_file_is(tmp_path: Path) -> None:
    totals = set()
    with plain_server({"/file": CONTENT}, length=False) as server:
        remote = RemoteFile(url=f"{server.url}/file", magic=MAGIC)
        fetch(remote, tmp_path / "file", report=lambda _num_bytes, total: totals.add(total))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert totals == {None}


# What is known beforehand


def test_a_known_hash_is_checked_on_arrival_and_on_what_lies_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    wrong = Expected(sha256="00ff", says="the list", hint="look")
    with plain_server({"/file": CONTENT}) as server:
        for _ in range(2):
            with pytest.raises(GqError, match=r"its sha256 begins with [0-9a-f]{4}, the list has 00ff") as caught:
                get(f"{server.url}/file", target, expected=wrong)
            assert caught.value.hint == "look"
            assert list(tmp_path.iterdir()) == []
            target.write_bytes(CONTENT)
        target.unlink()
        right = Expected(sha256=hashlib.sha256(CONTENT).hexdigest()[:8], says="the list", hint="look")
        for _ in range(2):
            get(f"{server.url}/file", target, expected=right)
        assert len(server.log) == 2


# The disk


def test_a_disk_without_room_is_named_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _folder: usage(3_100_000))
    target = tmp_path / "file"
    with plain_server({"/file": CONTENT}) as server:
        with pytest.raises(GqError, match=r"has no room: 4 MB are needed .* 3 MB are free") as caught:
            get(f"{server.url}/file", target, spare_bytes=4_000_000)
        assert "GQ_HOME" in caught.value.hint
        assert list(tmp_path.iterdir()) == []
        get(f"{server.url}/file", target, spare_bytes=3_000_000)


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["free"])
    target = tmp_path / "file"
    with plain_server({"/file": CONTENT}, drop_after=20_000, ranges=False) as server:
        with pytest.raises(GqError, match="broke off"):
            get(f"{server.url}/file", target)
        monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _folder: usage(len(CONTENT) - 20_000))
        server.settings["ranges"] = True
        get(f"{server.url}/file", target)
    assert target.read_bytes() == CONTENT


def test_a_disk_that_fills_up_is_named_and_the_part_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take a part of a chunk before the next one fails."""
    target, plain_open, room = tmp_path / "file", Path.open, [6000]

    class Nearly:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self) -> "Nearly":
            return self

        def __exit__(self, *_anything: object) -> None:
            self.file.close()

        def write(self, data: memoryview) -> int:
            if room[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.file.write(data[: room[0]])
            room[0] -= taken
            return taken

    def limited(path: Path, *arguments: object, **settings: object) -> object:
        file = plain_open(path, *arguments, **settings)  # type: ignore[call-overload]
        return Nearly(file) if path.name.endswith(".part") and arguments == ("ab",) else file

    with plain_server({"/file": CONTENT}) as server:
        monkeypatch.setattr(Path, "open", limited)
        with pytest.raises(GqError, match=r"cannot write .*file: No space left on device") as caught:
            get(f"{server.url}/file", target)
        assert "free some space" in caught.value.hint
        assert (tmp_path / "file.part").stat().st_size == 6000
        monkeypatch.setattr(Path, "open", plain_open)
        get(f"{server.url}/file", target)
        assert server.log[-1][1]["Range"] == "bytes=6000-"
    assert target.read_bytes() == CONTENT
