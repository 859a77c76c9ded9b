"""One HTTP request: redirects, a token that only its own host sees, and which failures may pass."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

from gq import __version__
from gq.errors import GqError
from gq.files import parse_whole_number

TIMEOUT_S = 30.0
PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
HINTS = {  # for what trying again does not mend
    401: "set HF_TOKEN to a token that may read it",
    404: "it is not there: see gq download --list; HF_ENDPOINT and GQ_D4RL_URL name the servers",
}


class BrokenTransferError(Exception):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s  # what the server asks for


class PastEndError(BrokenTransferError):
    """More of a file was there already than the server has."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, keeping the size and hash that a Hub announces on the way to its storage.

    The token is shown again only where a redirect stays on the host that it is for.
    """

    def __init__(self, origin: tuple[str, str], token: str) -> None:
        self.origin, self.token = origin, token
        self.linked: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Note X-Linked-Etag and X-Linked-Size, and do what urllib does."""
        self.linked |= {name: headers[name] for name in ("X-Linked-Etag", "X-Linked-Size") if headers[name]}
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and self.token and origin_of(newurl) == self.origin:
            authorize(request, self.token)
        return request


def origin_of(url: str) -> tuple[str, str]:
    """Return the scheme and the host with its port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def authorize(request: urllib.request.Request, token: str) -> None:
    """Add a token in a way that urllib does not pass on to redirects."""
    request.add_unredirected_header("Authorization", f"Bearer {token}")


def open_url(
    url: str, headers: Mapping[str, str], *, token: str = "", hint: str = ""
) -> tuple[http.client.HTTPResponse, dict[str, str]]:
    """Return an open answer, and the X-Linked headers of redirects before it.

    Raises:
        BrokenTransferError: trying again may help; PastEndError if the range asked for lies beyond the end.
        GqError: the server refuses for good.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"gq/{__version__}", **headers})
    redirects = Redirects(origin_of(url), token)
    if token:
        authorize(request, token)
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"{error.code} {error.reason}"
        if error.code == 416:
            raise PastEndError("the server's file is shorter than what arrived of it") from error
        if error.code in PASSING_STATUSES:
            raise BrokenTransferError(f"the server answers {answer}", wait_s=asked_wait_s(error.headers)) from error
        raise GqError(f"cannot download {url}: {answer}", hint=HINTS.get(error.code, hint)) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise BrokenTransferError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    return response, redirects.linked


def asked_wait_s(headers: Any) -> float:
    """Return the seconds that Retry-After, a number or a date, asks to wait; 0 without one."""
    value = headers["Retry-After"] or "0"
    if (seconds := parse_whole_number(value)) is not None:
        return float(seconds)
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
