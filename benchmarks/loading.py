"""From a dataset's file to batches of windows: seconds until the first one, windows per second, memory.

    python benchmarks/loading.py [--rows 200000] [--contenders ...] [--peers-python PATH] [--rounds 5]
    python benchmarks/loading.py --task Humanoid-v5 --rows 1000000 --train      # columns of more than 1 GiB

A file of random episodes is written first, uncompressed as gq writes them. Each contender is a process of its own that
reads it from the disk's cache, makes it ready and draws batches of windows as tensors, in turns with the others. `gq`
keeps the data on the device, `gq streamed` fetches batches ahead from where they lie; both check what they read, and
make the hash by which a run knows its data. `published` draws as the program of the paper does: for each window a
slice, a padding and the discounted sum of all rewards that follow. `plain` is that loop with returns and normalised
observations made once. `d3rlpy` is its replay buffer. All times are the process's, medians; ratios are to the fastest
that is not gq's, their range that of the rounds; memory is what the process grew by until the first batch was there.

The second table is an update of the sizes --train on data that lie on --device and on data that are fetched, by the
process's time on a CPU and by the passing one on a GPU, where only the former can be captured.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import Contender, Report, begin, memory_bytes, ratios, timed

MAX_TIMESTEP = 1000
WIDTHS = {"Hopper-v5": (11, 3), "Humanoid-v5": (348, 17)}
OWN, OTHERS = ("gq", "gq streamed"), ("plain", "published", "d3rlpy")


# --- gq ---------------------------------------------------------------------------------------------------------------


def read_own(path: str, task: str) -> Any:
    from gq.data.reading import read_trajectories

    return read_trajectories(Path(path), task=task)


def index_own(name: str, trajectories: Any, num_steps: int, device: str = "cpu") -> Any:
    """Return the sampler; what normalises the observations is computed as well."""
    from gq.data.windows import StreamingSampler, WindowSampler

    trajectories.observation_statistics()
    return (WindowSampler if name == "gq" else StreamingSampler)(trajectories, num_steps, device=device)


# --- the others -------------------------------------------------------------------------------------------------------


def read_arrays(path: str) -> dict[str, Any]:
    """Read a file as everybody does."""
    import h5py

    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def split(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return episodes."""
    import numpy as np

    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    parts = {name: np.split(array, ends[:-1]) for name, array in arrays.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def discounted_sums(rewards: Any, discount: float) -> Any:
    """Return the sum of what follows, from each step on."""
    import numpy as np

    sums = np.zeros_like(rewards)
    sums[-1] = rewards[-1]
    for step in reversed(range(len(rewards) - 1)):
        sums[step] = rewards[step] + discount * sums[step + 1]
    return sums


class Loop:
    """Windows one by one, padded on the left."""

    def __init__(self, arrays: dict[str, Any], num_steps: int, *, prepared: bool) -> None:
        """Take columns; if `prepared`, returns are summed up and observations normalised now, not in each window."""
        import numpy as np

        self.num_steps, self.prepared, self.generator = num_steps, prepared, np.random.default_rng(0)
        self.mean, self.std = arrays["observations"].mean(axis=0), arrays["observations"].std(axis=0) + 1e-6
        if prepared:
            arrays = {**arrays, "observations": (arrays["observations"] - self.mean) / self.std}
        self.episodes = split(arrays)
        if prepared:
            for episode in self.episodes:
                episode["returns"] = np.cumsum(episode["rewards"][::-1])[::-1]
        lengths = np.array([len(episode["rewards"]) for episode in self.episodes])
        self.shares = lengths / lengths.sum()

    def sample(self, batch_size: int) -> list[Any]:
        """Return observations, actions, returns-to-go, timesteps and what is real, as tensors."""
        import numpy as np
        import torch

        shape = (batch_size, self.num_steps)
        widths = {name: self.episodes[0][name].shape[1:] for name in ("observations", "actions")}
        batch = {name: np.zeros((*shape, *width), np.float32) for name, width in widths.items()}
        batch |= {"returns": np.zeros(shape, np.float32), "timesteps": np.zeros(shape, int)}
        batch["valid"] = np.zeros(shape, bool)
        for row, number in enumerate(self.generator.choice(len(self.episodes), batch_size, p=self.shares)):
            window = self.window(self.episodes[number])
            for name, column in batch.items():
                column[row, self.num_steps - len(window["actions"]) :] = window[name]
        return [torch.from_numpy(column) for column in batch.values()]

    def window(self, episode: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        start = self.generator.integers(len(episode["rewards"]))
        rows = slice(start, start + self.num_steps)
        found = {name: column[rows] for name, column in episode.items()}
        if not self.prepared:
            found["observations"] = (found["observations"] - self.mean) / self.std
            found["returns"] = discounted_sums(episode["rewards"][start:], 1.0)[: self.num_steps]
        timesteps = np.arange(start, start + len(found["actions"]))
        return {**found, "timesteps": timesteps, "valid": True}


class Bought:
    """d3rlpy's replay buffer, and its way to tensors."""

    def __init__(self, arrays: dict[str, Any], num_steps: int) -> None:
        from d3rlpy.dataset import MDPDataset

        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        self.buffer = MDPDataset(**{name: arrays[name].astype("float32") for name in names})
        self.num_steps = num_steps

    def sample(self, batch_size: int) -> Any:
        from d3rlpy.torch_utility import TorchTrajectoryMiniBatch

        batch = self.buffer.sample_trajectory_batch(batch_size, self.num_steps)
        return TorchTrajectoryMiniBatch.from_batch(batch, "cpu")


def index_other(name: str, arrays: dict[str, Any], num_steps: int) -> Any:
    if name == "d3rlpy":
        return Bought(arrays, num_steps)
    return Loop(arrays, num_steps, prepared=name == "plain")


# --- the processes ----------------------------------------------------------------------------------------------------


def make(contender: str, file: str, task: str, batch_size: int, num_steps: int) -> Callable[[int], dict[str, Any]]:
    """Return what opens the file, draws a first batch and then others, and tells the process's seconds of each."""
    import h5py  # noqa: F401  what importing takes is not counted

    is_own, missing = contender in OWN, {}
    if is_own:
        import gq.data.reading
        import gq.data.windows  # noqa: F401
    elif contender == "d3rlpy":
        import d3rlpy  # noqa: F401
    before = memory_bytes("VmRSS")

    def turn(num_batches: int) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def keep(name: str, work: Callable[[], Any]) -> float:
            return timed(lambda: found.update({name: work()}))["cpu"]

        read = keep("data", lambda: read_own(file, task) if is_own else read_arrays(file))
        ready = keep("sampler", lambda: (index_own if is_own else index_other)(contender, found["data"], num_steps))
        digest = keep("hash", lambda: found["data"].sha256()) if is_own else 0.0
        sampler = found["sampler"]
        first = keep("batch", lambda: sampler.sample(batch_size))
        grown = memory_bytes("VmRSS") - before
        missing.setdefault("bytes", grown)  # later, memory that was freed is used again
        took = timed(lambda: [sampler.sample(batch_size) for _ in range(num_batches)])
        window = {clock: seconds / num_batches / batch_size for clock, seconds in took.items()}
        stages = {"read": read, "index": ready, "hash": digest, "total": read + ready + digest + first}
        return {**stages, "wall": window["wall"], "cpu": window["cpu"], "bytes": missing["bytes"]}

    return turn


# --- the tables -------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, file: Path, report: Report) -> None:
    """Print what becomes of the file."""
    settings = {"file": str(file), "task": options.task, "batch_size": options.batch_size, "num_steps": options.context}
    contenders = {}
    for name in options.contenders:
        python = options.peers_python if name == "d3rlpy" else sys.executable
        contenders[name] = Contender(__file__, python, options, contender=name, **settings)
    running = {name: contender for name, contender in contenders.items() if not contender.missing}
    for _ in range(options.rounds):
        for contender in running.values():
            contender.turn(options.batches)
    others = [name for name in OTHERS if name in running] or [next(iter(running))]
    fastest = min(others, key=lambda name: running[name].median("cpu"))
    title = (
        f"{options.task}, {options.rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB; batches of {options.batch_size} "
        f"windows of {options.context} steps, {options.threads} threads, {options.rounds} rounds"
    )
    seconds = dict.fromkeys(("read s", "index s", "hash s", "first s"), (9, ".3f"))
    columns = {"contender": (14, ""), **seconds, "windows/CPU s": (15, ",.0f"), "as fast": (9, ".1f")}
    table = report.table(title, {**columns, "range": (17, ""), "MB": (8, ",.0f"), "MB/file": (9, ".2f")})
    for name, contender in contenders.items():
        contender.close()
        if contender.missing:
            table.note(f"{name} was not measured: {contender.missing}")
            continue
        ratio, spread = ratios(running[fastest].each("cpu"), contender.each("cpu"))
        read, index, digest, total = (contender.median(key) for key in ("read", "index", "hash", "total"))
        grown = contender.answers[0]["bytes"]
        shown = (grown / 1e6, grown / file.stat().st_size)
        table.add(name, read, index, digest or None, total, 1 / contender.median("cpu"), ratio, spread, *shown)
    table.note(f"first: from the file to the first batch; as fast: windows, against {fastest}")


def measure_training(options: argparse.Namespace, file: Path, report: Report) -> None:
    """Print what an update takes on data that lie on the device and on data that are fetched."""
    import torch
    from training import SHAPES, WARM_UPS, make_own

    torch.set_num_threads(options.threads)
    trajectories, clock = read_own(str(file), "Hopper-v5"), "cpu" if options.device == "cpu" else "wall"
    columns = {"size": (14, ""), "on the device ms": (18, ".1f"), "fetched ms": (12, ".1f"), "as fast": (9, ".3f")}
    table = report.table(f"an update of {options.batch_size} windows, {options.device}", {**columns, "range": (17, "")})
    for size in options.train:
        shape = replace(SHAPES["13m" if size == "13m" else "paper"], batch_size=options.batch_size)
        shape = replace(shape, num_steps=options.context)
        samplers = {name: index_own(name, trajectories, options.context, options.device) for name in OWN}
        updates = {name: make_own("qwen3", shape, 0.1, options.device, sampler) for name, sampler in samplers.items()}
        times: dict[str, list[float]] = {name: [] for name in updates}
        for number in range(options.rounds + 1):
            for name, update in updates.items():
                count = options.turn if number else WARM_UPS[options.device]
                took = timed(partial(take, update, count, options.device))[clock] / count
                if number:
                    times[name].append(took)
        ratio, spread = ratios(times["gq"], times["gq streamed"])
        resident, streamed = (1e3 * sorted(found)[len(found) // 2] for found in times.values())
        table.add(size, resident, streamed, ratio, spread)


def take(update: Callable[[], Any], num_updates: int, device: str) -> None:
    """Take updates, until the device is done."""
    import torch

    for _ in range(num_updates):
        update()
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Write a file and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Hopper-v5", choices=WIDTHS)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--contenders", nargs="+", default=[*OWN, *OTHERS], choices=[*OWN, *OTHERS])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--batches", type=int, default=50, help="of a turn")
    parser.add_argument("--train", nargs="*", default=["13m"], choices=("1m", "13m"), help="sizes of the second table")
    parser.add_argument("--turn", type=int, default=1, metavar="N", help="updates in a row, in the second table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the second table")
    options = begin(parser, make, rounds=5)
    from reading import write_flat

    report = Report(options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.hdf5"
        write_flat(file, WIDTHS[options.task], options.rows)
        measure(options, file, report)
        if options.train and options.task == "Hopper-v5":
            measure_training(options, file, report)
    report.save()


if __name__ == "__main__":
    main()
