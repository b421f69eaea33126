"""Attention and normalisation: torch's own results, whatever the layout and the precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vg_utils.models.attention import Attention, LayerNorm

CHANNELS, HEADS = 12, 3


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_torchs_multi_head_attention(padded):
    torch.manual_seed(0)
    ours, theirs = Attention(CHANNELS, HEADS), nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.weight.copy_(ours.out.weight)
    theirs.out_proj.bias.copy_(ours.out.bias)
    queries, keys = torch.randn(4, 5, CHANNELS), torch.randn(4, 7, CHANNELS)
    padding = torch.arange(7) >= torch.tensor([[7], [3], [1], [5]]) if padded else None
    expected = theirs(queries, keys, keys, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(ours(queries, keys, padding), expected)


@torch.no_grad()
def test_what_is_padding_does_not_matter():
    torch.manual_seed(0)
    attention, queries, keys = (
        Attention(CHANNELS, HEADS),
        torch.randn(2, 3, CHANNELS),
        torch.randn(2, 6, CHANNELS),
    )
    padding = (torch.arange(6) >= 4).expand(2, -1)
    other = torch.where(padding[..., None], 100.0, keys)
    torch.testing.assert_close(attention(queries, keys, padding), attention(queries, other, padding))
    torch.testing.assert_close(attention(queries, keys, padding), attention(queries, keys[:, :4]))


@torch.no_grad()
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_is_torchs_and_stays_in_the_precision_of_its_input(affine):
    torch.manual_seed(0)
    ours, theirs = (kind(CHANNELS, elementwise_affine=affine) for kind in (LayerNorm, nn.LayerNorm))
    if affine:
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
            norm.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    x = torch.randn(3, 4, CHANNELS)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), theirs(x), rtol=0.02, atol=0.03)
