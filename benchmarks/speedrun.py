"""DT speedrun: how long a Decision Transformer learns until it returns what was asked for, gq against eager code.

    python benchmarks/speedrun.py [--recipe cpu] [--log speedrun.jsonl]
    python benchmarks/speedrun.py --recipe notebook paper --device cuda --contenders "gq qwen3" "gq gpt2"

The protocol is fixed: data are the built-in dataset hopper/medium of 100,000 transitions (made on the first run),
episodes have seeds of their own, the target is the 90th percentile of the data's returns, and a contender is there once
its last three evaluations returned 2500 on average: one alone says little, since from one to the next the same model
goes from 1300 to 3000. Evaluations come at fixed updates, in gq, for everyone, and are not counted; nor is the first
part of `start s`: building the learner and its first updates, in which a GPU compiles and captures. Contenders learn in
turns in this process, up to the next evaluation each, from the same windows, with the same optimiser, rates and
schedule. `plain` is the eager float32 code of training.py. Recipes: `cpu` is small; `notebook` the 13m model with 2,500
updates of batch 4096; `paper` the paper's model with 100,000 of batch 64.

`s to 2500` is by the process's time on a CPU and by the passing one on a GPU; the ratio is to the first contender that
got there and is no part of gq, else to the first one. Each evaluation is a line in --log as soon as it is made.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import Report, add_options, pin_threads
from training import CLIP, SHAPES, WARM_UPS, make_update, plain_loss

DATASET, TASK, TARGET, FIRST_SEED = "builtin/hopper/medium", "Hopper-v5", 3146.3, 5_000_000
GOAL, NUM_AVERAGED = 2500.0, 3  # the return to reach, and the evaluations that it is the mean of
CONTENDERS = ("plain", "gq gpt2", "gq qwen3")


@dataclass(frozen=True)
class Recipe:
    """What everyone does."""

    model: str  # of training.py's shapes
    steps: int
    batch_size: int
    every: int  # updates from one evaluation to the next
    learning_rate: float = 1e-3
    warmup_steps: int = 500


RECIPES = {
    "cpu": Recipe("paper", 1500, 64, 100),
    "notebook": Recipe("13m", 2500, 4096, 250, learning_rate=6e-4),
    "paper": Recipe("paper", 100_000, 64, 5000, learning_rate=1e-4, warmup_steps=10_000),
}


@dataclass
class Runner:
    """A contender on its way."""

    take_updates: Callable[[int, int], int]  # from which one on, and how many at most; returns how many it took
    evaluate: Callable[[], float]
    start_seconds: float = 0.0
    steps: int = 0
    wall: float = 0.0  # of updates
    cpu: float = 0.0
    returns: list[float] = field(default_factory=list)  # of all evaluations
    reached: dict[str, float] = field(default_factory=dict)  # where it stood when it got there

    def is_done(self, recipe: Recipe, whole: bool) -> bool:
        """Tell whether it has taken all updates, or got there and is not to go on."""
        return self.steps >= recipe.steps or bool(self.reached and not whole)

    def learn(self, num_updates: int, device: str) -> None:
        """Take updates."""
        import torch

        began = time.perf_counter(), time.process_time()
        end = self.steps + num_updates
        while self.steps < end:
            self.steps += self.take_updates(self.steps, end - self.steps)
        if device == "cuda":
            torch.cuda.synchronize()
        self.wall += time.perf_counter() - began[0]
        self.cpu += time.process_time() - began[1]

    def measure(self) -> float:
        """Return the mean return, and keep it in mind."""
        self.returns.append(self.evaluate())
        latest = self.returns[-NUM_AVERAGED:]
        if len(latest) == NUM_AVERAGED and sum(latest) >= NUM_AVERAGED * GOAL and not self.reached:
            self.reached = {"steps": self.steps, "wall": self.wall, "cpu": self.cpu}
        return self.returns[-1]


def load() -> Any:
    """Return the dataset, made if it is not there."""
    from gq.datasets.loading import download, load_dataset

    download(DATASET)
    return load_dataset(DATASET)


def configure(recipe: Recipe, backbone: str) -> Any:
    """Return the configuration that `gq train dt` would get."""
    from gq import presets
    from gq.config import OptimConfig

    shape = SHAPES[recipe.model]
    config = presets.dt(shape.size)
    model = replace(config.model, dropout=0.1)
    if backbone == "gpt2":
        heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads}
        model = replace(model, backbone="gpt2", mlp_ratio=4.0, activation="relu", **heads)
    rates = {"learning_rate": recipe.learning_rate, "warmup_steps": recipe.warmup_steps, "gradient_clip": CLIP}
    train = replace(config.train, steps=recipe.steps, batch_size=recipe.batch_size, num_micro_batches=1)
    return replace(config, task=TASK, model=model, optim=OptimConfig(**rates), train=train)


def make_runner(contender: str, recipe: Recipe, trajectories: Any, options: argparse.Namespace) -> Runner:
    """Return a contender that has taken its first updates."""
    import torch

    from gq.algos.supervised import learning_rate
    from gq.policies.algorithms import build_policy
    from gq.policies.compute import choose_compute, choose_program
    from gq.rollouts.episodes import Start, roll_out
    from gq.training.building import Placement, build_learner

    began, is_plain = time.perf_counter(), contender == "plain"
    compute = choose_compute(options.device, "float32" if is_plain else "auto")
    config = configure(recipe, "gpt2" if is_plain else contender.removeprefix("gq "))
    torch.manual_seed(0)
    program = choose_program("off" if is_plain else "auto", compute.device)
    learner = build_learner(config, trajectories, Placement(compute, False, program))

    def take_updates(step: int, most: int) -> int:
        return learner.updates(step, most)[1]

    if is_plain:
        model, optim = learner.model, config.optim
        optimizer = torch.optim.AdamW(model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
        draw = learner.sampler.sample
        take = make_update(lambda: plain_loss(model, draw(recipe.batch_size), config.model.dropout), model, optimizer)

        def take_updates(step: int, _most: int) -> int:
            optimizer.param_groups[0]["lr"] = learning_rate(optim, step, recipe.steps)
            take()
            return 1

    policy = build_policy(config, learner.model, compute)
    starts = [Start(FIRST_SEED + index, TARGET) for index in range(options.episodes)]

    def evaluate() -> float:
        learner.model.eval()
        episodes = roll_out(policy, config.environment, starts)
        learner.model.train()
        return sum(episode.episode_return for episode in episodes) / len(episodes)

    runner = Runner(take_updates, evaluate)
    runner.learn(min(WARM_UPS[options.device], recipe.steps), options.device)
    runner.start_seconds, runner.wall, runner.cpu = time.perf_counter() - began, 0.0, 0.0
    return runner


def run(name: str, trajectories: Any, options: argparse.Namespace, report: Report) -> None:
    """Let the contenders run a recipe."""
    recipe = RECIPES[name]
    recipe = replace(recipe, steps=options.steps or recipe.steps, every=options.every or recipe.every)
    title = f"{name}: {recipe.model}, batch {recipe.batch_size}, at most {recipe.steps:,} updates, {options.device}"
    columns = {"contender": (12, ""), "updates": (9, ","), "return": (9, ",.0f"), "wall s": (10, ".1f")}
    log = report.table(f"{title}; evaluations", {**columns, "CPU s": (10, ".1f")})
    runners = {contender: make_runner(contender, recipe, trajectories, options) for contender in options.contenders}
    while running := [found for found in runners.items() if not found[1].is_done(recipe, options.whole)]:
        for contender, runner in running:
            ahead = recipe.every - runner.steps % recipe.every
            runner.learn(min(ahead, recipe.steps - runner.steps), options.device)
            log.add(contender, runner.steps, runner.measure(), runner.wall, runner.cpu)
            with options.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"recipe": name, **log.rows[-1]}) + "\n")
    summarise(title, runners, options, report)


def summarise(title: str, runners: dict[str, Runner], options: argparse.Namespace, report: Report) -> None:
    """Print who got there when."""
    clock = "cpu" if options.device == "cpu" else "wall"
    columns = {"contender": (12, ""), "start s": (10, ".1f"), "updates": (9, ","), "all, s": (10, ".1f")}
    columns |= {"best": (8, ",.0f"), f"at {GOAL:.0f}": (9, ","), f"s to {GOAL:.0f}": (11, ".1f")}
    table = report.table(title, {**columns, "as fast": (9, ".2f")})
    there = [name for name, runner in runners.items() if runner.reached]
    baseline = next((name for name in there if not name.startswith("gq")), there[0] if there else None)
    for name, runner in runners.items():
        seconds, at = runner.reached.get(clock), runner.reached.get("steps")
        ratio = runners[baseline].reached[clock] / seconds if baseline and seconds else None
        took = getattr(runner, clock)
        table.add(name, runner.start_seconds, runner.steps, took, max(runner.returns), at, seconds, ratio)
    table.note(f"as fast: against {baseline}" if baseline else f"nobody returned {GOAL:.0f}")


def main() -> None:
    """Run the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["cpu"], choices=RECIPES)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation")
    parser.add_argument("--steps", type=int, help="updates at most; the schedule ends there")
    parser.add_argument("--every", type=int, help="updates from one evaluation to the next")
    parser.add_argument("--whole", action="store_true", help="take all updates, also after getting there")
    parser.add_argument("--log", type=Path, default=Path("speedrun.jsonl"), help="lines are added to it")
    parser.add_argument("--device", choices=WARM_UPS, default="cpu")
    add_options(parser)
    options = parser.parse_args()
    pin_threads(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    report, trajectories = Report(options), load()
    for name in options.recipe:
        run(name, trajectories, options, report)
    report.save()


if __name__ == "__main__":
    main()
