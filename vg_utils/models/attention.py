"""Attention and normalisation as torch has them, without what they cost on a GPU in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.config import ConfigError

QUICK = 1.702  # of QuickGELU (Hendrycks and Gimpel 2016, section 2)


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


class SelfAttention(nn.MultiheadAttention):
    """torch's, with its parameters, for rows that attend to themselves; it copies less, see `Attention`."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(N, L, C), thrice the same, and a mask (L, L) that is added -> (N, L, C), and no weights."""
        inputs = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = inputs.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        answers = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(answers.transpose(1, 2).flatten(2)), None


class QuickGELUMlp(nn.Sequential):
    """Layers `c_fc`, QuickGELU, `c_proj` of OpenAI's CLIPs, with one large operation for QuickGELU's three.

    x * sigmoid(1.702 x) is silu(1.702 x) / 1.702. In training both factors are applied to the matrices, which
    are small, and not to what goes through them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        first, _, last = self
        plain = type(first) is type(last) is nn.Linear  # LoRA wraps them
        if not (self.training and plain):
            return super().forward(x)
        x = F.silu(F.linear(x, QUICK * first.weight, QUICK * first.bias))
        return F.linear(x, last.weight / QUICK, last.bias)


class LayerNorm(nn.LayerNorm):
    """As torch's, but what comes in half precision goes out in it: under autocast torch's makes it float32.

    The kernel computes mean and variance in float32 all the same; what is saved is moving twice the bytes.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """As torch's, whose kernel has one block of threads a group: with few images most of a GPU is idle."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or x.device.type != "cuda":
            return super().forward(x)
        return normalise_groups(x, self.num_groups, self.weight, self.bias, self.eps)


def normalise_groups(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation (Wu and He 2018, section 3) of (B, C, H, W), float32, on all of a GPU."""
    grouped = x.float().unflatten(1, (groups, -1))  # (B, groups, C / groups, H, W)
    variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
    scale = weight.view(groups, -1, 1, 1) * (variance + eps).rsqrt()  # (B, groups, C / groups, 1, 1)
    shift = bias.view(groups, -1, 1, 1) - mean * scale
    return torch.addcmul(shift, grouped, scale).flatten(1, 2)
