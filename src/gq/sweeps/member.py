"""One member in a process of its own, as a cluster starts it."""

import os
import signal
import time
from contextlib import suppress

from gq.errors import UsageError
from gq.sweeps import slurm
from gq.sweeps.folder import Sweep
from gq.sweeps.local import INTERRUPTED, Launcher, LocalOptions, Stop

POLL_S = 0.5


def run_member(sweep: Sweep, name: str) -> int:
    """Run a member of a sweep here, unless it has finished or somebody has it; return its exit code.

    SIGTERM lets it save and end. So does SIGUSR1, which Slurm sends before the time is up; it is queued again then.

    Args:
        name: of the member, or its place in sweep.json.

    Raises:
        UsageError: there is no such member.
    """
    chosen = [m for place, m in enumerate(sweep.members) if name in (m.name, str(place))]
    if not chosen:
        raise UsageError(f"{sweep.name} has no member {name}", hint=f"see gq sweep status {sweep.name}")
    member = chosen[0]
    asked: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in numbers}
    try:
        launcher = Launcher(sweep, [member], LocalOptions(), Stop())
        child = launcher.start(member)
        if child is None:
            return 0
        launcher.children = [child]
        while launcher.children:
            if asked and not launcher.stop.reason:  # once: a second signal would end it before it has saved
                launcher.stop.reason = signal.Signals(asked[0]).name
                with suppress(OSError):
                    child.process.terminate()
            launcher.reap([])
            time.sleep(POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = int(child.process.returncode)
    # -SIGTERM: it was told so before it had begun to listen.
    if asked and asked[0] not in (signal.SIGTERM, signal.SIGINT) and code in (INTERRUPTED, -signal.SIGTERM):
        slurm.requeue(dict(os.environ))
        time.sleep(POLL_S)
    return code
