"""A world model's predictions along many action sequences from the same latents, computed without waste.

Weights are arranged once per plan, in the precision of the matrix products; norms, activations, latents, sums and
values are float32 always. Four identities save the work:

1. Sorted latents. A latent z is G groups of V neighbouring entries, each group a softmax of V numbers h. Seen as a
   matrix [G, V], its transpose [V, G] has the groups as columns, and a softmax down columns runs over G neighbouring
   numbers at a time, which is twenty times as fast on a CPU. If P is the permutation that transposes, then
   W z = (W P^T)(P z): layers that read latents get their columns permuted, the last layer of the dynamics, which writes
   them, its rows. Its LayerNorm does not mind, mean and variance being the same in any order.
2. Constant inputs. A first layer reads [z, t, a], with the task's embedding t: W [z, t, a] + b = W_z z + W_a a +
   (b + W_t t). That bracket is the layer's bias here. In the first decision, z is the same for all N sequences of an
   environment, so W_z z + b is computed once and added to N products W_a a.
3. Mish by powers of two. With e = exp(x), tanh(log(1 + e)) = 1 - 1 / (1 + e + e^2 / 2), so mish(x) = x tanh(log(1 + e))
   needs one exponential and one division. That exponential is 2^(c x) with c = log2(e). Every Mish stands between a
   LayerNorm and a linear layer: the norm's scale and shift are multiplied by c, so that c x arrives, c mish(x) =
   c x - c x / (1 + e + e^2 / 2) leaves, and the weights of the layer after it are divided by c.
4. Rewards last. Nothing that is chosen along a sequence depends on its rewards, so the rewards of all decisions but the
   first go through their network at once, when all latents are there.

Shapes: E environments, N sequences of each, H decisions, L latent_dim, A action_dim, K heads of Q, I inputs, O outputs.
"""

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gq.models.distributions import bounded_log_std, two_hot_decode
from gq.models.world_model import EnsembleLinear, NormedLinear, WorldModel

LOG2_E = 1 / math.log(2)


class Layer(NamedTuple):
    """A linear layer, and the LayerNorm after it if there is one; ensembles have leading dimensions."""

    weight: Tensor  # [O, I]
    bias: Tensor  # [O]
    norm_weight: Tensor | None  # float32 [O]
    norm_bias: Tensor | None  # float32 [O]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Layer":
        """Return the layer with every parameter changed."""
        norm = [None if part is None else change(part) for part in (self.norm_weight, self.norm_bias)]
        return Layer(change(self.weight), change(self.bias), *norm)


Heads = list[list[list[Layer]]] | list[Layer]  # a network for each environment and head, or one with both in front


class Roll(NamedTuple):
    """What the model predicts along action sequences."""

    actions: list[Tensor]  # H times [E, N, A]
    latents: list[Tensor]  # H times [E, N, L], after each decision, sorted by place
    returns: Tensor  # [E, N], discounted sums of rewards
    weight: Tensor  # [E, N], what the value of the last latent counts beside them

    def first(self, count: int) -> "Roll":
        """The first `count` sequences."""
        actions, latents = ([part[:, :count] for part in parts] for parts in (self.actions, self.latents))
        return Roll(actions, latents, self.returns[:, :count], self.weight[:, :count])


class PackedModel:
    """The networks that planning needs, with latents sorted by place: `sort` and `restore` translate.

    Args:
        dtype: of the matrix products.
        soft_termination: weigh what follows by the predicted probability that the episode continues; without, it counts
            fully up to the first probability below one half, and not at all from there.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype, *, discount: float, soft_termination: bool) -> None:
        self.config, self.bins, self.dtype = model.config, model.bins, dtype
        self.discount, self.soft_termination = discount, soft_termination
        self.task: Tensor | None = None
        if model.task_embedding is not None:
            embedding = model.task_embedding.weight[model.task]
            self.task = embedding / embedding.norm().clamp(min=1)
        *hidden, last = self._pack(model.dynamics)
        self.dynamics = [*hidden, last.each(lambda part: self.sort(part.movedim(0, -1)).movedim(-1, 0))]
        self.reward, self.policy = self._pack(model.reward_head), self._pack(model.policy_head)
        self.q = self._pack(model.q_heads.layers)
        self.termination = None if model.termination_head is None else self._pack(model.termination_head)

    def sort(self, latents: Tensor) -> Tensor:
        """Return latents [..., L] of the model sorted by place."""
        groups: Tensor = latents.unflatten(-1, (-1, self.config.simplex_dim))
        return groups.transpose(-1, -2).flatten(-2)

    def restore(self, latents: Tensor) -> Tensor:
        """Return sorted latents [..., L] as the model has them."""
        groups: Tensor = latents.unflatten(-1, (self.config.simplex_dim, -1))
        return groups.transpose(-1, -2).flatten(-2)

    def roll(self, start: Tensor, act: Callable[[int, Tensor], Tensor], horizon: int) -> Roll:
        """Follow sequences from latents [E, L].

        Args:
            act: returns the actions [E, N, A] of a decision, for its number and its latents: [E, N, L], or [E, 1, L] at
                the start.
        """
        latents: list[Tensor] = []
        inputs: list[Tensor] = []
        actions = [act(0, start[:, None])]
        hidden = self._first_layer(self.dynamics[0], start, actions[0])
        reward_hidden = [self._first_layer(self.reward[0], start, actions[0])[:, None]]
        for step in range(1, horizon + 1):
            hidden = self._hidden(activate(hidden, self.dynamics[0]), self.dynamics[1:-1])
            latents.append(self._simplicial(hidden))
            if step < horizon:
                actions.append(act(step, latents[-1]))
                inputs.append(self._join(latents[-1], actions[-1]))
                hidden = linear(inputs[-1], self.dynamics[0])
        if inputs:
            reward_hidden.append(linear(torch.stack(inputs, dim=1), self.reward[0]))
        hidden = activate(torch.cat(reward_hidden, dim=1), self.reward[0])
        rewards = two_hot_decode(self._outputs(hidden, self.reward[1:]), self.bins)
        return Roll(actions, latents, *self._accumulate(rewards, latents))

    def policy_actions(self, latents: Tensor, draws: Tensor) -> Tensor:
        """Return the policy's actions [E, N, A] for standard normal draws [E, N, A]; latents [E, 1, L] are shared."""
        location, raw = self._outputs(latents, self.policy).float().chunk(2, dim=-1)
        log_std = bounded_log_std(raw, self.config.log_std_min, self.config.log_std_max)
        return torch.tanh(location + draws * log_std.exp())

    def choose_heads(self, heads: Tensor) -> Heads:
        """Return heads of Q, int64 [E, K], as `values` takes them.

        On a CPU these are views of the layers, one network after the other: to gather their weights would copy them.
        """
        if heads.device.type != "cpu" or torch.compiler.is_compiling():
            return [layer.each(lambda part: part[heads]) for layer in self.q]
        return [[[layer.each(itemgetter(head)) for layer in self.q] for head in row] for row in heads.tolist()]

    def values(self, latents: Tensor, actions: Tensor, heads: Heads) -> Tensor:
        """Return the mean value [E, N] that chosen heads give actions [E, N, A] in latents [E, N, L]."""
        inputs = self._join(latents, actions)
        if isinstance(heads[0], list):
            each = [self._outputs(rows, head) for rows, row in zip(inputs, heads, strict=True) for head in row]
            logits = torch.stack(each).unflatten(0, (len(inputs), -1))
        else:
            logits = grouped_outputs(inputs, heads)
        return two_hot_decode(logits, self.bins).mean(dim=1)

    def _accumulate(self, rewards: Tensor, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return returns and weight of a Roll from rewards [E, H, N] and the latents after each decision."""
        continues: Tensor | None = None
        if self.termination is not None:
            logits = self._outputs(torch.stack(latents, dim=1), self.termination).squeeze(-1).float()
            continues = torch.sigmoid(-logits) if self.soft_termination else (logits <= 0).float()
        returns, weight = torch.zeros_like(rewards[:, 0]), torch.ones_like(rewards[:, 0])
        for step in range(rewards.shape[1]):
            returns = torch.addcmul(returns, weight, rewards[:, step])
            weight = weight * self.discount if continues is None else weight * self.discount * continues[:, step]
        return returns, weight

    def _first_layer(self, layer: Layer, start: Tensor, actions: Tensor) -> Tensor:
        """Return [E, N, O] for actions [E, N, A] in the latents [E, L] that they share."""
        width = start.shape[-1]
        shared = F.linear(start.to(self.dtype), layer.weight[:, :width], layer.bias)
        weight = layer.weight[:, width:].mT.expand(len(actions), -1, -1)
        return torch.baddbmm(shared[:, None], actions.to(self.dtype), weight)

    def _hidden(self, hidden: Tensor, layers: list[Layer]) -> Tensor:
        """Return float32 [..., O] behind layers with Mish for [..., I]."""
        for layer in layers:
            hidden = activate(linear(hidden.to(self.dtype), layer), layer)
        return hidden

    def _outputs(self, inputs: Tensor, layers: list[Layer]) -> Tensor:
        """Return [..., O] behind layers of which all but the last have Mish for [..., I]."""
        return linear(self._hidden(inputs, layers[:-1]).to(self.dtype), layers[-1])

    def _simplicial(self, hidden: Tensor) -> Tensor:
        """Return float32 sorted latents [..., L] from the last hidden values of the dynamics."""
        normed = norm(linear(hidden.to(self.dtype), self.dynamics[-1]), self.dynamics[-1])
        groups: Tensor = normed.unflatten(-1, (self.config.simplex_dim, -1))
        return groups.softmax(dim=-2).flatten(-2)

    def _join(self, latents: Tensor, actions: Tensor) -> Tensor:
        return torch.cat([latents.to(self.dtype), actions.to(self.dtype)], dim=-1)

    def _pack(self, layers: Iterable[nn.Module]) -> list[Layer]:
        """Return a network's layers in order."""
        first, *others = [unpack(layer) for layer in layers]
        latent_dim, task_dim = self.config.latent_dim, self.config.task_dim
        if self.task is not None:
            from_task = first.weight[..., latent_dim : latent_dim + task_dim] @ self.task
            first = first._replace(bias=first.bias + from_task)
        latent_part, action_part = first.weight[..., :latent_dim], first.weight[..., latent_dim + task_dim :]
        weight = torch.cat([self.sort(latent_part.to(self.dtype)), action_part.to(self.dtype)], dim=-1)
        packed = [first._replace(weight=weight)]
        packed += [layer._replace(weight=(layer.weight / LOG2_E).to(self.dtype)) for layer in others]
        packed = [layer._replace(bias=layer.bias.to(self.dtype)) for layer in packed]
        return [*(scale_norm(layer) for layer in packed[:-1]), packed[-1]]


def unpack(layer: nn.Module) -> Layer:
    """Return the parameters of a layer of the world model."""
    if isinstance(layer, EnsembleLinear):
        return Layer(layer.weight, layer.bias, layer.norm_weight, layer.norm_bias)
    if isinstance(layer, NormedLinear):
        return Layer(layer.weight, layer.bias, layer.norm.weight, layer.norm.bias)
    assert isinstance(layer, nn.Linear)
    return Layer(layer.weight, layer.bias, None, None)


def scale_norm(layer: Layer) -> Layer:
    """Return a layer whose LayerNorm gives log2(e) times as much."""
    assert layer.norm_weight is not None
    assert layer.norm_bias is not None
    return layer._replace(norm_weight=layer.norm_weight * LOG2_E, norm_bias=layer.norm_bias * LOG2_E)


def linear(inputs: Tensor, layer: Layer) -> Tensor:
    """Return [..., O] for [..., I]."""
    return F.linear(inputs, layer.weight, layer.bias)


def norm(outputs: Tensor, layer: Layer) -> Tensor:
    """Return the LayerNorm [..., O] of what a layer's product gave, in float32."""
    return F.layer_norm(outputs.float(), outputs.shape[-1:], layer.norm_weight, layer.norm_bias)


def activate(outputs: Tensor, layer: Layer) -> Tensor:
    """Return LayerNorm and Mish [..., O] of what a layer's product gave, in float32."""
    return mish(norm(outputs, layer))


def mish(values: Tensor) -> Tensor:
    """Turn float32 values c x into c mish(x) in place, see 3 above; takes a fifth of torch's time on a CPU."""
    divisor = values.exp2()
    divisor.addcmul_(divisor, divisor, value=0.5).add_(1)
    return values.addcdiv_(values, divisor, value=-1)


def grouped_outputs(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """Return [E, K, N, O] behind layers with dimensions E and K in front for [E, N, I]."""
    hidden = inputs[:, None].expand(-1, layers[0].weight.shape[1], -1, -1)
    for layer in layers:
        rows = hidden.to(layer.weight.dtype).flatten(0, 1)
        outputs = torch.baddbmm(layer.bias.flatten(0, 1)[:, None], rows, layer.weight.flatten(0, 1).mT)
        hidden = outputs.unflatten(0, layer.weight.shape[:2])
        if layer.norm_weight is not None and layer.norm_bias is not None:
            normed = F.layer_norm(hidden.float(), hidden.shape[-1:])
            hidden = mish(normed.mul_(layer.norm_weight[:, :, None]).add_(layer.norm_bias[:, :, None]))
    return hidden
