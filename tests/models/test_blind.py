"""The baselines that do not look: the best constant box, and the box that the words alone suggest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import ClipConfig, ModelConfig
from vg_utils.data import GroundingExample, load_examples
from vg_utils.data.examples import Expression
from vg_utils.evaluation.rows import ask, constant_answer
from vg_utils.models import build_model
from vg_utils.models.blind import fit_constant_box
from vg_utils.models.clip import tokenize

ANNOTATIONS = Path(__file__).parents[2].parent / "shared" / "refcocog_annotations"
SIZE = 64


def examples(boxes: torch.Tensor, sizes_wh: list[tuple[int, int]]) -> list[GroundingExample]:
    """An image for each box (shares of its sides), with one expression."""
    made = []
    for i, (box, size_wh) in enumerate(zip(boxes, sizes_wh, strict=True)):
        box_xyxy = tuple((box * torch.tensor(size_wh * 2)).tolist())
        made.append(GroundingExample(Path("none.jpg"), i, (Expression("it", box_xyxy, i, i),), size_wh))
    return made


def crowd(seed: int, count: int = 40) -> torch.Tensor:
    """Boxes about one place, as photographers put things, and some anywhere: (count, 4) in shares."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.5 + 0.12 * torch.randn(count, 2, generator=generator)
    sides = 0.25 + 0.3 * torch.rand(count, 2, generator=generator)
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1).clamp(0, 1)


def mean_iou(box, boxes: torch.Tensor) -> float:
    return paired_iou(torch.as_tensor(box).expand_as(boxes), boxes).mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_constant_box_is_the_best_of_a_grid(seed):
    boxes = crowd(seed)
    found = fit_constant_box(examples(boxes, [(640, 480), (300, 500)] * 20))
    ticks = torch.linspace(0, 1, 21)
    grid = torch.cartesian_prod(ticks, ticks, ticks, ticks)
    grid = grid[(grid[:, 2] > grid[:, 0]) & (grid[:, 3] > grid[:, 1])]
    best = max(
        torch.stack([paired_iou(part, box.expand_as(part)) for box in boxes]).mean(0).max().item()
        for part in grid.split(10_000)
    )
    assert 0 <= found[0] < found[2] <= 1
    assert 0 <= found[1] < found[3] <= 1
    assert mean_iou(found, boxes) > best - 0.005
    assert mean_iou(found, boxes) >= mean_iou(boxes.median(0).values, boxes)


def test_constant_box_of_one_box_is_that_box():
    box = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    assert fit_constant_box(examples(box, [(200, 100)])) == pytest.approx(box[0].tolist(), abs=0.01)


def test_constant_box_counts_expressions_not_pictures():
    one, other = (0.0, 0.0, 30.0, 30.0), (60.0, 60.0, 100.0, 100.0)
    often = tuple(Expression("it", other, i, 0) for i in range(5))
    made = [
        GroundingExample(Path("a.jpg"), 1, (Expression("it", one, 9, 1),), (100, 100)),
        GroundingExample(Path("b.jpg"), 2, often, (100, 100)),
    ]
    assert fit_constant_box(made) == pytest.approx((0.6, 0.6, 1.0, 1.0), abs=0.01)


@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason=f"the real annotations are not at {ANNOTATIONS.name}")
def test_constant_box_chosen_on_the_real_val_scores_the_real_test():
    val, test = (
        load_examples(ANNOTATIONS, split, "umd", strict=False, require_images=False)
        for split in ("val", "test")
    )
    rows = ask(constant_answer(fit_constant_box(val)), test)
    assert len(rows) == 9602
    assert rows["ref_id"].nunique() == 5023
    assert 0.23 <= rows["iou"].mean() <= 0.25


def text_only(**clip) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=SIZE, clip=ClipConfig(**{"name": "scenes-rn", "weights": "random"} | clip)
    )
    return build_model("text-only", config)


@torch.no_grad()
def test_text_only_does_not_look():
    model = text_only().eval()
    tokens, index = (
        tokenize(["the red cube", "the cone on the left", "a dog"], trim=True),
        torch.tensor([0, 1, 0]),
    )
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 256, (2, 2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    answer = model.predict(one, tokens, index)
    for images, where in ((other, index), (one, 1 - index), (torch.zeros_like(one), index)):
        assert torch.equal(model.predict(images, tokens, where)["boxes_cxcywh"], answer["boxes_cxcywh"])
    boxes = answer["boxes_cxcywh"]
    assert boxes.shape == (3, 4)
    assert answer["score"].shape == (3,)
    assert ((boxes > 0) & (boxes < 1)).all()
    assert not torch.allclose(boxes[0], boxes[1], atol=1e-6)  # but it reads


def test_text_only_trains_its_head_and_never_the_picture_encoder():
    model = text_only(tuning="full", text_tuning="full").train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(".visual." in name for name in trained)
    assert any(name.startswith("clip.clip.transformer.") for name in trained)
    assert {name for name, p in text_only().named_parameters() if p.requires_grad} == {
        "head.0.weight",
        "head.0.bias",
        "head.3.weight",
        "head.3.bias",
    }


def test_text_only_learns_where_words_point():
    model = text_only().train()
    vectors = model.encode_texts(tokenize(["the cube on the left", "the cube on the right"], trim=True))[
        "vector"
    ]
    text = {"vector": nn.functional.layer_norm((vectors - vectors.mean(0)).detach(), (256,))}  # well apart
    target = torch.tensor([[0.2, 0.5, 0.3, 0.4], [0.8, 0.5, 0.3, 0.4]])
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=3e-3)
    nothing = model.encode_images(torch.zeros(2, 3, SIZE, SIZE))
    for _ in range(150):
        loss = model.losses(model(nothing, text, torch.tensor([0, 1])), target)["huber"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    boxes = model(nothing, text, torch.tensor([0, 1]))["boxes_cxcywh"]
    assert paired_iou(to_xyxy(boxes), to_xyxy(target)).min() > 0.7
    assert set(model.loss_weights) == {"huber"}
