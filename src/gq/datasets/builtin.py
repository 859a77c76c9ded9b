"""Built-in datasets: real MuJoCo episodes, simulated from the small policies that come with gq.

For each of five environments there is medium (a partly trained policy, much exploration noise), expert (the best one
found, little noise) and medium-replay (an episode is of one of a few policies along the first part of the search). The
scripts train_builtin_policies, train_neural_policies and package_builtin_policies made them;
`load_policy(name).metadata` says how, and what they measured.

A process steps a few environments in turn and evaluates their policies together; several processes give the same bits.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gq.data.trajectories import Trajectories
from gq.envs.tasks import TASKS
from gq.errors import GqError, UsageError
from gq.files import write_error
from gq.policies.packaged import PackagedPolicy, Slots, load_policy
from gq.threads import num_cores

DEFAULT_NUM_TRANSITIONS = 100_000
TRANSITIONS_PER_WORKER = 20_000  # below, starting a process costs more than it saves

NUM_SLOTS = 8  # environments in a process: more save little time, and their unfinished episodes are thrown away

Progress = Callable[[int, int], None]


class Episode(NamedTuple):
    """One whole episode of T steps."""

    rows: np.ndarray  # float32 [T, S + A + 1]: observation, action, reward
    terminated: bool  # False: stopped by the time limit


def simulate(
    name: str,
    num_transitions: int = DEFAULT_NUM_TRANSITIONS,
    *,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Trajectories:
    """Simulate a built-in dataset of whole episodes.

    Episodes are added in order until there are at least `num_transitions` rows, so the last one may go beyond. Equal
    name, number, seed and engine versions give equal bits, whatever the number of workers.

    Args:
        name: one of `gq.policies.packaged.NAMES`.
        seed: 0 or more; episode i draws its start and its noise from (seed, i).
        num_workers: processes; by default as many as there are cores and it pays for. With 1, this process simulates.
        progress: called after each episode with the rows so far, at most `num_transitions`, and `num_transitions`.

    Raises:
        UsageError: there is no such dataset, or a number is out of range.
        GqError: a worker process failed.
    """
    _check(name, num_transitions, seed)
    if num_workers is None:
        num_workers = max(1, min(num_cores(), num_transitions // TRANSITIONS_PER_WORKER))
    stream = (
        simulate_policy(load_policy(name), seed) if num_workers == 1 else simulate_in_workers(name, seed, num_workers)
    )
    episodes: list[Episode] = []
    num_rows = 0
    with closing(stream):  # ends the workers, also after Ctrl-C
        while num_rows < num_transitions:
            episodes.append(next(stream))
            num_rows += len(episodes[-1].rows)
            progress(min(num_rows, num_transitions), num_transitions)
    return _assemble(name, episodes, {"seed": seed, "num_requested_transitions": num_transitions})


def download_builtin(
    name: str,
    path: Path,
    *,
    num_transitions: int = DEFAULT_NUM_TRANSITIONS,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Simulate a built-in dataset, write it to `path` as a canonical file, and return the path.

    Whoever calls it holds the dataset's lock (`gq.datasets.cache.holding`).

    Raises:
        UsageError: there is no such dataset, or a number is out of range.
        GqError: the file cannot be written, or a worker process failed.
    """
    from gq.data.reading import time_limits, write_canonical

    _check(name, num_transitions, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    trajectories = simulate(name, num_transitions, seed=seed, progress=progress)
    write_canonical(path, trajectories, timeouts=time_limits(trajectories), attributes=trajectories.attributes)
    return path


def _check(name: str, num_transitions: int, seed: int) -> None:
    """Raise UsageError for an unknown name or a number out of range."""
    load_policy(name)
    if num_transitions < 1:
        raise UsageError(f"cannot simulate {num_transitions} transitions", hint="ask for 1 or more")
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", hint="give 0 or more")


def _assemble(name: str, episodes: list[Episode], request: dict[str, int]) -> Trajectories:
    """Put episodes back to back, with their provenance."""
    policy = load_policy(name)
    num_observations = TASKS[policy.env_id].observation_dim
    rows = [episode.rows for episode in episodes]
    offsets = np.cumsum([0] + [len(episode.rows) for episode in episodes], dtype=np.int64)
    terminals = np.zeros(offsets[-1], dtype=bool)
    terminals[offsets[1:] - 1] = [episode.terminated for episode in episodes]
    trajectories = Trajectories(
        observations=np.concatenate([part[:, :num_observations] for part in rows]),
        actions=np.concatenate([part[:, num_observations:-1] for part in rows]),
        rewards=np.concatenate([part[:, -1] for part in rows]),
        terminals=terminals,
        offsets=offsets,
        source=name,
        task=policy.env_id,
    )
    trajectories.attributes.update(_provenance(policy, trajectories), **request)
    return trajectories


def _provenance(policy: PackagedPolicy, trajectories: Trajectories) -> dict[str, str | int | float]:
    """Return what a file should say about where its numbers come from."""
    return {
        "origin": "simulated by gq",
        "licence": "MIT",
        "num_transitions": trajectories.num_transitions,
        "num_episodes": trajectories.num_episodes,
        "return_mean": float(trajectories.returns.mean()),
        "return_std": float(trajectories.returns.std()),
        "policy": f"{policy.metadata['method']}; Gaussian action noise of {policy.noise:g} half action ranges, clipped",
        "policy_num_networks": len(policy.networks),
        "policy_sha256": policy.sha256,
        "policy_return_mean": policy.metadata["return_mean"],
        "policy_return_std": policy.metadata["return_std"],
        "policy_num_episodes": policy.metadata["num_episodes"],
        **{f"{package}_version": version(package) for package in ("gymnasium", "mujoco", "numpy")},
    }


class Simulation:
    """Hold M environments, each in the middle of an episode; episode i draws all its chance from (seed, i)."""

    def __init__(self, policy: PackagedPolicy, environments: list[Any], seed: int, numbers: Iterator[int]) -> None:
        self._policy, self._environments, self._seed, self._numbers = policy, environments, seed, numbers
        task = TASKS[policy.env_id]
        num_slots, self._longest, self._width = len(environments), task.max_episode_steps, task.observation_dim
        num_columns = task.observation_dim + task.action_dim + 1
        self._everyone = np.arange(num_slots)
        self._slots = Slots(policy.networks, num_slots)
        self._observations = np.zeros((num_slots, task.observation_dim))
        self._current = np.zeros((num_slots, num_columns))  # the row that every slot is about to finish
        self._rows = np.zeros((num_slots, self._longest, num_columns), np.float32)
        self._noise = np.zeros((num_slots, self._longest, task.action_dim))
        self._steps = np.zeros(num_slots, np.int64)
        self._episodes = [0] * num_slots
        for slot in range(num_slots):
            self._reset(slot)

    def _reset(self, slot: int) -> None:
        """Begin the next episode in a slot."""
        number = self._episodes[slot] = next(self._numbers)
        generator = np.random.default_rng([self._seed, number])
        self._observations[slot], _ = self._environments[slot].reset(seed=int(generator.integers(2**31)))
        if len(self._policy.networks) > 1:
            self._slots.choose(slot, int(generator.choice(len(self._policy.networks), p=self._policy.probabilities)))
        self._noise[slot] = self._policy.noise * generator.standard_normal(self._noise[slot].shape)
        self._steps[slot] = 0

    def step(self) -> Iterator[tuple[int, Episode]]:
        """Step every environment once; yield the number and content of each episode that ends."""
        noisy = self._slots.act(self._observations) + self._noise[self._everyone, self._steps]
        actions = self._policy.to_box(noisy)  # [M, A]
        self._current[:, : self._width] = self._observations
        self._current[:, self._width : -1] = actions
        terminal = []
        for slot, (environment, action) in enumerate(zip(self._environments, actions, strict=True)):
            self._observations[slot], self._current[slot, -1], terminated, _, _ = environment.step(action)
            terminal.append(terminated)
        self._rows[self._everyone, self._steps] = self._current
        self._steps += 1
        if any(terminal) or self._steps.max() == self._longest:
            yield from self._finish(terminal)

    def _finish(self, terminal: list[bool]) -> Iterator[tuple[int, Episode]]:
        """Yield the episodes that ended, and begin others in their slots."""
        for slot, terminated in enumerate(terminal):
            num_steps = int(self._steps[slot])
            if terminated or num_steps == self._longest:
                yield self._episodes[slot], Episode(self._rows[slot, :num_steps].copy(), bool(terminated))
                self._reset(slot)


def simulate_policy(
    policy: PackagedPolicy, seed: int, *, first: int = 0, stride: int = 1, num_slots: int = NUM_SLOTS
) -> Generator[Episode, None, None]:
    """Yield episodes first, first + stride, ... in this order and without end."""
    from gq.envs.make import make

    # Without Gymnasium's wrappers, which cost a twentieth of a step: `Simulation` keeps the time limit itself.
    environments = [make(TASKS[policy.env_id]).unwrapped for _ in range(num_slots)]
    try:
        simulation = Simulation(policy, environments, seed, count(first, stride))
        finished: dict[int, Episode] = {}
        for number in count(first, stride):
            while number not in finished:
                finished.update(simulation.step())
            yield finished.pop(number)
    finally:
        for environment in environments:
            environment.close()


def simulate_in_workers(name: str, seed: int, num_workers: int) -> Generator[Episode, None, None]:
    """Yield episodes 0, 1, 2, ... without end; worker w of W simulates episodes w, w + W, w + 2 W, ...

    Closing the generator ends the workers.

    Raises:
        GqError: a worker ended by itself.
    """
    task = TASKS[load_policy(name).env_id]
    num_columns = task.observation_dim + task.action_dim + 1
    workers: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    queues: list[queue.SimpleQueue[Episode | GqError]] = [queue.SimpleQueue() for _ in range(num_workers)]
    try:
        for first, episodes in enumerate(queues):
            workers.append(start_worker(f"serve({name!r}, {seed}, {first}, {num_workers})"))
            readers.append(threading.Thread(target=_read_ahead, args=(workers[-1], num_columns, episodes)))
            readers[-1].start()
        for index in count():
            received = queues[index % num_workers].get()
            if isinstance(received, GqError):
                raise received
            yield received
    finally:
        for worker in workers:
            worker.kill()
        for reader in readers:
            reader.join()
        for worker in workers:
            worker.communicate()  # reaps it and closes its pipes


def _read_ahead(
    worker: subprocess.Popen[bytes], num_columns: int, episodes: "queue.SimpleQueue[Episode | GqError]"
) -> None:
    """Take a worker's episodes as they come, so that it never waits for another's longer one; end when it ends."""
    try:
        while True:
            episodes.put(_receive(worker, num_columns))
    except GqError as error:
        episodes.put(error)


def start_worker(call: str) -> subprocess.Popen[bytes]:
    """Start a Python process that makes a call to this module.

    Not by multiprocessing, whose processes import the caller's main module again: that runs a script without a
    `__main__` guard a second time, and fails for a script read from standard input.
    """
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # Ctrl-C is the parent's to handle
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from gq.datasets.builtin import serve; {call}"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, pipesize=1 << 20
    )


def serve(name: str, seed: int, first: int, stride: int) -> None:
    """Write episodes to standard output until nobody reads them: a line `num_rows terminated`, then the rows."""
    try:
        for episode in simulate_policy(load_policy(name), seed, first=first, stride=stride):
            sys.stdout.buffer.write(b"%d %d\n" % (len(episode.rows), episode.terminated) + episode.rows.tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; a normal exit would try to flush once more
    except GqError as error:
        sys.exit(f"{error}; {error.hint}")  # to standard error, where `_receive` finds the last line


def _receive(worker: subprocess.Popen[bytes], num_columns: int) -> Episode:
    """Read one episode that `serve` wrote."""
    assert worker.stdout is not None
    header = worker.stdout.readline().split()
    if len(header) == 2:
        num_bytes = int(header[0]) * num_columns * np.dtype(np.float32).itemsize
        content = worker.stdout.read(num_bytes)
        if len(content) == num_bytes:
            return Episode(np.frombuffer(content, np.float32).reshape(-1, num_columns), header[1] == b"1")
    lines = worker.communicate()[1].decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"exit status {worker.returncode}"
    raise GqError(f"a simulation process ended: {reason}", hint='does this work? python -c "import gymnasium, mujoco"')
