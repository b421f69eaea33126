"""TransVG: it learns, its score bends nothing, its positions say what is where.

What it promises in common with `dense-grounder` is in test_pyramid.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.models.maps import batch_of, build_small, miou, overfit, small_config
from vg_utils.models.transvg import MAX_WORDS
from vg_utils.training.loaders import load_split

NAME = "transvg"


@pytest.fixture(scope="module")
def batch(tiny_scenes):
    """Four images with all their expressions; this model is never asked about what is not there."""
    found = batch_of(load_split(small_config(NAME, data__root=str(tiny_scenes)), "train")[:4], absent=0)
    assert (found.target_boxes_cxcywh[:, 2] > 0).all()
    return found


def test_overfits_four_pictures(batch):
    model = build_small(NAME, model__transvg__dropout=0.0)
    assert not model.learns_presence
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = overfit(model, batch, steps=120, lr=4e-3)
    assert miou(outputs, batch) > 0.7
    assert ((outputs["boxes_cxcywh"] >= 0) & (outputs["boxes_cxcywh"] <= 1)).all()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key, p in model.named_parameters() if p.requires_grad}
    assert not any(key.startswith(("clip.", "hrnet.")) for key in changed)


def test_score_does_not_bend_the_box(batch):
    model = build_small(NAME)
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)
    outputs["score"].sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"score_head"}


def test_score_learns_the_overlap():
    model = build_small(NAME)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]])
    targets = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])  # IoU 1/2 and 0
    right = model.losses({"boxes_cxcywh": boxes, "score": torch.tensor([0.5, 0.0])}, targets)["score"]
    wrong = model.losses({"boxes_cxcywh": boxes, "score": torch.tensor([0.0, 1.0])}, targets)["score"]
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx((0.5**2 + 1) / 2, rel=1e-4)


@torch.no_grad()
def test_a_cell_has_the_same_position_however_long_the_phrase_is(batch):
    """[REG] first, then up to 77 words, then the cells, each kind with its own places."""
    model = build_small(NAME).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    grid, cells = model.pyramid.grid, model.pyramid.grid**2
    assert model.positions.shape == (1, 1 + MAX_WORDS + cells, 32)
    maps = model.encode_images(batch.images[:1])
    for length in (4, 9):
        text = model.encode_texts(batch.tokens[:1, :length])
        model(maps, text, torch.tensor([0]))
    short, long = seen
    assert (short.shape[1], long.shape[1]) == (1 + 4 + cells, 1 + 9 + cells)
    torch.testing.assert_close(short[:, -cells:], long[:, -cells:])
    torch.testing.assert_close(short[:, :5], long[:, :5])
    plain = model.project_image(model.pyramid(maps)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(long[:, -cells:] - plain, model.positions[:, -cells:])
    assert grid == 4


@torch.no_grad()
def test_where_a_thing_is_in_the_picture_matters(batch):
    model = build_small(NAME).eval()
    maps, text = model.encode_images(batch.images[:1]), model.encode_texts(batch.tokens[:1])
    boxes = model(maps, text, torch.tensor([0]))["boxes_cxcywh"]
    mirrored = {name: value.flip(3) for name, value in maps.items()}
    assert (model(mirrored, text, torch.tensor([0]))["boxes_cxcywh"] - boxes).abs().max() > 1e-5
