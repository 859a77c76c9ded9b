"""Reading datasets of a million transitions: seconds, and memory against the size of the data.

    python benchmarks/reading.py --transitions 1000000

Writes files of random episodes (gzip as D4RL does, float64 in episodes as Minari does, gq's own) to a temporary folder
and reads each in a process of its own. `float32` is what the transitions take in memory; the peak is what the process
grew by while reading. The ratio of times is to reading the same arrays with h5py alone, unchecked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

WIDTHS = {"hopper": (11, 3), "humanoid": (348, 17)}
BLOCK = 1000  # the episodes' length
READER = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, h5py
from gq.data.reading import read_trajectories
path = Path(sys.argv[1])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with h5py.File(path) as file:
    file[next(iter(file))]
before, start = peak(), time.perf_counter()
if sys.argv[2] == "gq":
    data = read_trajectories(path, task=sys.argv[3])
    assert data.num_dropped_rows == 0
else:
    with h5py.File(path) as file:
        names = [name for name in file] if "observations" in file else [f"{e}/{n}" for e in file for n in file[e]]
        data = {name: file[name][()] for name in names}
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak() - before}))
"""


def write_flat(path: Path, widths: tuple[int, int], num_rows: int, **storage: object) -> None:
    """Write a D4RL file, float32, in episodes of one length."""
    generator = np.random.default_rng(0)
    columns = {"observations": (widths[0],), "actions": (widths[1],), "rewards": ()}
    with h5py.File(path, "w") as file:
        for name, shape in columns.items():
            column = file.create_dataset(name, (num_rows, *shape), "f4", **storage)
            for row in range(0, num_rows, 10 * BLOCK):
                values = generator.standard_normal((min(10 * BLOCK, num_rows - row), *shape), np.float32)
                column[row : row + len(values)] = values if name != "actions" else np.tanh(values)
        ends = np.arange(num_rows) % BLOCK == BLOCK - 1
        file.create_dataset("terminals", data=np.zeros(num_rows, bool), **storage)
        file.create_dataset("timeouts", data=ends, **storage)


def write_minari(path: Path, widths: tuple[int, int], num_rows: int) -> None:
    """Write Minari's layout: float64 observations, one more than actions, a group an episode."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(num_rows // BLOCK):
            group = file.create_group(f"episode_{number}")
            group["observations"] = generator.standard_normal((BLOCK + 1, widths[0]))
            group["actions"] = np.tanh(generator.standard_normal((BLOCK, widths[1]), np.float32))
            group["rewards"] = generator.standard_normal(BLOCK)
            group["terminations"] = np.zeros(BLOCK, bool)
            group["truncations"] = np.arange(BLOCK) == BLOCK - 1


def read(path: Path, how: str, task: str) -> dict[str, float]:
    """Read a file in a fresh process."""
    command = [sys.executable, "-c", READER, str(path), how, task]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    number = arguments.transitions // BLOCK * BLOCK
    gzip = {"compression": "gzip", "chunks": True}
    print(
        f"{'file':22} {'disk':>9} {'float32':>9} {'gq, s':>7} {'h5py, s':>8} {'peak':>9} {'/file':>7} {'/float32':>8}"
    )
    for environment, layout in [("hopper", "d4rl"), ("hopper", "gq"), ("humanoid", "gq"), ("humanoid", "minari")]:
        widths = WIDTHS[environment]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{environment}.hdf5"
            if layout == "minari":
                write_minari(path, widths, number)
            else:
                write_flat(path, widths, number, **(gzip if layout == "d4rl" else {}))
            task = {"hopper": "Hopper-v5", "humanoid": "Humanoid-v5"}[environment]
            read(path, "gq", task)  # warms up the disk cache and the machine's memory
            ours, bare = read(path, "gq", task), read(path, "h5py", task)
            size, needed = path.stat().st_size, number * (4 * sum(widths) + 6)
            print(
                f"{environment + ' ' + layout:22} {size / 1e6:6,.0f} MB {needed / 1e6:6,.0f} MB {ours['seconds']:7.2f} "
                f"{bare['seconds']:8.2f} {ours['bytes'] / 1e6:6,.0f} MB {ours['bytes'] / size:7.2f} "
                f"{ours['bytes'] / needed:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
