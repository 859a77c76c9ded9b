"""Evaluation of a Decision Transformer: gq against a loop over one episode at a time, and its model with a cache.

    python benchmarks/evaluation.py [--tasks Hopper-v5 Humanoid-v5] [--peers-python PATH] [--episodes 100 --steps 1000]
    python benchmarks/evaluation.py --tasks --sizes 1m 0.1b

Each contender is a process of its own and they take turns: the loop runs one episode of --steps steps, gq --episodes of
them. `transformers` is the loop of the original Decision Transformer around transformers' DecisionTransformerModel
under the interpreter --peers-python, in which `pip install transformers gymnasium mujoco` was done; `plain` is the same
loop around gq's GPT-2 as an eager float32 model, every token computed. gq runs as `gq eval` does, with both kinds of
contexts. All have the paper's shape, fresh weights, and the same environments, in which a fall ends nothing, so that
episodes are equally long. Rates are environment steps per second, of the passing time and of the process's; ratios are
of the latter to the fastest loop's, medians with the range of the rounds.

The second table is the time that the model takes per environment step once contexts are full: `sliding` computes the
last 20 steps at each one, `blocks` grows from 10 to 20 with a cache, over whole rounds of that.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

NUM_STEPS, WIDTH, NUM_LAYERS, NUM_HEADS, TARGET, SCALE = 20, 128, 3, 1, 3600.0, 1000.0
LOOPS = ("transformers", "plain")
OWN = ("gq gpt2 sliding", "gq gpt2 blocks", "gq qwen3 sliding", "gq qwen3 blocks")
Evaluate = Callable[[int, int, int], int]  # first seed, episodes, steps of each; returns the steps taken


# --- the contenders ---------------------------------------------------------------------------------------------------


def environment_options(task: str) -> dict[str, bool]:
    """Return what keeps an episode from ending before its time limit."""
    return {"terminate_when_unhealthy": False} if task.startswith(("Hopper", "Walker2d", "Ant", "Humanoid-")) else {}


def make_own(backbone: str, context: str, task: str) -> Evaluate:
    """Return the evaluation of `gq eval`."""
    from gq.algos.dt import DTPolicy
    from gq.engine.precision import choose_compute
    from gq.evaluation.rollout import roll_out

    policy = DTPolicy(make_model(backbone, task), autocast=choose_compute("cpu").autocast, context=context)  # type: ignore[arg-type]

    def run(seed: int, num_episodes: int, num_steps: int) -> int:
        seeds, targets = range(seed, seed + num_episodes), [TARGET] * num_episodes
        options = environment_options(task)
        episodes = roll_out(policy, task, seeds=seeds, target_returns=targets, max_steps=num_steps, **options)
        return sum(episode.length for episode in episodes)

    return run


def make_model(backbone: str, task: str) -> Any:
    """Return gq's model in the paper's shape, or the Qwen3 of the same size."""
    import torch

    from gq.envs.tasks import resolve_task
    from gq.models.config import ModelConfig
    from gq.models.decision_transformer import DecisionTransformer

    torch.manual_seed(0)
    found = resolve_task(task)
    gpt2 = ModelConfig(backbone="gpt2", num_heads=1, num_kv_heads=1, mlp_ratio=4.0, activation="relu")
    config = gpt2 if backbone == "gpt2" else ModelConfig()
    return DecisionTransformer(config, observation_dim=found.observation_dim, action_dim=found.action_dim).eval()


def make_loop(contender: str, task: str) -> Evaluate:
    """Return the evaluation of one episode after another, each step a forward pass over its padded context."""
    import gymnasium
    import mujoco
    import torch

    mujoco.set_mju_user_warning(lambda message: None)  # else it writes a log into the current folder
    environment = gymnasium.make(task, disable_env_checker=True, **environment_options(task))
    observation_dim, action_dim = environment.observation_space.shape[0], environment.action_space.shape[0]
    predict = predict_plain(task) if contender == "plain" else predict_transformers(observation_dim, action_dim)

    def run_episode(seed: int, num_steps: int) -> int:
        observation, _ = environment.reset(seed=seed)
        states = torch.zeros(0, observation_dim)
        actions, returns = torch.zeros(0, action_dim), torch.full((1, 1), TARGET / SCALE)
        for step in range(num_steps):
            states = torch.cat([states, torch.as_tensor(observation, dtype=torch.float32)[None]])
            actions = torch.cat([actions, torch.zeros(1, action_dim)])
            timesteps = torch.arange(max(0, step + 1 - NUM_STEPS), step + 1)
            window = [array[-NUM_STEPS:] for array in (states, actions, returns, timesteps)]
            missing = NUM_STEPS - len(timesteps)
            padded = [torch.cat([array.new_zeros(missing, *array.shape[1:]), array])[None] for array in window]
            valid = (torch.arange(NUM_STEPS) >= missing).long()[None]
            actions[-1] = predict(*padded, valid)
            observation, reward, terminated, truncated, _ = environment.step(actions[-1].numpy())
            returns = torch.cat([returns, returns[-1:] - float(reward) / SCALE])
            if terminated or truncated:
                return step + 1
        return num_steps

    def run(seed: int, num_episodes: int, num_steps: int) -> int:
        with torch.no_grad():
            return sum(run_episode(seed + index, num_steps) for index in range(num_episodes))

    return run


def predict_transformers(observation_dim: int, action_dim: int) -> Callable[..., Any]:
    import torch
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=observation_dim,
        act_dim=action_dim,
        hidden_size=WIDTH,
        max_ep_len=1000,
        n_layer=NUM_LAYERS,
        n_head=NUM_HEADS,
        activation_function="relu",
    )
    model = DecisionTransformerModel(config).eval()

    def predict(states: Any, actions: Any, returns: Any, timesteps: Any, valid: Any) -> Any:
        found = model(
            states=states,
            actions=actions,
            rewards=None,
            returns_to_go=returns,
            timesteps=timesteps,
            attention_mask=valid,
            return_dict=True,
        )
        return found.action_preds[0, -1]

    return predict


def predict_plain(task: str) -> Callable[..., Any]:
    model = make_model("gpt2", task)

    def predict(states: Any, actions: Any, returns: Any, timesteps: Any, valid: Any) -> Any:
        return model(states, actions, SCALE * returns, timesteps, valid)[0, -1]

    return predict


# --- the processes ----------------------------------------------------------------------------------------------------


def work(contender: str, task: str, num_threads: int) -> None:
    """Run what each line on stdin says: seed, episodes, steps; answer with steps and seconds by both clocks."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    try:
        import torch

        torch.set_num_threads(num_threads)
        name, *how = contender.split()
        run = make_own(*how, task) if name == "gq" else make_loop(contender, task)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        seed, num_episodes, num_steps = map(int, line.split())
        began = time.perf_counter(), time.process_time()
        steps = run(seed, num_episodes, num_steps)
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        print(json.dumps({"steps": steps, "seconds": seconds}), file=answers, flush=True)


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, task: str, options: argparse.Namespace) -> None:
        """Start it; a few steps are not measured."""
        python = options.peers_python if contender == "transformers" else sys.executable
        command = [python, __file__, "--worker", contender, "--tasks", task, "--threads", str(options.threads)]
        errors = None if options.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.num_episodes = 1 if contender in LOOPS else options.episodes
        self.rates: list[tuple[float, float]] = []  # steps per second of the wall and of the process, of each round
        self.missing = self.read().get("missing")
        if not self.missing:
            self.turn(0, 3)
            self.rates.clear()

    def turn(self, number: int, num_steps: int) -> None:
        """Run the episodes of a round."""
        assert self.process.stdin
        print(number * self.num_episodes, self.num_episodes, num_steps, file=self.process.stdin, flush=True)
        answer = self.read()
        self.rates.append((answer["steps"] / answer["seconds"][0], answer["steps"] / answer["seconds"][1]))

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "the process failed, see --verbose"}

    def medians(self) -> tuple[float, float]:
        """Return the median rates by both clocks."""
        wall, process = zip(*self.rates, strict=True)
        return statistics.median(wall), statistics.median(process)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(task: str, options: argparse.Namespace) -> None:
    """Print the table of a task."""
    workers = {name: Worker(name, task, options) for name in options.contenders}
    running = {name: worker for name, worker in workers.items() if not worker.missing}
    for number in range(options.rounds):
        for worker in running.values():
            worker.turn(number, options.steps)
    loops = [name for name in LOOPS if name in running] or [next(iter(running))]
    fastest = max(loops, key=lambda name: running[name].medians()[1])
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    print(f"{task}: {options.episodes} episodes of {options.steps} steps at once, {threads}, {options.rounds} rounds")
    print(f"  {'':18}{'steps/s':>9}{'steps/CPU s':>13}{'as fast':>9}{'range':>16}   to {fastest}")
    for name, worker in workers.items():
        worker.close()
        if worker.missing:
            print(f"  {name:18}not measured: {worker.missing}")
            continue
        ratios = [ours[1] / theirs[1] for ours, theirs in zip(worker.rates, running[fastest].rates, strict=True)]
        wall, process = worker.medians()
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"  {name:18}{wall:9.0f}{process:13.0f}{statistics.median(ratios):9.1f}{spread:>16}", flush=True)


# --- the model alone --------------------------------------------------------------------------------------------------


def measure_cache(size: str, num_episodes: int, rounds: int) -> None:
    """Print what a cache does to the model's time per environment step on Hopper."""
    import numpy as np
    import torch

    from gq.algos.dt import DTPolicy
    from gq.engine.precision import choose_compute
    from gq.models.decision_transformer import DecisionTransformer
    from gq.models.sizes import resolve_size

    compute = choose_compute("cpu")
    torch.manual_seed(0)
    model = DecisionTransformer(resolve_size(size), observation_dim=11, action_dim=3).eval()
    rows, observations = np.arange(num_episodes), np.zeros((num_episodes, 11), np.float32)
    policies = {name: DTPolicy(model, autocast=compute.autocast, context=name) for name in ("sliding", "blocks")}  # type: ignore[arg-type]

    def seconds(policy: DTPolicy, num_steps: int) -> float:
        began = time.process_time()
        for _ in range(num_steps):
            policy.record(rows, policy.act(rows, observations), np.ones(num_episodes))
        return (time.process_time() - began) / num_steps / num_episodes

    with compute.autocast():
        for policy in policies.values():
            policy.reset(np.full(num_episodes, TARGET))
            seconds(policy, NUM_STEPS)
        times: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(rounds):
            times["sliding"].append(seconds(policies["sliding"], 2))
            times["blocks"].append(seconds(policies["blocks"], NUM_STEPS // 2 + 1))
    ratios = [whole / cached for whole, cached in zip(times["sliding"], times["blocks"], strict=True)]
    sliding, blocks = (1e3 * statistics.median(times[name]) for name in ("sliding", "blocks"))
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"  {size:18}{sliding:12.3f}{blocks:12.3f}{statistics.median(ratios):9.1f}{spread:>16}", flush=True)


def main() -> None:
    """Measure each task, then each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=["Hopper-v5", "Humanoid-v5"])
    parser.add_argument("--sizes", nargs="*", default=["1m", "0.1b"])
    parser.add_argument("--contenders", nargs="+", default=[*LOOPS, *OWN], choices=[*LOOPS, *OWN])
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cached-episodes", type=int, default=16, help="in the second table")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.tasks[0], options.threads)
        return
    from gq import threads

    threads.prepare()  # for all contenders alike
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for task in options.tasks:
        measure(task, options)
    if options.sizes:
        import torch

        torch.set_num_threads(options.threads)
        print(f"the model's CPU ms per environment step, {options.cached_episodes} episodes at once, {NUM_STEPS} steps")
        print(f"  {'':18}{'sliding':>12}{'blocks':>12}{'as fast':>9}{'range':>16}")
        for size in options.sizes:
            measure_cache(size, options.cached_episodes, options.rounds)


if __name__ == "__main__":
    main()
