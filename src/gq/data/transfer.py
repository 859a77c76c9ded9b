"""Fetch a file over HTTP: resumed where it broke off, checked, and whole or absent.

Bytes go to `<name>.part`; `<name>.part.json` keeps what the server said of the file, so that another process, or the
same one after a kill, asks only for the rest (`Range`), and only of the same file (`If-Range` and its ETag).
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from gq import __version__
from gq.errors import GqError
from gq.files import sha256, sync, write_error, write_json

NUM_ATTEMPTS = 4  # in a row that bring nothing new
BACK_OFF_S = 0.5  # before the second attempt; doubles with each further one
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 18
PASSING_STATUSES = {408, 416, 425, 429, 500, 502, 503, 504}

Report = Callable[[int, int | None], None]


def silent(_num_bytes: int, _total_bytes: int | None) -> None:
    """Report nothing."""


class BrokenTransferError(Exception):
    """An attempt that failed in a way that the next one may not."""


@dataclass(frozen=True)
class Announced:
    """What the server says of a file; None where it does not."""

    etag: str | None = None
    num_bytes: int | None = None
    sha256: str | None = None


class LinkedHeaders(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but keep the size and hash that a Hub announces on the way to its storage."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Note X-Linked-Etag and X-Linked-Size, then do what urllib does."""
        self.found |= {name: headers[name] for name in ("X-Linked-Etag", "X-Linked-Size") if headers[name]}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, target: Path, *, magic: bytes, report: Report = silent, hint: str = "") -> str:
    """Fetch a file and return its SHA-256; a target that is there already is only hashed.

    Args:
        magic: what the file must start with; saved error pages do not.
        report: called with the bytes so far and the total, or None where the server does not say.
        hint: the next step when the download fails.

    Raises:
        GqError: the server refuses, keeps breaking off, or sends something else; what arrived stays for the next try.
    """
    if target.is_file():
        return sha256(target)
    part = target.with_name(target.name + ".part")
    num_failures, furthest = 0, size_of(part)  # a restart is no progress until it passes what was reached before
    while True:
        try:
            announced = receive(url, part, magic, report, hint)
            digest = sha256(part)
            break
        except BrokenTransferError as error:
            reason = str(error)
        except OSError as error:  # of the disk: those of the network are BrokenTransferErrors
            raise write_error(target, error) from error
        num_failures = 1 if size_of(part) > furthest else num_failures + 1
        furthest = max(furthest, size_of(part))
        if num_failures == NUM_ATTEMPTS:
            raise GqError(f"cannot download {url}: {reason}", hint=hint)
        time.sleep(BACK_OFF_S * 2 ** (num_failures - 1))
    if announced.sha256 not in (None, digest):
        discard(part)
        raise GqError(f"cannot download {url}: what arrived has not the sha256 that the server announces", hint=hint)
    sync(part)
    part.replace(target)
    discard(part)
    return digest


def receive(url: str, part: Path, magic: bytes, report: Report, hint: str) -> Announced:
    """Make one attempt to complete a part file, and return what the server announced.

    Raises:
        BrokenTransferError: trying again may help.
        GqError: the server refuses for good.
        OSError: the part file cannot be written.
    """
    known = stored_announcement(part)
    num_bytes = size_of(part) if known.etag else 0
    if known.etag and num_bytes == known.num_bytes:
        return known
    headers = {"User-Agent": f"gq/{__version__}", "Accept-Encoding": "identity"}
    if known.etag and num_bytes:
        headers |= {"Range": f"bytes={num_bytes}-", "If-Range": known.etag}
    response, linked = open_url(urllib.request.Request(url, headers=headers), part, hint)
    with response:
        announced = announcement(response, linked)
        chunk = read_chunk(response)
        if response.status == 206:
            first_byte = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
            if announced.etag != known.etag or not first_byte or int(first_byte[1]) != num_bytes:
                discard(part)
                raise BrokenTransferError("the server goes on with another file")
        else:
            if not chunk.startswith(magic):
                raise BrokenTransferError(f"the server sends something else, which starts with {chunk[:20]!r}")
            num_bytes = 0
            write_json(note_of(part), asdict(announced))
        with part.open("ab" if num_bytes else "wb") as file:
            report(num_bytes, announced.num_bytes)
            while chunk:
                file.write(chunk)
                num_bytes += len(chunk)
                report(num_bytes, announced.num_bytes)
                chunk = read_chunk(response)
    if announced.num_bytes not in (None, num_bytes):
        raise BrokenTransferError(f"it broke off after {num_bytes:,} of {announced.num_bytes:,} bytes")
    return announced


def open_url(request: urllib.request.Request, part: Path, hint: str) -> tuple[http.client.HTTPResponse, dict[str, str]]:
    """Return an open answer, and the X-Linked headers of redirects before it.

    Raises:
        BrokenTransferError: trying again may help; after status 416 from the start.
        GqError: the server refuses for good.
    """
    links = LinkedHeaders()
    try:
        response = urllib.request.build_opener(links).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is as long as the file, or longer
            discard(part)
        if error.code in PASSING_STATUSES:
            raise BrokenTransferError(f"the server answers {error.code} {error.reason}") from error
        raise GqError(f"cannot download {request.full_url}: {error.code} {error.reason}", hint=hint) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise BrokenTransferError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    return response, links.found


def announcement(response: http.client.HTTPResponse, linked: dict[str, str]) -> Announced:
    """Read what an answer, and the redirects before it, say of the whole file.

    Raises:
        BrokenTransferError: they contradict each other.
    """
    headers = response.headers
    etag = headers["ETag"]
    total = re.search(r"/(\d+)$", headers["Content-Range"] or "") if response.status == 206 else None
    num_sent = total[1] if total else headers["Content-Length"]
    num_bytes = headers["X-Linked-Size"] or linked.get("X-Linked-Size") or num_sent
    if num_sent and num_sent != num_bytes:
        raise BrokenTransferError(f"the server sends {int(num_sent):,} bytes of a file that has {int(num_bytes):,}")
    digest = (headers["X-Linked-Etag"] or linked.get("X-Linked-Etag") or etag or "").strip('"')
    return Announced(
        etag=etag if etag and not etag.startswith("W/") else None,  # If-Range takes no weak ones
        num_bytes=int(num_bytes) if num_bytes else None,
        sha256=digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None,
    )


def read_chunk(response: http.client.HTTPResponse) -> bytes:
    """Read on; empty at the end, which may come too early.

    Raises:
        BrokenTransferError: the connection failed.
    """
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(str(error) or type(error).__name__) from error


def note_of(part: Path) -> Path:
    """Return where the announcement for a part file is kept."""
    return part.with_name(part.name + ".json")


def stored_announcement(part: Path) -> Announced:
    """Return what the server said when the part file was begun; empty if that is lost."""
    try:
        return Announced(**json.loads(note_of(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # without it the file is fetched from the start
        return Announced()


def size_of(part: Path) -> int:
    """Return the bytes that arrived so far."""
    return part.stat().st_size if part.exists() else 0


def discard(part: Path) -> None:
    """Remove a part file and its announcement."""
    part.unlink(missing_ok=True)
    note_of(part).unlink(missing_ok=True)
