"""Feed damaged and malicious files and texts to everything that reads what others wrote.

    python scripts/fuzz.py --inputs 100000
    python scripts/fuzz.py --inputs 500 --target datasets --seed 7 --keep found

An input may give a valid result or a `GqError` that is told in four lines with a hint. All else is a finding: another
exception, a hang, a crash of the process, or more memory than a limit that no small file needs. Inputs are small valid
files, made on the spot, that were changed blindly or by what their format means, and texts, some of them made by
Hypothesis. The same seed gives the same inputs. They are read in a child process, which is replaced when it dies.
"""

import argparse
import faulthandler
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads should not fork
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

from fuzz_changes import hypothesis_texts  # noqa: E402
from fuzz_targets import Attempt, Target, targets  # noqa: E402

CPU_LIMIT_S = 5.0  # of one input
WALL_LIMIT_S = 60.0  # for those that wait, or loop in C; other processes of the machine slow inputs down
MEMORY_LIMIT = 768 << 20  # bytes beyond what the process has before the first input
MAX_KEPT = 3  # inputs of each kind of finding
STATE = struct.Struct("<qdqq")  # the number of the input at hand, when it began, how many were read, refused


@dataclass(frozen=True)
class Finding:
    """An input that ended as none may."""

    target: str
    number: int  # of the input
    what: str
    place: str  # where it came from: the last line of gq in the traceback
    detail: str = ""


@dataclass
class Result:
    """What became of a target's inputs."""

    target: Target
    num_read: int = 0
    num_refused: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_inputs(self) -> int:
        """All of them."""
        return self.num_read + self.num_refused + len(self.findings)


class TooLongError(BaseException):
    """An input took more than CPU_LIMIT_S."""


def fuzz(target: Target, num_inputs: int, *, seed: int, keep: Path | None = None) -> Result:
    """Feed a target with the inputs 0, 1, ... of a seed."""
    result, begin = Result(target), time.monotonic()
    shared = mmap.mmap(-1, STATE.size)
    with tempfile.TemporaryDirectory(prefix="gq-fuzz-") as work:
        folder, log = Path(work), Path(work) / "findings.jsonl"
        first = 0
        while first < num_inputs:
            shared[:] = STATE.pack(first, 0.0, 0, 0)
            child = os.fork()
            if not child:
                work_through(target, range(first, num_inputs), seed, folder, shared, keep)
            try:
                status = watch(child, shared)
            except BaseException:
                os.kill(child, signal.SIGKILL)
                raise
            number, _, num_read, num_refused = STATE.unpack(shared[:])
            result.num_read, result.num_refused = result.num_read + num_read, result.num_refused + num_refused
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit(f"{target.name}: the input {number} cannot be made")
            if os.WIFEXITED(status):
                break
            killer = signal.Signals(os.WTERMSIG(status)).name
            what = f"no end after {WALL_LIMIT_S:g} s" if killer == "SIGKILL" else f"the process died of {killer}"
            found = Finding(target.name, number, what, "in a library")
            with log.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            keep_input(keep, found, folder / "input")
            first = number + 1
        if log.exists():
            result.findings = [Finding(**json.loads(line)) for line in log.read_text().splitlines()]
    result.seconds = time.monotonic() - begin
    return result


def watch(child: int, shared: mmap.mmap) -> int:
    """Wait for a child process, kill it when an input does not end, and return its status."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        _, began, *_ = STATE.unpack(shared[:])
        if began and time.monotonic() - began > WALL_LIMIT_S:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.02)


def work_through(
    target: Target, numbers: Sequence[int], seed: int, work: Path, shared: mmap.mmap, keep: Path | None
) -> None:
    """Feed a target, in a child process, and end it."""
    os.environ |= {"GQ_HOME": str(work / "home"), "HF_HUB_OFFLINE": ""}
    warnings.simplefilter("ignore")
    faulthandler.disable()  # the parent says how this process died
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the threads of the parent are not here, and would be waited for
    os.fsync = lambda _: None  # nothing here is about power failures
    status = 1
    try:
        seeds = work / "seeds"
        shutil.rmtree(seeds, ignore_errors=True)
        seeds.mkdir()
        make = target.load(seeds)
        warm_up(make)
        limit_memory()
        num_read = num_refused = 0
        for number in numbers:
            shutil.rmtree(work / "input", ignore_errors=True)
            (work / "input").mkdir()
            shared[:] = STATE.pack(number, 0.0, num_read, num_refused)
            attempt = make(Random(f"{seed}/{target.name}/{number}"), work / "input")
            shared[:] = STATE.pack(number, time.monotonic(), num_read, num_refused)
            problem = outcome(attempt)
            if problem is None or not problem:
                num_read, num_refused = num_read + (problem is None), num_refused + (problem is not None)
                continue
            found = Finding(target.name, number, *problem)
            with (work / "findings.jsonl").open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            keep_input(keep, found, work / "input")
        shared[:] = STATE.pack(numbers[-1] + 1, 0.0, num_read, num_refused)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def warm_up(make: Any) -> None:
    """Make one input, so that everything is imported before memory is limited."""
    with tempfile.TemporaryDirectory() as folder:
        outcome(make(Random(0), Path(folder)))


def limit_memory() -> None:
    """Let this process have no more than MEMORY_LIMIT beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcome(attempt: Attempt) -> tuple[str, str, str] | tuple[()] | None:
    """Return None for a valid result, nothing for a proper refusal, else what is wrong, where, and all about it."""
    from gq.errors import GqError

    try:
        with cpu_limit():
            attempt()
        return None
    except GqError as error:
        problem = problem_of(error)
        return (problem, place_of(error), str(error)[:2_000]) if problem else ()
    except (Exception, TooLongError, SystemExit) as error:
        what = "more memory than allowed" if is_short_of_memory(error) else type(error).__name__
        return what, place_of(error), "".join(traceback.format_exception(error, limit=-6))[-3_000:]


@contextmanager
def cpu_limit() -> Iterator[None]:
    """Raise TooLongError when what follows takes more than CPU_LIMIT_S."""

    def stop(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def problem_of(error: Any) -> str:
    """Return what is wrong with a refusal, or nothing."""
    from gq.cli.errors import hint_of, tidy

    message, hint = tidy(str(error)), tidy(hint_of(error))
    if not message or not hint:
        return "no message" if hint else "no hint"
    if len(message) + len(hint) > 2_000 or not (message + hint).isprintable():
        return "a message that fills the screen"
    return "more memory than allowed" if is_short_of_memory(error) else ""


def is_short_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out somewhere on the way to an error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, RuntimeError) and "DefaultCPUAllocator" in str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def place_of(error: BaseException) -> str:
    """Return the innermost line of gq in an error's traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/gq/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}" if frames else "outside gq"


def keep_input(keep: Path | None, finding: Finding, source: Path) -> None:
    """Keep an input, and what it did, unless there are enough like it."""
    if keep is None:
        return
    kind = "".join(letter if letter.isalnum() else "-" for letter in f"{finding.target}-{finding.what}-{finding.place}")
    if len(list(keep.glob(f"{kind}-*"))) < MAX_KEPT:
        target = keep / f"{kind}-{finding.number}"
        shutil.copytree(source, target, dirs_exist_ok=True)
        (target / "finding.txt").write_text(
            f"{finding.what} at {finding.place}\n\n{finding.detail}\n", errors="replace"
        )


def table(results: Sequence[Result]) -> str:
    """Return what became of all inputs, in Markdown."""
    lines = ["| target | what is read | inputs | refused | read | findings |", "|---|---|--:|--:|--:|--:|"]
    for one in results:
        counts = (one.num_inputs, one.num_refused, one.num_read, len(one.findings))
        lines.append(f"| {one.target.name} | {one.target.what} | {' | '.join(f'{count:,}' for count in counts)} |")
    total = [
        sum(column)
        for column in zip(*((r.num_inputs, r.num_refused, r.num_read, len(r.findings)) for r in results), strict=True)
    ]
    return "\n".join([*lines, f"| all | | {' | '.join(f'{count:,}' for count in total)} |"])


def listed(results: Sequence[Result]) -> list[str]:
    """Return each kind of finding once: how often, and its first input."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for result in results:
        for finding in result.findings:
            kinds.setdefault((finding.target, finding.what, finding.place), []).append(finding.number)
    return [
        f"{target}: {what} at {place}, {len(numbers)} times, first input {numbers[0]}"
        for (target, what, place), numbers in kinds.items()
    ]


def main() -> None:
    """Feed the chosen targets, and print a table and the findings."""
    known = targets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, shared among the targets")
    parser.add_argument("--target", action="append", choices=[target.name for target in known], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for inputs that are findings")
    asked = parser.parse_args()
    chosen = [target for target in known if not asked.target or target.name in asked.target]
    hypothesis_texts()  # before the children are forked, which then all have them
    total, results = sum(target.weight for target in chosen), []
    for target in chosen:
        result = fuzz(target, -(-asked.inputs * target.weight // total), seed=asked.seed, keep=asked.keep)
        results.append(result)
        print(
            f"{target.name}: {result.num_inputs:,} inputs, {len(result.findings)} findings, {result.seconds:.0f} s",
            file=sys.stderr,
        )
    print(table(results))
    for line in listed(results):
        print(f"- {line}")
    sys.exit(any(result.findings for result in results))


if __name__ == "__main__":
    main()
