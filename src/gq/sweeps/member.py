"""One member in a process of its own, as a cluster starts it."""

import os

from gq.errors import GqError, Interrupted, UsageError
from gq.paths import json_or_empty
from gq.signals import StopRequest
from gq.sweeps import slurm
from gq.sweeps.folder import Sweep, is_claimed
from gq.sweeps.local import STOPPING, Launcher, LocalOptions

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # others say that the time is up


def run_member(sweep: Sweep, name: str, options: LocalOptions) -> None:
    """Run a member of a sweep here, unless it has finished or somebody has it.

    SIGTERM lets it save and end. So does SIGUSR1, which Slurm sends before the time is up; it is queued again then.

    Args:
        name: of the member, or its place in sweep.json.

    Raises:
        UsageError: there is no such member.
        GqError: it failed.
        Interrupted: a signal came; everything is saved.
    """
    chosen = [m for place, m in enumerate(sweep.members) if name in (m.name, str(place))]
    if not chosen:
        raise UsageError(f"{sweep.name} has no member {name}", hint=f"see gq sweep status {sweep.name}")
    member = chosen[0]
    if is_claimed(sweep.claim_file(member.name)):
        return
    with StopRequest(options.say, STOPPING) as stop:
        try:
            Launcher(sweep, [member], options, stop).run()
        except Interrupted:
            if stop.requested and stop.requested not in ENDING:
                slurm.requeue(dict(os.environ))
            raise
    if failure := json_or_empty(sweep.failure(member.name)):
        raise GqError(f"{member.name} failed: {failure.get('message')}", hint=f"see {sweep.log(member.name)}")
