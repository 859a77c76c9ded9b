"""The time of a TD-MPC2 plan with gq against a plain reference, taking turns in one process.

    python benchmarks/planning.py [--sizes 1 5] [--tasks dog-run cheetah-run] [--threads 1] [--rounds 7] [--profile]

The reference is written from the formulas and runs eagerly in float32: it evaluates every Q head and drops all but two,
and shares nothing between samples or iterations. It has the same weights and gets draws of the same kind, so the
program first plans with the same draws on both sides and shows what the plans are worth to the reference. Times are
medians for one environment, drawing included, encoding not; the range is that of the rounds' ratios. On a machine that
does other work, --clock process counts this process's time instead of what passes; with more than one thread, only the
passing time says anything.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from common import Report, add_options, ratios

from gq import threads

threads.prepare()

import torch  # noqa: E402  after the thread settings
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from gq.models.world_config import discount_factor, resolve_world_model_size  # noqa: E402
from gq.models.world_model import WorldModel  # noqa: E402
from gq.planning.mppi import Draws, Planner, PlannerConfig  # noqa: E402

DIMENSIONS = {"dog-run": (223, 38), "cheetah-run": (17, 6), "humanoid-run": (67, 21), "walker-run": (24, 6)}
DISCOUNT = discount_factor(500)
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
NUM_COMPARED, NUM_PROFILED, NUM_SHOWN = 4, 3, 18
LAST_LAYER_STD = 0.05  # of reward and values, which start at 0: then candidates would all be equal


# --- the reference ----------------------------------------------------------------------------------------------------


class PlainPlanner:
    """The planner's formulas, one after the other."""

    def __init__(self, model: WorldModel, config: PlannerConfig) -> None:
        self.model, self.config = model, config
        self.num_iterations = config.num_iterations(model.action_dim)

    def hidden(self, network: torch.nn.Sequential, inputs: Tensor) -> Tensor:
        """Return what comes out of all layers but the last."""
        for layer in list(network)[:-1]:
            outputs = F.linear(inputs, layer.weight, layer.bias)
            inputs = F.mish(F.layer_norm(outputs, outputs.shape[-1:], layer.norm.weight, layer.norm.bias))
        return inputs

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        last = self.model.dynamics[-1]
        hidden = self.hidden(self.model.dynamics, torch.cat([latents, actions], dim=-1))
        outputs = F.linear(hidden, last.weight, last.bias)
        outputs = F.layer_norm(outputs, outputs.shape[-1:], last.norm.weight, last.norm.bias)
        return outputs.view(*outputs.shape[:-1], -1, 8).softmax(dim=-1).view(outputs.shape)

    def reward(self, latents: Tensor, actions: Tensor) -> Tensor:
        last = self.model.reward_head[-1]
        hidden = self.hidden(self.model.reward_head, torch.cat([latents, actions], dim=-1))
        return self.decode(F.linear(hidden, last.weight, last.bias))

    def policy(self, latents: Tensor, draws: Tensor) -> Tensor:
        last = self.model.policy_head[-1]
        location, raw = F.linear(self.hidden(self.model.policy_head, latents), last.weight, last.bias).chunk(2, dim=-1)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        return torch.tanh(location + draws * log_std.exp())

    def value(self, latents: Tensor, actions: Tensor, heads: Tensor) -> Tensor:
        hidden = torch.cat([latents, actions], dim=-1).expand(self.model.config.num_q, -1, -1)
        for layer in self.model.q_heads.layers:
            hidden = torch.baddbmm(layer.bias[:, None], hidden, layer.weight.mT)
            if layer.norm_weight is not None:
                hidden = F.layer_norm(hidden, hidden.shape[-1:])
                hidden = F.mish(hidden * layer.norm_weight[:, None] + layer.norm_bias[:, None])
        return self.decode(hidden[heads]).mean(dim=0)

    def decode(self, logits: Tensor) -> Tensor:
        expected = (logits.softmax(dim=-1) * self.model.bins).sum(dim=-1)
        return expected.sign() * (expected.abs().exp() - 1)

    def score(self, latents: Tensor, actions: Tensor, draws: Tensor, heads: Tensor) -> Tensor:
        """Return what sequences [H, N, A] are worth [N] from latents [N, L]."""
        value: Tensor | float = 0.0
        for step, action in enumerate(actions):
            value = value + DISCOUNT**step * self.reward(latents, action)
            latents = self.next(latents, action)
        return value + DISCOUNT ** len(actions) * self.value(latents, self.policy(latents, draws), heads)

    @torch.no_grad()
    def plan(self, latents: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the mean [H, A] and the values of the elites [K] from latents [1, L]."""
        config = self.config
        repeated = latents.expand(config.num_policy_samples, -1)
        policy_actions = []
        for step_draws in draws.policy[0]:
            policy_actions.append(self.policy(repeated, step_draws))
            repeated = self.next(repeated, policy_actions[-1])
        repeated = latents.expand(config.num_samples, -1)
        mean = torch.zeros(config.horizon, self.model.action_dim)
        std = torch.full_like(mean, config.std_max)
        for iteration in range(self.num_iterations):
            sampled = (mean[:, None] + std[:, None] * draws.samples[0, iteration]).clamp(-1, 1)
            actions = torch.cat([torch.stack(policy_actions), sampled], dim=1)
            heads, terminal = draws.heads[0, iteration], draws.terminal[0, iteration]
            values = self.score(repeated, actions, terminal, heads).nan_to_num(0)
            elite_values, index = values.topk(config.num_elites)
            elites, weights = actions[:, index], torch.softmax(config.temperature * elite_values, dim=0)[None, :, None]
            mean = (weights * elites).sum(dim=1)
            std = (weights * (elites - mean[:, None]).square()).sum(dim=1).sqrt().clamp(config.std_min, config.std_max)
        return mean, elite_values


# --- the measurement --------------------------------------------------------------------------------------------------


def make_model(size: str, task: str) -> WorldModel:
    """Return an untrained model that is not indifferent."""
    torch.manual_seed(0)
    observation_dim, action_dim = DIMENSIONS[task]
    config = resolve_world_model_size(size)
    model = WorldModel(config, observation_dim=observation_dim, action_dim=action_dim).eval()
    for layer in (model.reward_head[-1], model.q_heads.layers[-1]):
        torch.nn.init.normal_(layer.weight, std=LAST_LAYER_STD)
    return model


def make_latents(model: WorldModel) -> Tensor:
    with torch.no_grad():
        return model.encode(torch.randn(1, model.observation_dim))


def show_worth(plain: PlainPlanner, planners: dict[str, Planner]) -> None:
    """Print what each planner's means are worth to the reference, which plans with the same draws.

    Which candidates are elites hangs on the last digits of their values: actions may differ where worth does not. The
    reference with other draws shows how much that is.
    """
    worth: dict[str, list[float]] = {}
    model, first = plain.model, next(iter(planners.values()))
    behind, heads = torch.zeros(1, model.action_dim), torch.tensor([0, 1])
    for seed in range(NUM_COMPARED):
        draws, others = (first.draw(torch.Generator().manual_seed(seed + shift)) for shift in (0, NUM_COMPARED))
        latents = make_latents(model)
        means = {"reference": plain.plan(latents, draws)[0], "other draws": plain.plan(latents, others)[0]}
        means |= {name: planner.plan(latents, draws).mean[0] for name, planner in planners.items()}
        for name, mean in means.items():
            with torch.no_grad():
                worth.setdefault(name, []).append(plain.score(latents, mean[:, None], behind, heads).item())
    for name, values in worth.items():
        gaps = [value - reference for value, reference in zip(values, worth["reference"], strict=True)]
        largest = max(gaps, key=abs)
        print(
            f"  {name:18} plans are worth {statistics.mean(values):8.3f}, at most {largest:+.4f} from the reference's"
        )


def profile(plan: Callable[[], object]) -> None:
    """Print the operations that a plan spends most time in."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_PROFILED):
            plan()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    print(f"  {'operation':40} {'ms':>8} {'share':>6} {'calls':>6}   (self time, per plan)")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:NUM_SHOWN]:
        share = event.self_cpu_time_total / total
        milliseconds = event.self_cpu_time_total / 1e3 / NUM_PROFILED
        print(f"  {event.key[:40]:40} {milliseconds:8.2f} {share:6.1%} {event.count / NUM_PROFILED:6.0f}")


def measure(size: str, task: str, options: argparse.Namespace, report: Report) -> None:
    """Print the times of all planners for one size and task."""
    model, clock, config = make_model(size, task), CLOCKS[options.clock], PlannerConfig()
    plain, latents, generator = PlainPlanner(model, config), make_latents(model), torch.Generator().manual_seed(0)
    planners = {
        f"gq {'bfloat16' if bfloat16 else 'float32'}": Planner(model, config, discount=DISCOUNT, bfloat16=bfloat16)
        for bfloat16 in (False, True)
    }
    print(f"{task}, size {size}")
    show_worth(plain, planners)
    first = next(iter(planners.values()))
    plans: dict[str, Callable[[], object]] = {"reference": lambda: plain.plan(latents, first.draw(generator))}
    for name, planner in planners.items():
        plans[name] = lambda planner=planner: planner.plan(latents, planner.draw(generator))
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(options.rounds):
        for name, plan in plans.items():
            began = clock()
            plan()
            seconds[name].append(clock() - began)
    columns = {"planner": (18, ""), "ms": (10, ".1f"), "as fast": (9, ".2f"), "range": (16, "")}
    table = report.table(f"{task}, size {size}: a plan", columns)
    for name, times in seconds.items():
        table.add(name, 1e3 * statistics.median(times), *ratios(seconds["reference"], times))
    if options.profile:
        profile(plans["gq bfloat16"])


def main() -> None:
    """Measure each size and task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1", "5"])
    parser.add_argument("--tasks", nargs="+", default=["dog-run", "cheetah-run"], choices=DIMENSIONS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--profile", action="store_true", help="also show where gq's bfloat16 plan spends its time")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"one environment, {options.threads} threads, medians of {options.rounds}, {options.clock} time")
    report = Report(options)
    for size in options.sizes:
        for task in options.tasks:
            measure(size, task, options, report)
    report.save()


if __name__ == "__main__":
    main()
