"""The flagship: it learns boxes and presence, its switches switch, its losses know who has no box.

What it promises in common with `transvg` is in test_pyramid.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.models.maps import (
    SIZE,
    batch_of,
    build_small,
    miou,
    overfit,
    small_config,
    weighted_loss,
    without_gradient,
)
from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.models.clip import tokenize
from vg_utils.models.dense_grounder import FREQUENCIES, cell_centres, place_encoding
from vg_utils.models.losses import cells_in_box
from vg_utils.training.loaders import load_split

NAME = "dense-grounder"


@pytest.fixture(scope="module")
def examples(tiny_scenes):
    return load_split(small_config(NAME, data__root=str(tiny_scenes)), "train")[:4]


@pytest.fixture(scope="module")
def batch(examples):
    """Four images with all their expressions and absent phrases."""
    return batch_of(examples)


# --- learning ----------------------------------------------------------------------------------------------


def test_overfits_four_pictures_and_tells_absent_phrases_from_present_ones(batch):
    model = build_small(NAME, model__dense_grounder__dropout=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = overfit(model, batch, steps=100, lr=5e-3)
    assert miou(outputs, batch) > 0.7
    there = batch.target_boxes_cxcywh[:, 2] > 0
    assert outputs["presence"][there].min() > outputs["presence"][~there].max()
    iou = paired_iou(to_xyxy(outputs["boxes_cxcywh"]), to_xyxy(batch.target_boxes_cxcywh))
    assert (outputs["score"] - iou)[there].abs().mean() < 0.2
    inside = cells_in_box(batch.target_boxes_cxcywh, SIZE // 16)
    assert outputs["heatmap"][inside].mean() > 0.5 > 0.2 > outputs["heatmap"][~inside].mean()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key, p in model.named_parameters() if p.requires_grad}
    assert not any(key.startswith(("clip.", "hrnet.")) for key in changed)


# --- switches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"words": False},
        {"coordinates": False},
        {"words": False, "coordinates": False},
        {"blocks": 1},
        {"box_loss": "huber"},
        {"box_loss": "ciou"},
    ],
    ids=str,
)
def test_each_switch_builds_runs_and_trains_all_that_it_says_it_trains(changes, batch):
    settings = {f"model__dense_grounder__{key}": value for key, value in changes.items()}
    model = build_small(NAME, model__clip__text_tuning="last", **settings).train()
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)
    weighted_loss(model, outputs, batch.target_boxes_cxcywh).backward()
    assert without_gradient(model) == set()
    assert (model.place is None) == (changes.get("coordinates") is False)
    words = changes.get("words", True)
    assert (model.project_words is not None) == words
    assert set(model.encode_texts(batch.tokens)) == ({"pooled", "tokens", "mask"} if words else {"pooled"})


@torch.no_grad()
def test_without_words_only_the_pooled_vector_is_read(batch):
    """And with them a word counts that the pooled vector does not show."""
    rows = batch.image_index == 0
    index, maps = batch.image_index[rows], None
    for words in (True, False):
        model = build_small(NAME, model__dense_grounder__words=words).eval()
        maps = model.encode_images(batch.images)
        text = model.encode_texts(batch.tokens[rows])
        boxes = model(maps, text, index)["boxes_cxcywh"]
        other = text | {"tokens": -text["tokens"]} if words else text | {"pooled": -text["pooled"]}
        assert (model(maps, other, index)["boxes_cxcywh"] - boxes).abs().amax(1).min() > 1e-6


@torch.no_grad()
def test_a_model_that_is_told_the_places_answers_a_mirrored_map_with_other_boxes(batch):
    """Without places, a grey image is the same everywhere but for the zeros beyond its edges."""
    tokens, index = tokenize(["the cube"], trim=True), torch.tensor([0])
    for told in (True, False):
        model = build_small(NAME, model__dense_grounder__coordinates=told).eval()
        for block in model.blocks:  # 3 x 3 convolutions see the edges: 1 x 1 in effect
            block.look_nearby.weight[:, :, :, (0, 2)] = 0
            block.look_nearby.weight[:, :, (0, 2)] = 0
        maps = {
            name: value.mean((2, 3), keepdim=True).expand_as(value)
            for name, value in model.encode_images(batch.images[:1]).items()
        }
        for block in model.pyramid.blocks:
            block.layers[-1].weight.zero_()
        heatmap = model(maps, model.encode_texts(tokens), index)["heatmap_logits"][:, -1]
        assert (heatmap.std() > 1e-3) == told


# --- outputs and losses ------------------------------------------------------------------------------------


@torch.no_grad()
def test_temperatures_divide_the_logits_and_leave_the_rest(batch):
    model = build_small(NAME).eval()
    expected = model.predict(batch.images, batch.tokens, batch.image_index)
    model.temperatures.copy_(torch.tensor([2.0, 0.25]))
    found = model.predict(batch.images, batch.tokens, batch.image_index)
    torch.testing.assert_close(found["score"], (expected["score_logit"] / 2).sigmoid())
    torch.testing.assert_close(found["presence"], (expected["presence_logit"] * 4).sigmoid())
    for name in set(expected) - {"score", "presence"}:
        assert torch.equal(found[name], expected[name]), name
    assert "temperatures" in model.state_dict()  # a checkpoint keeps them
    # Training is about the logits: a calibrated model has the losses of the same model as it was.
    losses = [model.losses(outputs, batch.target_boxes_cxcywh) for outputs in (expected, found)]
    assert losses[0] == losses[1]


def test_an_absent_phrase_teaches_presence_and_an_empty_map_and_nothing_else(batch):
    model = build_small(NAME).eval()
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)
    targets = batch.target_boxes_cxcywh
    absent = targets[:, 2] == 0
    read = ("boxes_cxcywh", "score_logit", "presence_logit", "heatmap_logits", "cells_cxcywh")
    leaves = {name: outputs[name].detach().requires_grad_() for name in read}
    weighted_loss(model, leaves, targets).backward()
    reached = {name: value.grad.flatten(1).any(1) if value.ndim > 1 else value.grad != 0
               for name, value in leaves.items()}  # fmt: skip
    assert torch.equal(reached["boxes_cxcywh"], ~absent)
    assert torch.equal(reached["score_logit"], ~absent)
    inside = cells_in_box(targets, SIZE // 16).flatten(1)  # only these cells know where the sides are
    of_cells = leaves["cells_cxcywh"].grad.any(3)  # (N, K, G * G)
    assert torch.equal(of_cells, inside[:, None].expand_as(of_cells))
    assert reached["presence_logit"].all()
    assert reached["heatmap_logits"].all()
    assert (leaves["heatmap_logits"].grad[absent] > 0).all()  # down, everywhere
    assert (leaves["presence_logit"].grad[absent] > 0).all()
    assert (leaves["presence_logit"].grad[~absent] < 0).all()


def test_losses_are_least_at_the_truth():
    model = build_small(NAME)
    targets = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.3, 0.7, 0.2, 0.4], [0.0, 0.0, 0.0, 0.0]])
    maps = torch.where(cells_in_box(targets, 4), 9.0, -9.0)[:, None].repeat(1, 2, 1, 1)  # of two blocks
    truth = {
        "boxes_cxcywh": targets.clone(),
        "heatmap_logits": maps,
        "cells_cxcywh": targets[:, None, None].repeat(1, 2, 16, 1),
        "score_logit": torch.full((3,), 9.0),
        "presence_logit": torch.tensor([9.0, 9.0, -9.0]),
    }
    assert all(value < 0.02 for value in model.losses(truth, targets).values())
    names = {"boxes_cxcywh": ("l1", "giou", "score"), "heatmap_logits": ("heatmap",)}
    names |= {"score_logit": ("score",), "presence_logit": ("presence",)}
    names |= {"cells_cxcywh": ("cell_l1", "cell_giou")}
    for part, expected in names.items():
        wrong = truth | {part: 1 - truth[part] if "cxcywh" in part else -truth[part]}
        worse = {name for name, value in model.losses(wrong, targets).items() if value > 0.05}
        assert worse == set(expected)


class _Says(nn.Module):
    """Cells that say what they are told to, whatever they see."""

    def __init__(self, cells: torch.Tensor) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cells.expand(len(x), -1, -1)


@torch.no_grad()
def test_the_box_is_the_mean_of_what_the_cells_say_weighted_by_how_sure_they_are(batch):
    model = build_small(NAME).eval()
    maps, text = model.encode_images(batch.images[:1]), model.encode_texts(batch.tokens[:1])
    sides = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0)) / 4  # left, top, right, bottom

    def box(logits: torch.Tensor) -> list[float]:
        said = torch.cat([logits[None], sides.expm1().log()])  # (5, 4, 4)
        model.cell = _Says(said.flatten(1).T[None])
        outputs = model(maps, text, torch.tensor([0]))
        assert torch.equal(outputs["heatmap"][0], logits.sigmoid())
        return to_xyxy(outputs["boxes_cxcywh"])[0].tolist()

    def said(row: int, column: int) -> list[float]:
        x, y = (column + 0.5) / 4, (row + 0.5) / 4
        left, top, right, bottom = sides[:, row, column].tolist()
        return [x - left, y - top, x + right, y + bottom]

    sure = torch.full((4, 4), -40.0)
    sure[1, 2] = 40.0
    assert box(sure) == pytest.approx(said(1, 2), abs=1e-5)
    sure[3, 0] = 40.0 + math.log(3)
    expected = [(a + 3 * b) / 4 for a, b in zip(said(1, 2), said(3, 0), strict=True)]
    assert box(sure) == pytest.approx(expected, abs=1e-5)


def test_centres_and_places_are_rows_of_x_and_y():
    centres = cell_centres(4)
    assert centres.shape == (16, 2)
    assert centres[1].tolist() == [3 / 8, 1 / 8]  # the second cell is to the right of the first
    assert centres[4].tolist() == [1 / 8, 3 / 8]
    places = place_encoding(4)
    assert places.shape == (2 + 4 * FREQUENCIES, 4, 4)
    torch.testing.assert_close(places[0], (centres[:, 0] * 2 - 1).view(4, 4))
    torch.testing.assert_close(places[1], (centres[:, 1] * 2 - 1).view(4, 4))
    assert places.abs().max() <= 1
    flat = places.flatten(1).T
    assert len({tuple(round(v, 4) for v in row) for row in flat.tolist()}) == 16  # no two cells alike
