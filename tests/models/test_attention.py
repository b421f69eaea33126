"""Attention and normalisation: torch's own results, whatever the layout and the precision."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn
from torch.nn import functional as F

from vg_utils.models.attention import Attention, LayerNorm, normalise_groups
from vg_utils.models.clip import quicken

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


@pytest.mark.parametrize("act", [QuickGELU, nn.GELU])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_quick_block_of_clip_computes_and_learns_as_open_clips(act, masked, batch_first):
    torch.manual_seed(0)
    theirs = ResidualAttentionBlock(CHANNELS, HEADS, act_layer=act, batch_first=batch_first).train()
    ours = copy.deepcopy(theirs)
    quicken(ours)
    length = 5 if batch_first else 4
    mask = torch.full((length, length), -torch.inf).triu(1) if masked else None
    x = torch.randn(4, 5, CHANNELS)
    for block in (theirs, ours):
        block(x, attn_mask=mask).square().sum().backward()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, atol=1e-4, rtol=1e-4)
    for mode in (True, False):
        expected = theirs.train(mode)(x, attn_mask=mask)
        torch.testing.assert_close(ours.train(mode)(x, attn_mask=mask), expected)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_groups_are_normalised_as_by_torch_and_stay_in_their_layout(groups, layout):
    torch.manual_seed(0)
    x = (5 + torch.randn(2, CHANNELS, 3, 4)).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, CHANNELS)
    ours = normalise_groups(x, groups, weight, bias, 1e-5)
    torch.testing.assert_close(ours, F.group_norm(x, groups, weight, bias, 1e-5))
    assert ours.is_contiguous(memory_format=layout)
