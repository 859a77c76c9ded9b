"""MLPs whose weights are slices of one tensor, with a backward pass of their own: small networks, learnt fast on a CPU.

Adam, a target network's step and a gradient's norm are then one pass over one tensor, and a gradient is computed only
where it is needed: of the weights, or of the inputs. `FlatMLP.forward` is the same by autograd.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Layer(NamedTuple):
    """Views of one layer: y = norm(relu(x W^T + b)) * gain + shift; the last layer is linear, without a norm."""

    weight: Tensor  # [O, I]
    bias: Tensor  # [O]
    gain: Tensor | None = None  # [O]
    shift: Tensor | None = None  # [O]


class Kept(NamedTuple):
    """What the backward pass of a hidden layer needs of the forward pass."""

    inputs: Tensor  # [B, I]
    hidden: Tensor  # [B, O], behind the ReLU
    normal: Tensor | None = None  # [B, O], behind the norm, before gain and shift
    mean: Tensor | None = None  # [B, 1]
    rstd: Tensor | None = None  # [B, 1]


class FlatMLP(nn.Module):
    """`num_heads` MLPs of equal shape on the same inputs, all weights in the parameter `flat` [P]."""

    def __init__(
        self, widths: tuple[int, ...], *, num_heads: int = 1, norm: bool = False, last_bound: float | None = None
    ) -> None:
        """Take the widths of inputs, hidden layers and outputs.

        Args:
            norm: LayerNorm behind each ReLU, as ReBRAC's critic has it (arXiv 2305.09836).
            last_bound: draw the last layer from U(-bound, bound) and set hidden biases to 0.1, as ReBRAC does; None:
                as torch's `nn.Linear`.
        """
        super().__init__()
        self.widths, self.num_heads, self.norm = widths, num_heads, norm
        per_head = sum(i * o + o for i, o in pairwise(widths)) + norm * 2 * sum(widths[1:-1])
        self.flat = nn.Parameter(torch.zeros(num_heads * per_head))
        with torch.no_grad():
            for head in self.layers(self.flat):
                _initialise(head, last_bound)

    def layers(self, flat: Tensor) -> list[list[Layer]]:
        """Return views of the layers of each head in a tensor like `flat` [P]."""
        heads, start = [], 0

        def take(*shape: int) -> Tensor:
            nonlocal start
            start += math.prod(shape)
            return flat[start - math.prod(shape) : start].view(shape)

        for _ in range(self.num_heads):
            head = []
            for index, (inputs, outputs) in enumerate(pairwise(self.widths)):
                normed = self.norm and index < len(self.widths) - 2
                views = [take(outputs, inputs), take(outputs), *([take(outputs), take(outputs)] if normed else [])]
                head.append(Layer(*views))
            heads.append(head)
        return heads

    def forward(self, inputs: Tensor, flat: Tensor | None = None) -> list[Tensor]:
        """Return the outputs [..., O] of each head for inputs [..., I], by autograd.

        Args:
            flat: other weights, such as a target network's, or detached ones that are to be held.
        """
        outputs = []
        for head in self.layers(self.flat if flat is None else flat):
            x = inputs
            for layer in head[:-1]:
                x = F.relu(F.linear(x, layer.weight, layer.bias))
                if self.norm:
                    x = F.layer_norm(x, x.shape[-1:], layer.gain, layer.shift, NORM_EPS)
            outputs.append(F.linear(x, head[-1].weight, head[-1].bias))
        return outputs


def _initialise(head: list[Layer], last_bound: float | None) -> None:
    for layer in head:
        is_last, bound = layer is head[-1], 1 / math.sqrt(layer.weight.shape[1])
        if is_last and last_bound is not None:
            bound = last_bound
        layer.weight.uniform_(-bound, bound)
        if last_bound is None or is_last:
            layer.bias.uniform_(-bound, bound)
        else:
            layer.bias.fill_(0.1)
        if layer.gain is not None:
            layer.gain.fill_(1)


def run(head: list[Layer], x: Tensor, kept: list[Kept] | None = None) -> Tensor:
    """Return the outputs [B, O] of one head for inputs [B, I], without autograd.

    Args:
        kept: gets what `differentiate` needs, by layer.
    """
    for layer in head[:-1]:
        inputs, x = x, torch.addmm(layer.bias, x, layer.weight.t()).relu_()
        memory = Kept(inputs, x)
        if layer.gain is not None:
            assert layer.shift is not None
            normal, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, NORM_EPS)
            memory, x = Kept(inputs, x, normal, mean, rstd), torch.addcmul(layer.shift, normal, layer.gain)
        if kept is not None:
            kept.append(memory)
    if kept is not None:
        kept.append(Kept(x, x))
    return torch.addmm(head[-1].bias, x, head[-1].weight.t())


def differentiate(
    head: list[Layer], kept: list[Kept], gradient: Tensor, into: list[Layer] | None = None, *, columns: int = 0
) -> Tensor | None:
    """Go back through a head, from the gradient [B, O] of its outputs.

    Args:
        kept: from `run`.
        into: gets the gradients of the weights; None: they are held.
        columns: return the gradient of the last so many inputs; 0: of none.

    Returns:
        It [B, columns], or None.
    """
    for index in reversed(range(len(head))):
        layer, memory = head[index], kept[index]
        if index < len(head) - 1:
            gradient = _behind_activation(layer, memory, gradient, into[index] if into else None)
        if into:
            torch.mm(gradient.t(), memory.inputs, out=into[index].weight)
            torch.sum(gradient, 0, out=into[index].bias)
        if index:
            gradient = gradient @ layer.weight
    return gradient @ head[0].weight[:, -columns:] if columns else None


def _behind_activation(layer: Layer, memory: Kept, gradient: Tensor, into: Layer | None) -> Tensor:
    """Return the gradient [B, O] before norm and ReLU, from the one behind them."""
    if layer.gain is not None:
        assert memory.normal is not None
        if into:
            assert into.gain is not None
            torch.sum(gradient * memory.normal, 0, out=into.gain)
            torch.sum(gradient, 0, out=into.shift)
        gradient = torch.ops.aten.native_layer_norm_backward(
            gradient * layer.gain, memory.hidden, memory.hidden.shape[-1:], memory.mean, memory.rstd, None, None,
            [True, False, False],
        )[0]  # fmt: skip
    return torch.ops.aten.threshold_backward(gradient, memory.hidden, 0)  # type: ignore[no-any-return]
