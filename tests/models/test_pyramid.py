"""The map of `dense-grounder` and `transvg`, and what both promise because a phrase is read into it."""

from __future__ import annotations

import pytest
import torch

from tests.models.maps import (
    NAMES,
    SIZE,
    batch_of,
    build_small,
    small_config,
    tiny_vit,
    weighted_loss,
    without_gradient,
)
from vg_utils.boxes import to_xyxy
from vg_utils.config import ConfigError
from vg_utils.models import build_model
from vg_utils.models.clip import tokenize
from vg_utils.training.loaders import load_split

every_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def batch(tiny_scenes):
    """Four images with all their expressions and absent phrases."""
    config = small_config("dense-grounder", data__root=str(tiny_scenes))
    found = batch_of(load_split(config, "train")[:4])
    assert 0 < (found.target_boxes_cxcywh[:, 2] == 0).sum() < len(found.texts)
    return found


def first_rows(batch) -> torch.Tensor:
    """The first three phrases of each image."""
    return torch.cat([(batch.image_index == i).nonzero().flatten()[:3] for i in range(len(batch.images))])


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@every_model
@torch.no_grad()
def test_outputs_have_their_shapes_and_ranges(name, batch):
    model = build_small(name).eval()
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)
    count = len(batch.texts)
    assert outputs["boxes_cxcywh"].shape == (count, 4)
    assert outputs["score"].shape == (count,)
    for probability in ("score", "presence", "heatmap"):
        if probability in outputs:
            assert ((outputs[probability] >= 0) & (outputs[probability] <= 1)).all()
    assert ("presence" in outputs) == model.learns_presence
    corners = to_xyxy(outputs["boxes_cxcywh"])
    assert (corners[:, 2:] > corners[:, :2]).all()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in outputs.values())


@every_model
@torch.no_grad()
def test_a_picture_is_encoded_once_for_all_its_phrases(name, batch):
    """And what is answered to one phrase does not depend on what else is asked, of this image or others."""
    model = build_small(name).eval()
    rows = first_rows(batch)
    tokens, index = batch.tokens[rows], batch.image_index[rows]
    maps, seen = model.encode_images(batch.images), []
    model.pyramid.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    together = model(maps, model.encode_texts(tokens), index)
    assert seen == [len(batch.images)]
    assert {len(level) for level in maps.values()} == {len(batch.images)}
    for row, picture in list(enumerate(index.tolist()))[::4]:
        one = model.predict(batch.images[picture, None], tokens[row, None], torch.tensor([0]))
        assert_close(one, {key: value[row, None] for key, value in together.items()})
    pair = index == 1  # phrases of one image, as a demo asks
    two = model.predict(batch.images[1, None], tokens[pair], torch.zeros(int(pair.sum()), dtype=torch.long))
    assert_close(two, {key: value[pair] for key, value in together.items()})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    shuffled = model(maps, model.encode_texts(tokens[order]), index[order])
    assert_close(shuffled, {key: value[order] for key, value in together.items()})


@every_model
@torch.no_grad()
def test_padding_changes_nothing(name, batch):
    model = build_small(name).eval()
    rows = first_rows(batch)
    index, texts = batch.image_index[rows], [batch.texts[i] for i in rows.tolist()]
    maps = model.encode_images(batch.images)
    trimmed, whole = tokenize(texts, trim=True), tokenize(texts)
    assert trimmed.shape[1] < whole.shape[1] == 77
    expected = model(maps, model.encode_texts(trimmed), index)
    assert_close(model(maps, model.encode_texts(whole), index), expected)
    # A feature cache fills up with zeros, and nothing of what lies in the padding may be read.
    features = model.encode_texts(whole)
    if "tokens" in features:
        for filling in (0.0, 50.0):
            filled = torch.where(features["mask"][..., None] > 0, features["tokens"], filling)
            assert_close(model(maps, features | {"tokens": filled}, index), expected)


@every_model
@torch.no_grad()
def test_words_picture_and_order_of_the_words_matter(name, batch):
    model = build_small(name).eval()
    images, index = batch.images[:2], torch.tensor([0, 0, 0, 1])
    texts = ["the red cube left of the ball", "the blue cube left of the ball"]
    texts += ["the ball left of the red cube", texts[0]]
    boxes = model.predict(images, tokenize(texts, trim=True), index)["boxes_cxcywh"]
    for other in (1, 2, 3):
        assert (boxes[0] - boxes[other]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dense-grounder", {}),
        ("transvg", {"model__pyramid__hrnet": False}),
        ("dense-grounder", {"model__pyramid__levels": (3,)}),
        ("dense-grounder", {"model__pyramid__levels": (1, 4), "model__pyramid__blocks": 0}),
        ("transvg", {"model__pyramid__stride": 8}),
        ("dense-grounder", {"model__pyramid__hrnet": False, "model__pyramid__stride": 32}),
        ("dense-grounder", {"model__clip__tuning": "full", "model__clip__text_tuning": "full"}),
        ("transvg", {"model__clip__tuning": "full", "model__clip__text_tuning": "full"}),
        ("transvg", {"model__clip__tuning": "norms", "model__clip__text_tuning": "norms"}),
        ("dense-grounder", {"model__clip__tuning": "last", "model__clip__text_tuning": "last"}),
        ("dense-grounder", {"model__clip__tuning": "full", "model__pyramid__levels": (2, 3)}),
    ],
    ids=str,
)
def test_each_setting_builds_runs_and_trains_all_that_it_says_it_trains(name, changes, batch):
    model = build_small(name, **changes).train()
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    assert any(key.startswith("pyramid.merge.") for key in trains)
    assert any(key.startswith("clip.") for key in trains) == ("model__clip__tuning" in changes)
    grid = SIZE // changes.get("model__pyramid__stride", 16)
    maps = model.encode_images(batch.images)
    assert model.pyramid(maps).shape == (4, 32, grid, grid)
    expected = {f"clip{level}" for level in changes.get("model__pyramid__levels", (2, 3, 4))}
    assert set(maps) == expected | ({"hrnet"} if changes.get("model__pyramid__hrnet", True) else set())
    outputs = model(maps, model.encode_texts(batch.tokens), batch.image_index)
    weighted_loss(model, outputs, batch.target_boxes_cxcywh).backward()
    assert without_gradient(model) == set()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    model.zero_grad()
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)  # phrases that fit nothing alone
    weighted_loss(model, outputs, torch.zeros_like(batch.target_boxes_cxcywh)).backward()
    assert without_gradient(model) == set()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "tuning", "levels"),
    [
        ("dense-grounder", "full", (2, 4)),
        ("dense-grounder", "full", (2, 3)),
        ("dense-grounder", "last", (2, 3)),
        ("transvg", "norms", (2, 4)),
        ("transvg", "lora", (2, 3)),
    ],
)
def test_a_vit_is_a_backbone_too(name, batch, tuning, levels, monkeypatch):
    model = build_small(
        name,
        model__clip__name=tiny_vit(monkeypatch),
        model__clip__weights="random",
        model__clip__tuning=tuning,
        model__clip__text_tuning=tuning,
        model__pyramid__hrnet=False,
        model__pyramid__levels=levels,
    )
    visual = model.clip.clip.visual
    assert visual.positional_embedding.shape == (1 + 4 * 4, 32)  # interpolated from 48 / 16 = 3 a side
    maps = model.encode_images(batch.images)
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        f"clip{level}": (4, 32, 4, 4) for level in levels
    }
    model.train()
    outputs = model.predict(batch.images, batch.tokens, batch.image_index)
    weighted_loss(model, outputs, batch.target_boxes_cxcywh).backward()
    assert without_gradient(model) == set()
    names = {key for key, p in model.named_parameters() if p.requires_grad and key.startswith("clip.")}
    assert any(key.startswith("clip.clip.visual.") for key in names) == (tuning != "last" or 4 in levels)
    assert any(key.startswith("clip.clip.transformer.") for key in names)


@torch.no_grad()
def test_the_levels_of_a_vit_are_the_ends_of_the_quarters_of_its_blocks(batch, monkeypatch):
    changes = {"model__clip__name": tiny_vit(monkeypatch), "model__clip__weights": "random"}
    model = build_small("dense-grounder", model__pyramid__levels=(1, 2, 3, 4), **changes).eval()
    visual, seen = model.clip.clip.visual, {}
    for number, block in enumerate(visual.transformer.resblocks, 1):
        block.register_forward_hook(lambda _m, _i, output, number=number: seen.update({number: output}))
    maps = model.encode_images(batch.images)
    for level in (1, 2, 3, 4):
        cells = seen[2 * level][:, 1:]  # (B, 1 + 16, C) without the class token
        expected = cells.transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(maps[f"clip{level}"], expected)


@torch.no_grad()
def test_the_merged_map_is_where_the_picture_is(batch):
    """A change in one corner of the image moves the cells of that corner most."""
    model = build_small("dense-grounder", model__pyramid__blocks=0, model__pyramid__levels=(1,)).eval()
    other = batch.images[:1].clone()
    other[:, :, :16, 48:] = 255 - other[:, :, :16, 48:]
    before, after = (model.pyramid(model.encode_images(images)) for images in (batch.images[:1], other))
    change = (after - before).abs().sum(1)[0]
    assert change.argmax() == 3


@every_model
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, r"levels: expected some of 1, 2, 3, 4, got \(\)"),
        ({"levels": (2, 5)}, r"levels: expected some of 1, 2, 3, 4, got \(2, 5\)"),
        ({"levels": (0,)}, r"levels: expected some of 1, 2, 3, 4, got \(0,\)"),
        ({"stride": 24}, "stride: expected a divisor of the input's 64 pixels, got 24"),
        ({"stride": 128}, "stride: expected a divisor of the input's 64 pixels, got 128"),
        ({"stride": 0}, "stride"),
    ],
)
def test_settings_that_cannot_be(name, changes, message):
    config = small_config(name, **{f"model__pyramid__{key}": value for key, value in changes.items()})
    with pytest.raises(ConfigError, match=message):
        build_model(name, config.model)
