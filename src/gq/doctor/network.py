"""Whether the servers that hold datasets can be reached."""

import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from gq import __version__
from gq.datasets.download import DEFAULT_D4RL_URL
from gq.datasets.hub import DEFAULT_ENDPOINT, is_offline
from gq.doctor.findings import Finding

TIMEOUT_S = 5.0
HOSTS = {"HF_ENDPOINT": DEFAULT_ENDPOINT, "GQ_D4RL_URL": DEFAULT_D4RL_URL}


def examine_hosts(*, offline: bool) -> list[Finding]:
    """Ask each server for its headers, all at once; with `offline` or HF_HUB_OFFLINE, none."""
    if offline or is_offline():
        return [Finding("network", "note", "not asked: " + ("--offline" if offline else "HF_HUB_OFFLINE is set"))]
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        return list(pool.map(examine_host, HOSTS))


def examine_host(variable: str) -> Finding:
    """Ask the server that a variable names for its headers; that it answers at all is enough."""
    url = os.environ.get(variable) or HOSTS[variable]
    if not url.startswith(("http://", "https://")):
        text = f"{variable} is {url}, not a web address"
        return Finding("network", "problem", text, f"unset {variable}")
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": f"gq/{__version__}"})
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return unreachable(url, f"it says {error.code} {error.reason}")
    except (OSError, ValueError) as error:
        return unreachable(url, str(getattr(error, "reason", error) or error))
    return Finding("network", "ok", f"{url} answers after {1000 * (time.monotonic() - began):.0f} ms")


def unreachable(url: str, reason: str) -> Finding:
    """Return what to say of a server that cannot be reached; gq has data that need none."""
    return Finding("network", "warning", f"{url}: {reason}; gq download builtin/hopper/medium needs no network")
