"""The CLIP + HRNet project's model: its shapes, its shortcut, where gradients go, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import ClipConfig, ClipHRNetConfig, HRNetConfig, ModelConfig
from vg_utils.config import Config as Settings
from vg_utils.models import build_model
from vg_utils.models.clip import tokenize
from vg_utils.presets import random_init

SIZE = 64
PHRASES = ["the red cube", "the cone on the left", "a dog", "the sphere behind the small blue cylinder"]
INDEX = torch.tensor([0, 1, 1, 0])  # two images, two phrases each


def small(**head) -> nn.Module:
    """A model with small random backbones whose batch normalisations have seen data."""
    torch.manual_seed(0)
    settings = {"clip_channels": 16, "hrnet_channels": 8, "fused_channels": 24, "hidden": 32, "dropout": 0.0}
    config = ModelConfig(
        image_size=SIZE,
        clip=ClipConfig("scenes-rn", "random"),
        hrnet=HRNetConfig("scenes-hrnet", "random"),
        clip_hrnet=ClipHRNetConfig(**settings | head),
    )
    model = build_model("clip-hrnet", config)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.2, 0.5)
    return model


def features(model: nn.Module, pictures: int = 2, phrases: int = 4) -> tuple[dict, dict]:
    """Random features of the sizes that the model's backbones give."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(pictures + phrases, model.clip.embed_dim, generator=generator)
    maps = torch.randn(pictures, model.hrnet.channels, model.grid, model.grid, generator=generator)
    return {"vector": vectors[:pictures], "map": maps}, {"vector": vectors[pictures:]}


@pytest.mark.slow
def test_default_shapes_are_the_seeds():
    config = random_init(Settings()).model
    assert (config.clip.name, config.hrnet.name, config.image_size) == ("RN50-quickgelu", "hrnet_w18", 224)
    model = build_model("clip-hrnet", config).train()  # in train mode batch normalisation sees these shapes
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(_module, inputs, output) -> None:
            shapes[name + " in"], shapes[name + " out"] = tuple(inputs[0].shape), tuple(output.shape)

        return hook

    for name in ("project_image", "project_text", "project_map", "reduce", "box_head"):
        getattr(model, name).register_forward_hook(note(name))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    index = torch.tensor([0, 1, 0])
    with torch.no_grad():
        image_features = model.encode_images(images)
        text_features = model.encode_texts(tokenize(PHRASES[:3], trim=True))
        boxes = model(image_features, text_features, index)["boxes_cxcywh"]
    assert image_features["vector"].shape == (2, 1024)
    assert text_features["vector"].shape == (3, 1024)
    assert image_features["map"].shape == (2, 512, 14, 14)
    assert shapes["project_image in"] == (2, 1024, 1, 1)  # spread to 14x14 after the projection
    assert shapes["project_image out"] == (2, 128, 1, 1)
    assert shapes["project_text in"] == (3, 1024, 1, 1)
    assert shapes["project_text out"] == (3, 128, 1, 1)
    assert shapes["project_map in"] == (2, 512, 14, 14)
    assert shapes["project_map out"] == (2, 64, 14, 14)
    assert shapes["reduce in"] == (3, 128 + 128 + 64, 14, 14)
    assert shapes["reduce out"] == (3, 256, 1, 1)
    assert shapes["box_head in"] == (3, 256)
    assert boxes.shape == (3, 4)
    assert ((boxes > 0) & (boxes < 1)).all()


@pytest.mark.parametrize("training", [False, True])
def test_projecting_then_spreading_is_spreading_then_projecting(training):
    model = small().train(training)
    image_features, text_features = features(model)
    seen = []
    model.reduce.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(image_features, text_features, INDEX)
        grid = (-1, -1, model.grid, model.grid)
        by_the_book = [
            project(vector["vector"][:, :, None, None].expand(grid))  # (., 1024, G, G) -> (., 128, G, G)
            for project, vector in (
                (model.project_image, image_features),
                (model.project_text, text_features),
            )
        ]
    channels = model.project_image[0].out_channels
    found_image, found_text, _ = seen[0].split([channels, channels, seen[0].shape[1] - 2 * channels], dim=1)
    torch.testing.assert_close(found_image, by_the_book[0][INDEX])
    torch.testing.assert_close(found_text, by_the_book[1])


def test_score_does_not_bend_the_box():
    model = small().train()
    outputs = model(*features(model), INDEX)
    outputs["score"].sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"score_head"}

    model = small().train()
    outputs = model(*features(model), INDEX)
    outputs["boxes_cxcywh"].sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"project_image", "project_text", "project_map", "reduce", "box_head"}


@torch.no_grad()
def test_phrases_go_with_the_picture_they_point_at():
    model = small().eval()
    image_features, text_features = features(model)
    expected = model(image_features, text_features, INDEX)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(image_features, {"vector": text_features["vector"][order]}, INDEX[order])
    flipped = {name: value.flip(0) for name, value in image_features.items()}
    swapped = model(flipped, text_features, 1 - INDEX)
    other = model(image_features, text_features, 1 - INDEX)
    for name, value in expected.items():
        torch.testing.assert_close(shuffled[name], value[order])
        torch.testing.assert_close(swapped[name], value)
        assert not torch.allclose(other[name], value, atol=1e-4)
    for i in range(4):  # one at a time, as a demo asks
        one = {name: value[INDEX[i], None] for name, value in image_features.items()}
        alone = model(one, {"vector": text_features["vector"][i, None]}, torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(alone["boxes_cxcywh"][0], expected["boxes_cxcywh"][i])


@torch.no_grad()
def test_pictures_and_phrases_both_matter():
    model = small().eval()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    outputs = model.predict(images, tokenize(PHRASES, trim=True), INDEX)
    assert set(outputs) == {"boxes_cxcywh", "score"}
    assert outputs["boxes_cxcywh"].shape == (4, 4)
    assert outputs["score"].shape == (4,)
    assert ((outputs["boxes_cxcywh"] > 0) & (outputs["boxes_cxcywh"] < 1)).all()
    assert ((outputs["score"] > 0) & (outputs["score"] < 1)).all()
    image_features, text_features = features(model)
    expected = model(image_features, text_features, INDEX)["boxes_cxcywh"]
    for part in ("vector", "map"):
        changed = model(image_features | {part: -image_features[part]}, text_features, INDEX)["boxes_cxcywh"]
        assert not torch.allclose(changed, expected, atol=1e-4)
    changed = model(image_features, {"vector": -text_features["vector"]}, INDEX)["boxes_cxcywh"]
    assert not torch.allclose(changed, expected, atol=1e-4)


def test_loss_is_zero_at_the_target_and_finite_everywhere():
    model = small()
    target = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.1, 0.1]])
    perfect = model.losses({"boxes_cxcywh": target, "score": torch.ones(2)}, target)
    assert {name: value.item() for name, value in perfect.items()} == pytest.approx({"huber": 0, "score": 0})
    assert set(perfect) == set(model.loss_weights)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).requires_grad_()  # also boxes of no size
    for wanted in (target[:1], target[1:]):
        losses = model.losses({"boxes_cxcywh": corners, "score": torch.zeros(16)}, wanted.expand(16, 4))
        sum(losses.values()).backward()
        assert all(value.isfinite() and value >= 0 for value in losses.values())
        assert corners.grad.isfinite().all()


def test_huber_is_the_absolute_error_far_off_and_squared_nearby():
    model = small(huber_delta=0.1)
    target = torch.full((1, 4), 0.5)

    def loss(error: float) -> float:
        outputs = {"boxes_cxcywh": target + error, "score": torch.zeros(1)}
        return model.losses(outputs, target)["huber"].item()

    assert loss(0.3) == pytest.approx(0.3 - 0.05, rel=1e-4)
    assert loss(0.02) == pytest.approx(0.02**2 / 0.2, rel=1e-4)


def test_score_learns_the_overlap():
    model = small()
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]])
    target = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    assert paired_iou(to_xyxy(boxes), to_xyxy(target)).tolist() == pytest.approx([0.5, 0.0])
    right = model.losses({"boxes_cxcywh": boxes, "score": torch.tensor([0.5, 0.0])}, target)["score"]
    wrong = model.losses({"boxes_cxcywh": boxes, "score": torch.tensor([0.0, 1.0])}, target)["score"]
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx((0.5**2 + 1) / 2)


def test_head_learns_to_tell_phrases_and_pictures_apart():
    model = small().train()
    image_features, text_features = features(model)
    target = torch.tensor(
        [[0.2, 0.2, 0.2, 0.2], [0.8, 0.3, 0.3, 0.2], [0.3, 0.7, 0.2, 0.4], [0.7, 0.7, 0.4, 0.4]]
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(150):
        losses = model.losses(model(image_features, text_features, INDEX), target)
        loss = sum(weight * losses[name] for name, weight in model.loss_weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outputs = model(image_features, text_features, INDEX)
    iou = paired_iou(to_xyxy(outputs["boxes_cxcywh"]), to_xyxy(target))
    assert iou.min() > 0.8
    assert (outputs["score"] - iou).abs().max() < 0.25


def test_sizes_come_from_the_config():
    model = small(clip_channels=12, hrnet_channels=20, fused_channels=40, hidden=50, dropout=0.3)
    assert model.project_image[0].out_channels == model.project_text[0].out_channels == 12
    assert model.project_map[0].out_channels == 20
    assert model.reduce[0].in_channels == 12 + 12 + 20
    assert model.box_head[0].in_features == 40
    assert model.box_head[0].out_features == 50
    dropouts = [part.p for part in model.modules() if isinstance(part, nn.Dropout) and part.p]
    assert dropouts == [0.3, 0.3, 0.3]  # before the heads and in each
    assert small(box_weight=2.0, score_weight=0.5).loss_weights == {"huber": 2.0, "score": 0.5}


@pytest.mark.parametrize("size", [32, 96, 160])
@torch.no_grad()
def test_any_input_size_ends_in_one_vector(size):
    config = ModelConfig(
        image_size=size,
        clip=ClipConfig("scenes-rn", "random"),
        hrnet=HRNetConfig("scenes-hrnet", "random"),
    )
    model = build_model("clip-hrnet", replace(config, clip_hrnet=ClipHRNetConfig(hidden=16))).eval()
    assert model.grid == size // 16
    images = torch.rand(1, 3, size, size)
    outputs = model.predict(images, tokenize(PHRASES, trim=True), torch.zeros(4, dtype=torch.long))
    assert outputs["boxes_cxcywh"].shape == (4, 4)
