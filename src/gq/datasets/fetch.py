"""Fetch a file over HTTP: resumed where it broke off, checked, and whole or absent.

Bytes go to `<name>.part`; `<name>.part.json` keeps what the server said of the file, so that another process, or the
same one after a kill, asks only for the rest (`Range`), and only of the same file (`If-Range`).
"""

import http.client
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gq import __version__
from gq.errors import GqError
from gq.files import parse_json, parse_whole_number, sha256, sync, write_error, write_json

NUM_ATTEMPTS = 4  # in a row that bring nothing new
BACK_OFF_S = 1.0  # before the second attempt; doubles with each further one
LONGEST_WAIT_S = 60.0  # that a server may ask for
NOTABLE_WAIT_S = 2.0
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
HINTS = {  # for what trying again does not help
    401: "set HF_TOKEN to a token that may read it",
    404: "it is not there: see gq download --list; HF_ENDPOINT and GQ_D4RL_URL name the servers",
}

Report = Callable[[int, int | None], None]
Note = Callable[[str], None]


class BrokenTransferError(Exception):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s  # what the server asks for


class PastEndError(BrokenTransferError):
    """More of a file was there already than the server has."""


def silent(*_anything: object) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of a file before it is fetched."""

    sha256: str  # its first digits, or all of them
    says: str  # who says so
    hint: str  # what to do where the file is another one

    def check(self, where: str, digest: str) -> None:
        """Raise GqError if the file at `where`, an address or a path, has another hash."""
        if digest.startswith(self.sha256):
            return
        num_digits = min(12, len(self.sha256))
        message = f"its sha256 begins with {digest[:num_digits]}, {self.says} has {self.sha256[:num_digits]}"
        raise GqError(f"{where} is not the file that it should be: {message}", hint=self.hint)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch."""

    url: str
    magic: bytes  # what it must start with; saved error pages do not
    hint: str = ""  # the next step when it cannot be fetched
    token: str = ""  # shown to the host of the address and to no other
    expected: Expected | None = None
    spare_bytes: int = 0  # that the disk must have room for besides the file


@dataclass(frozen=True)
class FileInfo:
    """What the server says of a file; None where it does not."""

    validator: str | None = None  # a strong ETag or a date, for If-Range
    num_bytes: int | None = None
    sha256: str | None = None


def fetch(remote: RemoteFile, target: Path, *, report: Report = silent, note: Note = silent) -> str:
    """Fetch a file and return its SHA-256; a target that is there already is only hashed.

    Args:
        report: called with the bytes so far and the total, or None where the server does not say.
        note: called with a line of text before a wait that people would notice.

    Raises:
        GqError: the server refuses, keeps breaking off or sends something else; or the disk has no room or cannot be
            written. What arrived stays for the next try unless it is wrong.
    """
    part = target.with_name(target.name + ".part")
    try:
        if target.is_file():
            digest = sha256(target)
            _check_content(remote, target, None, digest)
            return digest
        info = _receive_all(remote, part, report, note)
        digest = sha256(part)
        _check_content(remote, part, info.sha256, digest)
        sync(part)
        part.replace(target)
        _discard(part)
    except OSError as error:  # of the disk: those of the network are BrokenTransferErrors
        raise write_error(target, error) from error
    return digest


def _check_content(remote: RemoteFile, path: Path, sent_sha256: str | None, digest: str) -> None:
    """Compare a file's hash with what the server announced and with what is known; a wrong file is removed."""
    try:
        if sent_sha256 not in (None, digest):
            message = "what arrived does not have the sha256 that the server announces"
            raise GqError(f"cannot download {remote.url}: {message}", hint=remote.hint)
        if remote.expected:
            remote.expected.check(remote.url, digest)
    except GqError:
        _discard(path)
        raise


def _receive_all(remote: RemoteFile, part: Path, report: Report, note: Note) -> FileInfo:
    """Complete a part file in as many attempts as it takes, and return what the server announced."""
    num_failures, furthest = 0, _size_of(part)  # a restart is no progress until it passes what was reached before
    while True:
        try:
            return _receive(remote, part, report)
        except BrokenTransferError as error:
            reason, wait_s = str(error), error.wait_s
        num_failures = 1 if _size_of(part) > furthest else num_failures + 1
        furthest = max(furthest, _size_of(part))
        if wait_s > LONGEST_WAIT_S:
            reason, num_failures = f"{reason} and asks to wait {wait_s:,.0f} s", NUM_ATTEMPTS
        if num_failures >= NUM_ATTEMPTS:
            raise GqError(f"cannot download {remote.url}: {reason}", hint=remote.hint)
        wait_s = max(wait_s, BACK_OFF_S * 2 ** (num_failures - 1))
        if wait_s >= NOTABLE_WAIT_S:
            note(f"{reason}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s)


def _receive(remote: RemoteFile, part: Path, report: Report) -> FileInfo:
    """Make one attempt to complete a part file, and return what the server announced.

    Raises BrokenTransferError where trying again may help, GqError where it does not, OSError of the disk.
    """
    known = _stored_info(part)
    num_bytes = _size_of(part) if known.validator else 0
    if known.validator and num_bytes == known.num_bytes:
        return known
    headers = {"Accept-Encoding": "identity"}
    if known.validator and num_bytes:
        headers |= {"Range": f"bytes={num_bytes}-", "If-Range": known.validator}
    try:
        response, linked = _open_url(remote.url, headers, token=remote.token, hint=remote.hint)
    except PastEndError:
        _discard(part)
        raise
    with response:
        info = _file_info(response, linked)
        if remote.expected and info.sha256:
            remote.expected.check(remote.url, info.sha256)
        if response.status == 206:
            _check_continuation(response, part, known, info)
            _check_room(remote, part, known, num_bytes)
            return _append(response, part, known, report)
        _check_room(remote, part, info, 0)
        head = _read_from(response.read, len(remote.magic))
        if not head.startswith(remote.magic):
            raise BrokenTransferError(f"the server sends something else, which starts with {head[:20]!r}")
        part.unlink(missing_ok=True)  # first: a kill must not leave bytes of one file with the record of another
        write_json(_note_of(part), asdict(info))
        return _append(response, part, info, report, head)


def _append(
    response: http.client.HTTPResponse, part: Path, info: FileInfo, report: Report, chunk: bytes = b""
) -> FileInfo:
    """Add the body of an answer to a part file, after a chunk of it that was read already; return `info`."""
    num_bytes = _size_of(part)
    report(num_bytes, info.num_bytes)
    with part.open("ab", buffering=0) as file:  # unbuffered: a kill loses one chunk at most
        chunk = chunk or _read_from(response.read1, CHUNK_BYTES)
        while chunk:
            rest = memoryview(chunk)
            while rest:  # a disk that is nearly full takes a part of it
                rest = rest[file.write(rest) :]
            num_bytes += len(chunk)
            report(num_bytes, info.num_bytes)
            chunk = _read_from(response.read1, CHUNK_BYTES)  # what has arrived, at least a byte
    if info.num_bytes not in (None, num_bytes):
        raise BrokenTransferError(f"it broke off after {num_bytes:,} of {info.num_bytes:,} bytes")
    return info


def _check_continuation(response: http.client.HTTPResponse, part: Path, known: FileInfo, info: FileInfo) -> None:
    """Check that a partial answer begins where the part file ends, and is of the same file."""
    first_byte = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
    is_same = (info.validator, info.num_bytes) == (known.validator, known.num_bytes)
    if not is_same or not first_byte or int(first_byte[1]) != _size_of(part):
        _discard(part)
        raise BrokenTransferError("the server continues with another file")


def _check_room(remote: RemoteFile, part: Path, info: FileInfo, num_bytes: int) -> None:
    """Check that the disk has room for what is still to come after `num_bytes`, and for what is made of it."""
    if info.num_bytes is None:
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(part.parent).free + _size_of(part) - num_bytes  # a restart gives the old part back
    needed_bytes = info.num_bytes - num_bytes + remote.spare_bytes
    if needed_bytes > free_bytes:
        message = f"{part.parent} has no room: {needed_bytes / 1e6:,.0f} MB are needed to download and convert"
        hint = "free some space, or let GQ_HOME name a folder on another disk"
        raise GqError(f"{message} {remote.url}, {free_bytes / 1e6:,.0f} MB are free", hint=hint)


def _file_info(response: http.client.HTTPResponse, linked: dict[str, str]) -> FileInfo:
    """Read what an answer, and the redirects before it, say of the whole file."""
    headers = response.headers
    etag = headers["ETag"]
    total = re.search(r"/(\d+)$", headers["Content-Range"] or "") if response.status == 206 else None
    num_sent = parse_whole_number(total[1] if total else headers["Content-Length"] or "")
    num_bytes = parse_whole_number(headers["X-Linked-Size"] or linked.get("X-Linked-Size") or "")
    if None not in (num_sent, num_bytes) and num_sent != num_bytes:
        raise BrokenTransferError(f"the server sends {num_sent:,} bytes of a file that has {num_bytes:,}")
    digest = (headers["X-Linked-Etag"] or linked.get("X-Linked-Etag") or etag or "").strip('"')
    return FileInfo(
        validator=etag
        if etag and not etag.startswith("W/")
        else headers["Last-Modified"],  # If-Range takes no weak ones
        num_bytes=num_sent if num_bytes is None else num_bytes,
        sha256=digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None,
    )


def _read_from(read: Callable[[int], bytes], num_bytes: int) -> bytes:
    """Call a method of an answer that reads; empty at the end, which may come too early."""
    try:
        return read(num_bytes)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(str(error) or type(error).__name__) from error


def _note_of(part: Path) -> Path:
    """Return where what the server said of a part file is kept."""
    return part.with_name(part.name + ".json")


def _stored_info(part: Path) -> FileInfo:
    """Return what the server said when the part file was begun; empty if that is lost."""
    try:
        return FileInfo(**parse_json(_note_of(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # without it the file is fetched from the start
        return FileInfo()


def _size_of(part: Path) -> int:
    """Return the bytes that arrived so far."""
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    """Remove a part file and what the server said of it."""
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


# --- one request ------------------------------------------------------------------------------------------------------


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, keeping the size and hash that a Hub announces on the way to its storage.

    The token is shown again only where a redirect stays on the host that it is for.
    """

    def __init__(self, origin: tuple[str, str], token: str) -> None:
        self.origin, self.token = origin, token
        self.linked: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Note X-Linked-Etag and X-Linked-Size, and do what urllib does. Raises GqError for what is not on the web."""
        _check_scheme(newurl, f"{req.full_url} leads to it")
        self.linked |= {name: headers[name] for name in ("X-Linked-Etag", "X-Linked-Size") if headers[name]}
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and self.token and origin_of(newurl) == self.origin:
            _authorize(request, self.token)
        return request


def _check_scheme(url: str, reason: str = "") -> None:
    """Raise GqError for an address that is neither http nor https: urllib would read files and ftp."""
    if urlsplit(url).scheme not in ("http", "https"):
        where = f": {reason}" if reason else ""
        raise GqError(
            f"{ascii(url)[1:-1][:200]} is not a web address{where}", hint="gq downloads by http and https only"
        )


def origin_of(url: str) -> tuple[str, str]:
    """Return the scheme and the host with its port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _authorize(request: urllib.request.Request, token: str) -> None:
    """Add a token in a way that urllib does not pass on to redirects."""
    request.add_unredirected_header("Authorization", f"Bearer {token}")


def _open_url(
    url: str, headers: Mapping[str, str], *, token: str = "", hint: str = ""
) -> tuple[http.client.HTTPResponse, dict[str, str]]:
    """Return an open answer, and the X-Linked headers of redirects before it."""
    _check_scheme(url)
    request = urllib.request.Request(url, headers={"User-Agent": f"gq/{__version__}", **headers})
    redirects = Redirects(origin_of(url), token)
    if token:
        _authorize(request, token)
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"{error.code} {error.reason}"
        if error.code == 416:
            raise PastEndError("the server's file is shorter than what arrived of it") from error
        if error.code in PASSING_STATUSES:
            raise BrokenTransferError(f"the server answers {answer}", wait_s=_asked_wait_s(error.headers)) from error
        raise GqError(f"cannot download {url}: {answer}", hint=HINTS.get(error.code, hint)) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        if isinstance(getattr(error, "reason", None), socket.gaierror):  # waiting helps with a busy host, not with none
            raise GqError(f"cannot find the host {urlsplit(url).hostname}, to download {url}", hint=hint) from error
        raise BrokenTransferError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    return response, redirects.linked


def _asked_wait_s(headers: Any) -> float:
    """Return the seconds that Retry-After, a number or a date, asks to wait; 0 without one."""
    value = headers["Retry-After"] or "0"
    if (seconds := parse_whole_number(value)) is not None:
        return float(seconds)
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
