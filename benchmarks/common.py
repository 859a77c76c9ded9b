"""What the benchmarks share: contenders that take turns in processes of their own, tables, and their JSON.

It is also imported under the interpreter of the peers, so it needs nothing but Python.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Cell = str | float | int | None
Turn = Callable[..., dict[str, Any]]  # takes what `Contender.turn` was given; returns what it returns


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks with tables have."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")


def add_contender_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add those of benchmarks whose contenders are processes."""
    add_options(parser)
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH", help="where the peers are installed")
    parser.add_argument("--rounds", type=int, default=rounds, help="that everybody takes in turns")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def pin_threads(num_threads: int) -> None:
    """Give the processes that are started from now on so many threads, with gq's settings for all alike."""
    from gq import threads

    threads.prepare()
    os.environ["OMP_NUM_THREADS"] = str(num_threads)


# --- contenders -------------------------------------------------------------------------------------------------------


class Contender:
    """A process that runs a benchmark's script with --worker, and answers each line it gets with one."""

    def __init__(self, script: str, python: str, options: argparse.Namespace, **settings: Any) -> None:
        """Start it; `settings` are what `serve` passes on."""
        command = [python, script, "--worker", json.dumps({"threads": options.threads, **settings})]
        errors = None if options.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.answers: list[dict[str, Any]] = []  # to all turns but those that were to warm up
        self.missing: str | None = self._read().get("missing")

    def turn(self, *arguments: Any, counts: bool = True) -> dict[str, Any]:
        """Let it work; return its answer."""
        assert self.process.stdin
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        answer = self._read()
        if failed := answer.get("missing"):
            self.close()
            raise SystemExit(f"a contender broke off: {failed}")
        if counts:
            self.answers.append(answer)
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "the process failed, see --verbose"}

    def each(self, key: str) -> list[float]:
        """Return a number of each turn."""
        return [answer[key] for answer in self.answers]

    def median(self, key: str) -> float:
        """Return the median over turns."""
        return statistics.median(self.each(key))

    def close(self) -> None:
        """End it at once: nothing is lost, and libraries may take seconds to end by themselves."""
        self.process.kill()
        self.process.communicate()


def serve(settings: str, make: Callable[..., Turn]) -> None:
    """Be a contender: make what takes turns from the settings, and take them until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    chosen = json.loads(settings)
    try:
        import torch

        torch.set_num_threads(chosen.pop("threads"))
        turn = make(**chosen)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(*json.loads(line))), file=answers, flush=True)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that something takes, of the passing time (`wall`) and of this process's (`cpu`)."""
    began = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}


def memory_bytes(line: str) -> int:
    """Return this process's resident set, now (`VmRSS`, Linux only) or at its largest (`VmHWM`)."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also remembers the process that this one was forked from
        return int(status.read_text().split(f"{line}:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- tables -----------------------------------------------------------------------------------------------------------


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, str]:
    """Return the median of how many times as fast we are, round by round, and the range of the rounds."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return statistics.median(found), f"{min(found):.2f} to {max(found):.2f}"


class Table:
    """Rows under a heading, printed as they come."""

    def __init__(self, title: str, columns: dict[str, tuple[int, str]]) -> None:
        """Take each column's name, width and format; the first one is aligned to the left."""
        self.title, self.columns = title, columns
        self.rows: list[dict[str, Cell]] = []
        self.notes: list[str] = []
        print(title)
        self._print(list(columns))

    def add(self, *cells: Cell) -> None:
        """Add a row; None is shown as a dash."""
        self.rows.append(dict(zip(self.columns, cells, strict=True)))
        formats = [text for _, text in self.columns.values()]
        shown = [cell if isinstance(cell, str) else "-" if cell is None else format(cell, text)
                 for cell, text in zip(cells, formats, strict=True)]  # fmt: skip
        self._print(shown)

    def note(self, text: str) -> None:
        """Add a line under the rows."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def _print(self, cells: list[str]) -> None:
        first, *others = zip(cells, self.columns.values(), strict=True)
        line = f"  {first[0]:{first[1][0]}}" + "".join(f"{cell:>{width}}" for cell, (width, _) in others)
        print(line.rstrip(), flush=True)


class Report:
    """The tables of a script."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tables: list[Table] = []

    def table(self, title: str, columns: dict[str, tuple[int, str]]) -> Table:
        """Begin a table."""
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def save(self) -> None:
        """Write what was asked for with --json: the tables, the command and the machine."""
        if not self.options.json:
            return
        from gq.files import write_json

        tables = [{"title": table.title, "rows": table.rows, "notes": table.notes} for table in self.tables]
        command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        write_json(self.options.json, {"command": command, "machine": machine(), "tables": tables})


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    from gq.envs.engines import versions
    from gq.threads import num_cores

    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    name = models[0] if models else platform.processor()
    return {"cpu": name, "cores": num_cores(), "gpu": gpu, "versions": versions()}


def begin(parser: argparse.ArgumentParser, make: Callable[..., Any], *, rounds: int) -> argparse.Namespace:
    """Return a benchmark's options with its threads pinned; in the process of a contender serve that, and end."""
    add_contender_options(parser, rounds=rounds)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, make)
        sys.exit()
    pin_threads(options.threads)
    return options
