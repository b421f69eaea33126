"""Attention and normalisation as torch has them, without what they cost on a GPU in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.config import ConfigError


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    `nn.MultiheadAttention` copies queries, keys and values into another order first; here the fused kernels
    read them where they are.

    Args:
        channels: C of queries, keys and answers.
        heads: a divisor of it.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.query, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None = None) -> Tensor:
        """Queries (N, Q, C), keys (N, K, C), padding (N, K) True where there is no key -> (N, Q, C)."""
        q = self.query(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, heads, Q, C / heads)
        k, v = self.key_value(keys).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if padding is None else ~padding[:, None, None]  # (N, 1, 1, K)
        answers = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(answers.transpose(1, 2).flatten(2))


def check_heads(channels: int, heads: int) -> None:
    """Raise a ConfigError unless the heads share the channels out evenly."""
    if channels % heads:
        raise ConfigError(f"heads: expected a divisor of the {channels} channels, got {heads}")


class LayerNorm(nn.LayerNorm):
    """As torch's, but what comes in half precision goes out in it: under autocast torch's makes it float32.

    The kernel computes mean and variance in float32 all the same; what is saved is moving twice the bytes.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
