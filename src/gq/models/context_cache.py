"""Keys and values of the tokens that a backbone has seen, so that the tokens after them are computed alone.

Shapes: B batch, G key/value heads, C capacity in tokens, D head width.
"""

import torch
from torch import Tensor


class LayerCache:
    """The keys and values of one layer, each [B, G, C, D]."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_tokens = 0
        self.keys, self.values = torch.empty(0), torch.empty(0)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in tokens [B, G, T, D]; return the keys and values of all."""
        start, end = self.num_tokens, self.num_tokens + key.shape[2]
        shape = (*key.shape[:2], self.capacity, key.shape[3])
        if start == 0 and (self.keys.shape != shape or self.keys.dtype != key.dtype):
            self.keys, self.values = key.new_empty(shape), value.new_empty(shape)
        self.keys[:, :, start:end], self.values[:, :, start:end] = key, value
        self.num_tokens = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class ContextCache:
    """What every layer of a backbone keeps of contexts that grow together."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]

    @property
    def num_tokens(self) -> int:
        """How many tokens of each row are in it."""
        return self.layers[0].num_tokens

    def clear(self) -> None:
        """Forget all tokens; the memory stays for the next ones."""
        for layer in self.layers:
            layer.num_tokens = 0

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch, int [B'], in this order."""
        if self.num_tokens:
            for layer in self.layers:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
