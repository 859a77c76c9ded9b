"""Run the tests in every arithmetic, with one and two threads, idle and under load; print a table.

    .venv/bin/python scripts/test_matrix.py                            all rows, about ten minutes each on two cores
    .venv/bin/python scripts/test_matrix.py --rows default avx2        some of them
    .venv/bin/python scripts/test_matrix.py --python OTHER/bin/python     with another torch, say

A row is an environment for pytest. Every row runs all tests but the slow ones, in one process for each core.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What makes torch and oneDNN compute as on a processor without AVX-512 and bfloat16.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "GQ_PRECISION": "float32",
}
ROWS = {
    "default": {},
    "again": {},
    "and again": {},
    "float32": {"GQ_PRECISION": "float32"},
    "bfloat16": {"GQ_PRECISION": "bfloat16"},
    "avx2": AVX2,
    "avx2, bfloat16": AVX2 | {"GQ_PRECISION": "bfloat16"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "load": {},
    "own recordings": {"GQ_FIXTURES": str(ROOT / "tests" / "data" / "recorded")},  # as in a clone without others
}
COUNTS = ("passed", "failed", "error", "skipped")
BUSY = "while True: pass"


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def run(python: str, row: str, arguments: list[str]) -> dict[str, float]:
    """Run the tests; return how many passed and so on, the seconds, those of CPU, and the largest process's memory."""
    environment = {**os.environ, **ROWS[row], "PYTHONPATH": str(ROOT / "src")}
    command = [python, "-m", "pytest", "-o", "addopts=--strict-markers", "-m", "not slow", "--tb=short", "-n"]
    command += [str(num_cores()), "--dist", "loadfile", *arguments]
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_cores() if row == "load" else 0)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # with what the processes used that it waited for
        for other in busy:
            other.kill()
            other.wait()
        file.seek(0)
        output = file.read()
    last = output.splitlines()[-1] if output else ""
    print(f"{row}: {last}", file=sys.stderr)
    if status:
        print(output[-20_000:], file=sys.stderr, flush=True)
    counts = {name: float((re.search(rf"(\d+) {name}", last) or [0, 0])[1]) for name in COUNTS}
    return counts | {
        "seconds": time.monotonic() - began,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "MB": usage.ru_maxrss / 1000,  # of the largest process
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows (default: all)")
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="interpreters, each with gq's requirements"
    )
    parser.add_argument("arguments", nargs="*", help="for pytest, after --: files, -k EXPRESSION")
    given = parser.parse_args()
    columns = [*COUNTS, "seconds", "CPU seconds", "MB"]
    print("| torch | row | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " ---: |" * len(columns))
    for python in given.python:
        shown = "import torch; print(torch.__version__)"
        version = subprocess.run([python, "-c", shown], capture_output=True, text=True, check=True).stdout.strip()
        for row in given.rows:
            found = run(python, row, given.arguments)
            print(f"| {version} | {row} | " + " | ".join(f"{found[name]:.0f}" for name in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
