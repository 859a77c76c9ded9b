"""Simulate episodes of a packaged policy, in this process or in several, with the same bits either way."""

import os
import subprocess
import sys
from collections.abc import Generator
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from gq.data.linear_policy import LinearPolicy, load_policy
from gq.errors import GqError


class Episode(NamedTuple):
    """One whole episode of T steps."""

    rows: np.ndarray  # float32 [T, S + A + 1]: observation, action, reward
    terminated: bool  # False: stopped by the time limit


def run_episode(env: Any, policy: LinearPolicy, generator: np.random.Generator) -> Episode:
    """Run one episode, whose start and noise come from the generator."""
    observation, _ = env.reset(seed=int(generator.integers(2**31)))
    rows = []
    while True:
        action = policy.act(observation, generator)
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.concatenate([observation, action, [reward]], dtype=np.float32, casting="same_kind"))
        observation = following
        if terminated or truncated:
            return Episode(np.stack(rows), bool(terminated))


def simulate_here(policy_name: str, seed: int, *, first: int = 0, stride: int = 1) -> Generator[Episode, None, None]:
    """Yield episodes first, first + stride, ... without end; episode i draws from (seed, i)."""
    from gq.envs.make import make

    policy = load_policy(policy_name)
    env = make(policy.env_id)
    try:
        for index in count(first, stride):
            yield run_episode(env, policy, np.random.default_rng([seed, index]))
    finally:
        env.close()


def simulate_in_workers(policy_name: str, seed: int, num_workers: int) -> Generator[Episode, None, None]:
    """Yield episodes 0, 1, 2, ... without end; worker w of W simulates episodes w, w + W, w + 2 W, ...

    Closing the generator ends the workers.

    Raises:
        GqError: a worker ended by itself.
    """
    num_columns = sum(load_policy(policy_name).weight.shape) + 1
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for first in range(num_workers):
            workers.append(start_worker(f"serve({policy_name!r}, {seed}, {first}, {num_workers})"))
        for index in count():
            yield receive(workers[index % num_workers], num_columns)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()  # reaps it and closes its pipes


def start_worker(call: str) -> subprocess.Popen[bytes]:
    """Start a Python process that makes a call to this module.

    Not by multiprocessing, whose processes import the caller's main module again: that runs a script without a
    `__main__` guard a second time, and fails for a script read from standard input.
    """
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # Ctrl-C is the parent's to handle
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from gq.data.builtin_worker import serve; {call}"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment)


def serve(policy_name: str, seed: int, first: int, stride: int) -> None:
    """Write episodes to standard output until nobody reads them: a line `num_rows terminated`, then the rows."""
    try:
        for episode in simulate_here(policy_name, seed, first=first, stride=stride):
            sys.stdout.buffer.write(b"%d %d\n" % (len(episode.rows), episode.terminated) + episode.rows.tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; a normal exit would try to flush once more
    except GqError as error:
        sys.exit(f"{error}; {error.hint}")  # to standard error, where `receive` finds the last line


def receive(worker: subprocess.Popen[bytes], num_columns: int) -> Episode:
    """Read one episode that `serve` wrote.

    Raises:
        GqError: the worker ended.
    """
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
