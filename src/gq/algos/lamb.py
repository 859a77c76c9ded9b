"""LAMB (arXiv 1904.00962): Adam whose step is scaled, tensor by tensor, to a share of the tensor's own norm."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lamb(torch.optim.Optimizer):
    """p <- p - lr * ||p|| / ||u|| * u  with  u = m / (sqrt(v) + eps) + weight_decay * p, both moments bias-corrected.

    The ratio is 1 for a tensor or a step of norm 0. Decay and ratio apply to every tensor, biases and gains too. The
    published Online Decision Transformer drops the ratio where weight_decay is 0 and so becomes Adam; here it stays.

    As with torch's fused optimisers, setting `found_inf` to 1 before a step (a tensor on the device) makes it change
    nothing, so that no step waits for the host.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        settings = {"lr": learning_rate, "weight_decay": weight_decay, "betas": betas, "eps": epsilon}
        super().__init__(parameters, settings)
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that the parameters hold; those are overwritten."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        steps = [s["step"] for s in states]
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        taken = torch.ones((), device=steps[0].device) if self.found_inf is None else 1 - self.found_inf
        if self.found_inf is not None:
            for gradient in gradients:
                gradient.nan_to_num_(0.0, 0.0, 0.0)  # 0 * nan is nan
        torch._foreach_add_(steps, [taken] * len(steps))  # a single tensor would be read on the host
        torch._foreach_mul_(first, 1 - (1 - beta1) * taken)
        torch._foreach_mul_(second, 1 - (1 - beta2) * taken)
        squares = torch._foreach_mul(gradients, gradients)
        torch._foreach_mul_(squares, (1 - beta2) * taken)
        torch._foreach_add_(second, squares)
        torch._foreach_mul_(gradients, (1 - beta1) * taken)
        torch._foreach_add_(first, gradients)

        count = steps[0].clamp(min=1)  # all parameters of a group take every step together
        updates = torch._foreach_div(first, -torch.expm1(count * math.log(beta1)))  # 1 - beta1^count
        roots = torch._foreach_sqrt(torch._foreach_div(second, -torch.expm1(count * math.log(beta2))))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_div_(updates, roots)
        torch._foreach_add_(updates, parameters, alpha=decay)
        scale = group["lr"] * taken
        sizes, lengths = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
        ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
        torch._foreach_mul_(updates, (-scale * ratios).unbind())
        torch._foreach_add_(parameters, updates)
