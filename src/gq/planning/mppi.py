"""The planner of TD-MPC2 (arXiv 2310.16828): MPPI over action sequences that the world model scores.

Shapes: E environments, H horizon, A action_dim, L latent_dim, J iterations, N samples, P of them from the policy, K
elites. Actions are within [-1, 1].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gq.algos.captured import EAGER, Captured, Program, report_failure
from gq.errors import is_out_of_memory
from gq.models.world_config import PlannerConfig
from gq.models.world_model import WorldModel
from gq.planning.packed import Heads, PackedModel, Roll
from gq.threads import keep_freed_memory

NUM_VALUE_HEADS = 2
NUM_COMPILED = 64  # kinds of plans in one process, by horizon, samples, environments, discount; torch allows 8


class Draws(NamedTuple):
    """All that is random in a plan. Everything is standard normal unless it says otherwise."""

    policy: Tensor  # [E, H, P, A]
    samples: Tensor  # [E, J, H, N - P, A]
    terminal: Tensor  # [E, J, N, A] for the policy's action behind the horizon
    heads: Tensor  # int64 [E, J, 2], the heads of Q that value what is behind the horizon
    choice: Tensor  # [E, K] exponential, by which an elite is chosen
    exploration: Tensor  # [E, A]


class Plan(NamedTuple):
    """What a plan found. All float32; indices of time count decisions from now.

    Of first actions, the mean's is deterministic; the original takes the elite's when evaluating, and `explored` in
    training.
    """

    mean: Tensor  # [E, H, A], the next plan's warm start
    std: Tensor  # [E, H, A]
    elite: Tensor  # [E, H, A], one elite, drawn by weight
    explored: Tensor  # [E, A], the elite's first action with noise of the size of `std`
    mean_latents: Tensor  # [E, H + 1, L] predicted along the mean, the present one first
    elite_latents: Tensor  # [E, H + 1, L]
    mean_value: Tensor  # [E], with the policy's action without noise behind the horizon
    elite_value: Tensor  # [E], likewise
    elites: Tensor  # [E, H, K, A], best first
    elite_values: Tensor  # [E, K], as they were ranked
    elite_weights: Tensor  # [E, K], adding up to 1


class Planner:
    """Plan with a model: a pure function of latents, warm start and draws.

    Args:
        discount: per decision.
        bfloat16: compute matrix products in bfloat16.
        program: whether plans are compiled on first use, and replayed as one CUDA graph for each number of
            environments. Compiling takes minutes on a CPU and gains little.
    """

    def __init__(
        self,
        model: WorldModel,
        config: PlannerConfig,
        *,
        discount: float,
        bfloat16: bool = False,
        program: Program = EAGER,
    ) -> None:
        assert config.problem() is None, config.problem()
        self.model, self.config, self.discount = model, config, discount
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        self.num_iterations = config.num_iterations(model.action_dim)
        self.program = program
        keep_freed_memory()
        self.compiled: Callable[..., Plan] | None = None
        self.graphs: dict[tuple[int, ...], tuple[Captured, list[torch.Generator]]] = {}  # see `plan_each`
        if program.compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, NUM_COMPILED)
            self.compiled = torch.compile(self._plan, fullgraph=True, dynamic=False)

    def resized(self, **changes: int) -> "Planner":
        """Return a planner that tries more or less, see `PlannerConfig.resized`; this one if that changes nothing."""
        if (config := self.config.resized(**changes)) == self.config:
            return self
        bfloat16 = self.dtype == torch.bfloat16
        return Planner(self.model, config, discount=self.discount, bfloat16=bfloat16, program=self.program)

    @property
    def num_evaluations(self) -> int:
        """How many times a plan applies networks to a latent: to predict a decision, to act, or to value."""
        config = self.config
        ends = 2 * config.num_samples  # each the policy's action and what Q says about it
        from_policy = 2 * config.horizon * config.num_policy_samples
        sampled = config.horizon * (config.num_samples - config.num_policy_samples)
        return from_policy + self.num_iterations * (sampled + ends) + 2 * (config.horizon + 2)

    def draw(self, generator: torch.Generator, num_environments: int = 1) -> Draws:
        """What plans for this many environments need, from a generator on the model's device."""
        config, action_dim, num_q = self.config, self.model.action_dim, self.model.config.num_q
        num_sampled = config.num_samples - config.num_policy_samples

        def empty(*shape: int) -> Tensor:
            return torch.empty(num_environments, *shape, device=generator.device)

        def normal(*shape: int) -> Tensor:
            return empty(*shape, action_dim).normal_(generator=generator)

        order = empty(self.num_iterations, num_q).uniform_(generator=generator)
        return Draws(
            policy=normal(config.horizon, config.num_policy_samples),
            samples=normal(self.num_iterations, config.horizon, num_sampled),
            terminal=normal(self.num_iterations, config.num_samples),
            heads=order.topk(NUM_VALUE_HEADS).indices,
            choice=empty(config.num_elites).exponential_(generator=generator),
            exploration=normal(),
        )

    def draw_each(self, generators: Sequence[torch.Generator]) -> Draws:
        """Return draws for one environment per generator: each environment's plan is then independent of the others."""
        each = [self.draw(generator) for generator in generators]
        return Draws(*(torch.cat(parts) for parts in zip(*each, strict=True)))

    @torch.no_grad()
    def plan(self, latents: Tensor, draws: Draws, warm_start: Tensor | None = None, std: Tensor | None = None) -> Plan:
        """Return the plans for latents [E, L]; no argument is modified.

        Args:
            warm_start: the mean [E, H, A] of the plans one decision ago, with zeros for environments that begin an
                episode; without, all begin one.
            std: to sample with at first [E, H, A], as of one decision ago too; without, the largest.
        """
        shape = (len(latents), self.config.horizon, self.model.action_dim)
        if warm_start is None:
            warm_start = latents.new_zeros(shape)
        assert warm_start.shape == shape, f"a warm start of shape {tuple(warm_start.shape)}, not {shape}"
        assert len(draws.samples) == len(latents), f"draws for {len(draws.samples)} of {len(latents)} environments"
        if self.compiled:
            try:
                return self.compiled(latents, warm_start, draws, std)
            except Exception as error:  # what is wrong with the plan itself fails again
                if is_out_of_memory(error):
                    raise
                report_failure("plans", error)
                self.compiled = None
        return self._plan(latents, warm_start, draws, std)

    @torch.no_grad()
    def plan_each(
        self,
        start: Tensor,
        generators: Sequence[torch.Generator | None],
        warm_start: Tensor,
        std: Tensor | None = None,
        *,
        encoded: bool = True,
    ) -> Plan:
        """Return the plans for latents [E, L], or observations [E, S] that are not encoded, each with its own draws.

        Where the program says so, all of it is one graph. That draws from generators of its own, which are given the
        states of those of the environments and give them back.

        Args:
            generators: None for an environment whose plan nobody uses.
        """

        def compute(own: Sequence[torch.Generator | None], start: Tensor, warm_start: Tensor, *std: Tensor) -> Plan:
            latents = start if encoded else self.model.encode(start)
            return self.plan(latents, self._draw_some(own), warm_start, *std)

        given = [start, warm_start, *([] if std is None else [std])]
        if not self.program.captured:
            return compute(generators, *given)
        kind = (*start.shape, encoded, std is not None)
        if kind not in self.graphs:
            slots = [torch.Generator(start.device) for _ in generators]
            self.graphs[kind] = Captured(start.device, slots), slots
        captured, slots = self.graphs[kind]
        pairs = [(slot, outer) for slot, outer in zip(slots, generators, strict=True) if outer]
        for slot, outer in pairs:
            slot.set_state(outer.get_state())
        plan = captured(partial(compute, slots), *given)
        for slot, outer in pairs:
            outer.set_state(slot.get_state())
        return plan

    def _draw_some(self, generators: Sequence[torch.Generator | None]) -> Draws:
        """Return draws for one environment per generator; without one, those of the first that has one."""
        draws = self.draw_each([generator for generator in generators if generator])
        if all(generators):
            return draws
        numbers = iter(range(len(generators)))
        order = torch.tensor([next(numbers) if generator else 0 for generator in generators])
        return Draws(*(part[order.to(part.device)] for part in draws))

    def _plan(self, latents: Tensor, warm_start: Tensor, draws: Draws, std: Tensor | None = None) -> Plan:
        config = self.config
        model = PackedModel(
            self.model, self.dtype, discount=self.discount, soft_termination=config.termination == "soft"
        )
        start = model.sort(latents.float())
        mean = torch.cat([warm_start[:, 1:], torch.zeros_like(warm_start[:, :1])], dim=1)
        largest = torch.full_like(mean, config.std_max)
        std = largest if std is None else torch.cat([std[:, 1:], largest[:, :1]], dim=1)
        for iteration in range(self.num_iterations):
            sampled = torch.addcmul(mean[:, :, None], std[:, :, None], draws.samples[:, iteration]).clamp(-1, 1)
            if iteration == 0:
                roll = follow_both(model, start, draws.policy, sampled)
                from_policy = roll.first(config.num_policy_samples)
            else:
                roll = join(from_policy, follow(model, start, sampled))
            heads = model.choose_heads(draws.heads[:, iteration])
            values = evaluate(model, roll, draws.terminal[:, iteration], heads).nan_to_num(0)
            elite_values, index = values.topk(config.num_elites)
            elites = take(torch.stack(roll.actions, dim=1), index)
            log_weights = torch.log_softmax(config.temperature * elite_values, dim=-1)
            mean, std = moments(elites, log_weights.exp())
            mean, std = mean.clamp(-1, 1), std.clamp(config.std_min, config.std_max)
        chosen = (log_weights - draws.choice.log()).argmax(dim=-1, keepdim=True)  # these logarithms are Gumbel noise
        elite = take(elites, chosen)[:, :, 0]
        roll = follow(model, start, torch.stack([mean, elite], dim=2))
        values = evaluate(model, roll, torch.zeros_like(roll.actions[0]), heads)
        predicted = model.restore(torch.stack([start[:, None].expand(-1, 2, -1), *roll.latents], dim=2))
        return Plan(
            mean=mean,
            std=std,
            elite=elite,
            explored=torch.addcmul(elite[:, 0], std[:, 0], draws.exploration).clamp(-1, 1),
            mean_latents=predicted[:, 0],
            elite_latents=predicted[:, 1],
            mean_value=values[:, 0],
            elite_value=values[:, 1],
            elites=elites,
            elite_values=elite_values,
            elite_weights=log_weights.exp(),
        )


def follow(model: PackedModel, start: Tensor, actions: Tensor) -> Roll:
    """Return what comes of action sequences [E, H, N, A] from latents [E, L]."""
    return model.roll(start, lambda step, _: actions[:, step], actions.shape[1])


def follow_both(model: PackedModel, start: Tensor, draws: Tensor, actions: Tensor) -> Roll:
    """Return what comes of the policy's actions for draws [E, H, P, A], and behind them of sequences [E, H, N, A]."""
    num_policy, horizon = draws.shape[2], draws.shape[1]

    def act(step: int, latents: Tensor) -> Tensor:
        from_policy = model.policy_actions(latents[:, :num_policy], draws[:, step])
        return torch.cat([from_policy, actions[:, step]], dim=1)

    return model.roll(start, act, horizon)


def join(first: Roll, second: Roll) -> Roll:
    """Return the sequences of both."""
    return Roll(
        [torch.cat(pair, dim=1) for pair in zip(first.actions, second.actions, strict=True)],
        [torch.cat([first.latents[-1], second.latents[-1]], dim=1)],
        torch.cat([first.returns, second.returns], dim=1),
        torch.cat([first.weight, second.weight], dim=1),
    )


def evaluate(model: PackedModel, roll: Roll, draws: Tensor, heads: Heads) -> Tensor:
    """Return what sequences are worth [E, N], with the policy's action for draws [E, N, A] behind them."""
    actions = model.policy_actions(roll.latents[-1], draws)
    return torch.addcmul(roll.returns, roll.weight, model.values(roll.latents[-1], actions, heads))


def take(sequences: Tensor, index: Tensor) -> Tensor:
    """Return sequences [E, H, K, A] of [E, H, N, A] by indices [E, K]."""
    return sequences.gather(2, index[:, None, :, None].expand(-1, sequences.shape[1], -1, sequences.shape[-1]))


def moments(elites: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted mean and standard deviation [E, H, A] of sequences [E, H, K, A] by weights [E, K]."""
    weights = weights[:, None, :, None]
    mean = (weights * elites).sum(dim=2)
    return mean, (weights * (elites - mean[:, :, None]).square()).sum(dim=2).sqrt()
