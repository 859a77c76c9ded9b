"""Evaluation of a Decision Transformer: gq against a loop over one episode at a time, and its model with a cache.

    python benchmarks/evaluation.py [--tasks Hopper-v5 Humanoid-v5] [--peers-python PATH] [--episodes 100 --steps 1000]
    python benchmarks/evaluation.py --tasks Hopper-v5 --sizes --episodes 500 --device cuda
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
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from common import Contender, Report, Table, begin, ratios, timed

NUM_STEPS, WIDTH, NUM_LAYERS, NUM_HEADS, TARGET, SCALE = 20, 128, 3, 1, 3600.0, 1000.0
LOOPS = ("transformers", "plain")
OWN = ("gq gpt2 sliding", "gq gpt2 blocks", "gq qwen3 sliding", "gq qwen3 blocks")
Evaluate = Callable[[int, int, int], int]  # first seed, episodes, steps of each; returns the steps taken


# --- the contenders ---------------------------------------------------------------------------------------------------


def environment_options(task: str) -> dict[str, bool]:
    """Return what keeps an episode from ending before its time limit."""
    return {"terminate_when_unhealthy": False} if task.startswith(("Hopper", "Walker2d", "Ant", "Humanoid-")) else {}


def make_own(backbone: str, context: str, task: str, device: str) -> Evaluate:
    """Return the evaluation of `gq eval`."""
    from gq.algos.dt import DTPolicy
    from gq.envs.tasks import resolve_task
    from gq.policies.compute import choose_compute
    from gq.rollouts.episodes import Start, roll_out

    compute = choose_compute(device)
    policy = DTPolicy(make_model(backbone, task).to(compute.device), autocast=compute.autocast, context=context)  # type: ignore[arg-type]

    def run(seed: int, num_episodes: int, num_steps: int) -> int:
        starts = [Start(seed + index, TARGET) for index in range(num_episodes)]
        episodes = roll_out(policy, resolve_task(task), starts, max_steps=num_steps, **environment_options(task))
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


def make_loop(contender: str, task: str, device: str) -> Evaluate:
    """Return the evaluation of one episode after another, each step a forward pass over its padded context."""
    import gymnasium
    import mujoco
    import torch

    mujoco.set_mju_user_warning(lambda message: None)  # else it writes a log into the current folder
    environment = gymnasium.make(task, disable_env_checker=True, **environment_options(task))
    observation_dim, action_dim = environment.observation_space.shape[0], environment.action_space.shape[0]
    is_plain = contender == "plain"
    predict = predict_plain(task, device) if is_plain else predict_transformers(observation_dim, action_dim, device)

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
            actions[-1] = predict(*(array.to(device) for array in (*padded, valid)))
            observation, reward, terminated, truncated, _ = environment.step(actions[-1].numpy())
            returns = torch.cat([returns, returns[-1:] - float(reward) / SCALE])
            if terminated or truncated:
                return step + 1
        return num_steps

    def run(seed: int, num_episodes: int, num_steps: int) -> int:
        with torch.no_grad():
            return sum(run_episode(seed + index, num_steps) for index in range(num_episodes))

    return run


def predict_transformers(observation_dim: int, action_dim: int, device: str) -> Callable[..., Any]:
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
    model = DecisionTransformerModel(config).to(device).eval()

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


def predict_plain(task: str, device: str) -> Callable[..., Any]:
    model = make_model("gpt2", task).to(device)

    def predict(states: Any, actions: Any, returns: Any, timesteps: Any, valid: Any) -> Any:
        return model(states, actions, SCALE * returns, timesteps, valid)[0, -1]

    return predict


# --- the processes ----------------------------------------------------------------------------------------------------


def make(contender: str, task: str, device: str) -> Callable[[int, int, int], dict[str, Any]]:
    """Return what runs episodes of a contender and tells the environment steps per second by both clocks."""
    name, *how = contender.split()
    run = make_own(*how, task, device) if name == "gq" else make_loop(contender, task, device)

    def turn(seed: int, num_episodes: int, num_steps: int) -> dict[str, Any]:
        steps: list[int] = []
        took = timed(lambda: steps.append(run(seed, num_episodes, num_steps)))
        return {clock: seconds / steps[0] for clock, seconds in took.items()}

    return turn


def start(contender: str, task: str, options: argparse.Namespace) -> Contender:
    """Start a contender; a few steps are not measured."""
    python = options.peers_python if contender == "transformers" else sys.executable
    found = Contender(__file__, python, options, contender=contender, task=task, device=options.device)
    if not found.missing:
        found.turn(0, 1 if contender in LOOPS else options.episodes, 3, counts=False)
    return found


def measure(task: str, options: argparse.Namespace, report: Report) -> None:
    """Print the table of a task."""
    contenders = {name: start(name, task, options) for name in options.contenders}
    running = {name: contender for name, contender in contenders.items() if not contender.missing}
    for number in range(options.rounds):
        for name, contender in running.items():
            num_episodes = 1 if name in LOOPS else options.episodes
            contender.turn(number * num_episodes, num_episodes, options.steps)
    clock = "cpu" if options.device == "cpu" else "wall"
    loops = [name for name in LOOPS if name in running] or [next(iter(running))]
    fastest = min(loops, key=lambda name: running[name].median(clock))
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    title = f"{task}: {options.episodes} episodes of {options.steps} steps at once, {threads}, {options.rounds} rounds"
    columns = {"contender": (18, ""), "steps/s": (9, ".0f"), "steps/CPU s": (13, ".0f"), "as fast": (9, ".1f")}
    table = report.table(title, {**columns, "range": (16, ""), "all, s": (9, ".1f")})
    for name, contender in contenders.items():
        contender.close()
        if contender.missing:
            table.note(f"{name} was not measured: {contender.missing}")
            continue
        ratio, spread = ratios(running[fastest].each(clock), contender.each(clock))
        wall, cpu = contender.median("wall"), contender.median("cpu")
        table.add(name, 1 / wall, 1 / cpu, ratio, spread, wall * options.episodes * options.steps)
    table.note(f"as fast: against {fastest}")


# --- the model alone --------------------------------------------------------------------------------------------------


def measure_cache(size: str, num_episodes: int, rounds: int, table: Table) -> None:
    """Add what a cache does to the model's time per environment step on Hopper."""
    import numpy as np
    import torch

    from gq.algos.dt import DTPolicy
    from gq.models.config import resolve_size
    from gq.models.decision_transformer import DecisionTransformer
    from gq.policies.compute import choose_compute

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
    ratio, spread = ratios(times["sliding"], times["blocks"])
    sliding, blocks = (1e3 * statistics.median(times[name]) for name in ("sliding", "blocks"))
    table.add(size, sliding, blocks, ratio, spread)


def main() -> None:
    """Measure each task, then each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=["Hopper-v5", "Humanoid-v5"])
    parser.add_argument("--sizes", nargs="*", default=["1m", "0.1b"])
    parser.add_argument("--contenders", nargs="+", default=[*LOOPS, *OWN], choices=[*LOOPS, *OWN])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cached-episodes", type=int, default=16, help="in the second table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the first table")
    options = begin(parser, make, rounds=5)
    report = Report(options)
    for task in options.tasks:
        measure(task, options, report)
    if options.sizes:
        import torch

        torch.set_num_threads(options.threads)
        title = (
            f"the model's CPU ms per environment step, {options.cached_episodes} episodes at once, {NUM_STEPS} steps"
        )
        columns = {"size": (18, ""), "sliding": (12, ".3f"), "blocks": (12, ".3f"), "as fast": (9, ".1f")}
        table = report.table(title, {**columns, "range": (16, "")})
        for size in options.sizes:
            measure_cache(size, options.cached_episodes, options.rounds, table)
    report.save()


if __name__ == "__main__":
    main()
