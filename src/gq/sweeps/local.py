"""Members as processes of this machine, some at a time; everything may be killed, the launcher included."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gq.errors import Interrupted, UsageError
from gq.files import write_json
from gq.runs.state import is_held, last_step
from gq.signals import StopRequest
from gq.sweeps import folder as on_disk
from gq.sweeps.folder import MemberStatus, Sweep
from gq.sweeps.plan import Member
from gq.threads import num_cores

POLL_S = 0.1
LOOK_S = 1.0  # between looks at what members log
MAX_FRUITLESS = 3  # kills in a row without a new checkpoint, after which a member has failed
FIRST_GUESS_BYTES = 1 << 30  # of memory for a member, until one was seen
LOG_TAIL = 2_000  # bytes of a member's messages in which its error is looked for
INTERRUPTED = 130
STOPPING = "{}: members save and end; once more kills them"


@dataclass(frozen=True)
class LocalOptions:
    """How members share this machine."""

    jobs: int = 1
    gpus: tuple[str, ...] = ()  # jobs take them in turn, so that two jobs on one GPU have half of it each
    watch: Callable[[list[MemberStatus]], None] = lambda statuses: None
    say: Callable[[str], None] = lambda text: None


@dataclass
class Child:
    """A member that runs as a process of this launcher."""

    member: Member
    command: list[str]
    process: "subprocess.Popen[bytes]"
    slot: int
    first_step: int


def default_threads(jobs: int) -> int:
    """Return how many threads a member of a new sweep gets: its share of the cores, or OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, num_cores() // jobs)


def run_members(sweep: Sweep, members: Sequence[Member], options: LocalOptions) -> list[MemberStatus]:
    """Run members that are neither finished nor failed, and return what all of them are then.

    Raises:
        UsageError: no job is allowed.
        GqError: another launcher works on the sweep.
        Interrupted: SIGINT, SIGTERM or `gq sweep stop`; the members have saved everything.
    """
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs} runs nothing", hint="for example --jobs 2")
    with on_disk.launching(sweep), StopRequest(options.say, STOPPING) as stop:
        sweep.stop_file.unlink(missing_ok=True)
        return Launcher(sweep, members, options, stop).run()


@dataclass
class Launcher:
    """The state of a launch."""

    sweep: Sweep
    members: Sequence[Member]
    options: LocalOptions
    stop: StopRequest
    children: list[Child] = field(default_factory=list)
    fruitless: dict[str, int] = field(default_factory=dict)  # kills in a row without a new checkpoint
    largest: int = 0  # bytes of the largest member seen so far

    def run(self) -> list[MemberStatus]:
        """Start members while there is room, until none is left."""
        waiting, looked = list(self.members), 0.0
        while True:
            self.reap(waiting)
            if self.stop.requested or self.sweep.stop_file.exists():
                self.end_all()
                reason = self.stop.requested or "gq sweep stop"
                hint = "repeat the command to continue"
                raise Interrupted(f"the sweep was stopped by {reason}, everything is saved", hint=hint)
            self.start_some(waiting)
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                self.look()
            if not waiting and not self.children:
                break
            time.sleep(POLL_S)
        found = self.statuses()
        self.options.watch(found)
        return found

    def statuses(self) -> list[MemberStatus]:
        """Return what the members of this launch are doing."""
        starts = on_disk.count_starts(self.sweep)
        return [on_disk.status_of(self.sweep, member, starts) for member in self.members]

    def look(self) -> None:
        """Show where members are, and measure their memory."""
        self.options.watch(self.statuses())
        for child in self.children:
            self.largest = max(self.largest, peak_bytes(child.process.pid))

    def start_some(self, waiting: list[Member]) -> None:
        """Start what there is room for; members that another process runs, left by a killed launcher, count too."""
        others = 0
        for member in list(waiting):
            if len(self.children) + others >= self.options.jobs:
                return
            run = self.sweep.run(member.name)
            if on_disk.is_claimed(self.sweep.claim_file(member.name)) or is_held(run / ".lock"):
                others += 1
            elif self.sweep.failure(member.name).is_file() or not self.sweep.next_command(member):
                waiting.remove(member)
            elif self.children and free_bytes() < 1.2 * (self.largest or FIRST_GUESS_BYTES):
                return
            elif child := self.start(member):
                waiting.remove(member)
                self.children.append(child)
            else:
                others += 1

    def start(self, member: Member) -> Child | None:
        """Start a member; None if somebody else has just done so."""
        descriptor = on_disk.claim(self.sweep.claim_file(member.name))
        if descriptor is None:
            return None
        try:
            command = self.sweep.next_command(member)
            if not command:
                return None
            step = last_step(self.sweep.run(member.name))
            slot = min(set(range(self.options.jobs)) - {child.slot for child in self.children})
            on_disk.record_event(self.sweep, member.name, "start", step=step)
            process = spawn(command, self.sweep.log(member.name), self.environment(slot), descriptor)
        finally:
            os.close(descriptor)
        training = f"resumed at step {step}" if step else "started"
        self.options.say(f"{member.name}: {training if command[0] == 'train' else 'evaluating'}")
        return Child(member, command, process, slot, step)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the member in a slot: its share of cores, and its GPU."""
        changes = {"OMP_NUM_THREADS": str(self.sweep.threads)}
        if self.options.gpus:
            changes["CUDA_VISIBLE_DEVICES"] = self.options.gpus[slot % len(self.options.gpus)]
        return {**os.environ, **changes}

    def reap(self, waiting: list[Member]) -> None:
        """Take note of the members that have ended; one that was killed is started again."""
        for child in [child for child in self.children if child.process.poll() is not None]:
            self.children.remove(child)
            name, code = child.member.name, child.process.returncode
            on_disk.record_event(self.sweep, name, "end", code=code)
            if code == 0 and (command := self.sweep.next_command(child.member)) != child.command:
                if command:
                    waiting.insert(0, child.member)
                else:
                    self.options.say(f"{name}: finished")
            elif code == INTERRUPTED or self.stop.requested:
                self.options.say(f"{name}: interrupted")
            elif code < 0 and self.may_try_again(child):
                self.options.say(f"{name}: killed by {signal.Signals(-code).name}, starting it again")
                waiting.insert(0, child.member)
            elif not is_held(self.sweep.run(name) / ".lock"):  # else somebody trains it by hand
                message = last_message(self.sweep.log(name), code)
                write_json(self.sweep.failure(name), {"code": code, "message": message})
                self.options.say(f"{name}: failed, {message}")

    def may_try_again(self, child: Child) -> bool:
        """Whether a killed member gets another try: not after some kills without a new checkpoint."""
        name = child.member.name
        has_moved = last_step(self.sweep.run(name)) > child.first_step
        self.fruitless[name] = 0 if has_moved else self.fruitless.get(name, 0) + 1
        return self.fruitless[name] < MAX_FRUITLESS

    def end_all(self) -> None:
        """Let all members save and end; a second signal kills them."""
        for child in self.children:
            child.process.terminate()
        try:
            while self.children:
                self.reap([])
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            for child in self.children:
                child.process.kill()
            raise


def spawn(words: list[str], log: Path, environment: dict[str, str], descriptor: int) -> "subprocess.Popen[bytes]":
    """Start a member's command, which holds the descriptor, and with it the member's lock, while it lives."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "gq", *words, "-q", "--no-progress"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C comes to the launcher alone, which passes it on
            pass_fds=[descriptor] if os.name != "nt" else (),
        )


def stop_sweep(sweep: Sweep, timeout_s: float = 60.0) -> list[str]:
    """Let whoever runs a sweep stop, and members whose launcher was killed too; return those that still run.

    Raises:
        GqError: the folder cannot be written.
    """
    write_json(sweep.stop_file, {"process": os.getpid()})
    limit = time.monotonic() + timeout_s
    asked = set[int]()
    while running := [m.name for m in sweep.members if on_disk.is_claimed(sweep.claim_file(m.name))]:
        if not is_held(sweep.folder / ".lock"):
            for pid in holders([sweep.claim_file(name) for name in running]) - asked:
                asked.add(pid)
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
        if time.monotonic() > limit:
            return running
        time.sleep(POLL_S)
    return []


def holders(files: Sequence[Path]) -> set[int]:
    """Return the processes of this machine that have one of the files open; empty where there is no /proc."""
    wanted, found = {str(file.resolve()) for file in files}, set[int]()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(link.readlink()) in wanted:
                found.add(int(link.parts[2]))
    return found


def last_message(log: Path, code: int) -> str:
    """Return what a member said at its end: its error's first line, or its exit code."""
    with suppress(OSError):
        lines = log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        if code > 0 and lines:
            return lines[-1]
    return f"killed by {signal.Signals(-code).name} {MAX_FRUITLESS} times" if code < 0 else f"exit code {code}"


def free_bytes() -> float:
    """Return the memory that a new process may take here, within the limits of a container; infinite if unknown."""
    found = [float("inf")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        cgroup = Path("/sys/fs/cgroup")
        found.append(int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    return min(found)


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had; 0 if unknown."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return 0
