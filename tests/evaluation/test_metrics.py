"""Metrics against hand-worked cases and against plain loops written independently of the module."""

import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vg_utils.boxes import paired_iou
from vg_utils.data.transforms import crop_regions
from vg_utils.evaluation import metrics
from vg_utils.evaluation.similarity import category_hits


def make_rows(n_images=40, seed=0, **columns):
    """Random rows of the shape that evaluation produces, 1 to 6 expressions an image."""
    rng = random.Random(seed)
    rows = []
    for image_id in range(100, 100 + n_images):
        width, height = rng.randint(200, 640), rng.randint(200, 640)
        for _ in range(rng.randint(1, 6)):
            tx1, ty1 = rng.uniform(0, width - 20), rng.uniform(0, height - 20)
            tx2, ty2 = rng.uniform(tx1 + 10, width), rng.uniform(ty1 + 10, height)
            rows.append(
                {
                    "image_id": image_id,
                    "sent_id": len(rows),
                    "ref_id": len(rows) // 2,
                    "text": "a dog",
                    "category": "dog",
                }
                | {
                    "family": "",
                    "distractors": rng.choice([None, 0, 1, 2, 3, 7]),
                    "n_words": rng.randint(1, 20),
                }
                | {"x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0, "tx1": tx1, "ty1": ty1, "tx2": tx2, "ty2": ty2}
                | {"width": width, "height": height, "score": rng.random(), "iou": rng.random()}
            )
    return pd.DataFrame(rows).assign(**columns)


def test_summary_of_a_hand_worked_case():
    # Image 1 has IoUs 1 and 0.5, image 2 has 0: the mean is (1 + 0.5 + 0) / 3, not that of two image means.
    rows = pd.DataFrame({"image_id": [1, 1, 2], "sent_id": [7, 8, 9], "iou": [1.0, 0.5, 0.0]})
    summary = metrics.summarise(rows)
    assert summary["n_images"] == 2
    assert summary["n_expressions"] == 3
    assert summary["miou"] == pytest.approx(0.5)
    assert summary["acc@0.5"] == pytest.approx(2 / 3)  # an IoU of exactly 0.5 counts
    assert summary["acc@0.75"] == pytest.approx(1 / 3)
    assert summary["acc@0.9"] == pytest.approx(1 / 3)
    # Two images drawn with replacement: both 1 (mean 0.75), one of each (0.5), both 2 (0).
    assert summary["miou_ci95"] == [0.0, 0.75]
    assert summary["semantic_similarity"] is None
    assert summary["category_recall"] is None


def test_summary_is_json_even_with_one_image():
    rows = pd.DataFrame({"image_id": [1, 1], "sent_id": [1, 2], "iou": np.float32([0.2, 0.8])})
    summary = json.loads(json.dumps(metrics.summarise(rows), allow_nan=False))
    assert summary["miou_ci95"] == [None, None]
    assert summary["acc@0.5"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_summary_equals_a_plain_loop(seed):
    rows = make_rows(seed=seed)
    rng = np.random.default_rng(seed)
    rows["semantic_similarity"] = rng.uniform(-1, 1, len(rows))
    rows["category_hit"] = rng.choice(np.array([True, False, None]), len(rows))
    total, hits, similar, named, asked = 0.0, {0.5: 0, 0.75: 0, 0.9: 0}, 0.0, 0, 0
    for row in rows.to_dict("records"):
        total += row["iou"]
        similar += row["semantic_similarity"]
        for threshold in hits:
            hits[threshold] += 1 if row["iou"] >= threshold else 0
        if row["category_hit"] is not None:
            asked, named = asked + 1, named + int(row["category_hit"])
    summary = metrics.summarise(rows)
    assert summary["miou"] == pytest.approx(total / len(rows))
    assert summary["semantic_similarity"] == pytest.approx(similar / len(rows))
    assert summary["category_recall"] == pytest.approx(named / asked)
    assert summary["text_similarity"] is None
    for threshold, count in hits.items():
        assert summary[f"acc@{threshold}"] == pytest.approx(count / len(rows))


def test_order_of_rows_changes_nothing():
    rows = make_rows(category_hit=True, family=["ab"[i % 2] for i in range(len(make_rows()))])
    shuffled = rows.sample(frac=1, random_state=3)
    summary, other = metrics.summarise(rows), metrics.summarise(shuffled)
    assert list(summary) == list(other)
    for name, value in summary.items():
        assert value is None or other[name] == pytest.approx(value)
    tables, others = metrics.breakdown(rows), metrics.breakdown(shuffled)
    assert list(tables) == list(others) == ["family", "length", "size", "distractors"]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, others[name])


@pytest.mark.parametrize("function", [metrics.summarise, metrics.breakdown])
def test_unusable_rows_are_refused_with_the_reason(function):
    rows = make_rows(3)
    with pytest.raises(ValueError, match="at least one evaluated expression"):
        function(rows.iloc[:0])
    with pytest.raises(ValueError, match="missing: iou"):
        function(rows.drop(columns="iou"))
    with pytest.raises(ValueError, match=r"IoU in \[0, 1\], got nan at sentence 2"):
        function(rows.assign(iou=[math.nan if i == 2 else 0.5 for i in rows["sent_id"]]))
    with pytest.raises(ValueError, match="each sentence once, got 1 copies, first 0"):
        function(pd.concat([rows, rows.iloc[:1]]))


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [8, 8, 2, 2], [8, 2, 2, 8], [50, 50, 60, 60]])
def test_iou_of_a_degenerate_prediction_is_zero(box):
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert paired_iou(torch.tensor([box], dtype=torch.float32), truth).item() == 0.0


# Intervals


def clustered(rng, images, mean=0.6, between=0.15, within=0.1):
    """Values with a shared level per image; the number of expressions per image varies from 1 to 6."""
    counts = rng.integers(1, 7, images)
    levels = np.repeat(rng.normal(mean, between, images), counts)
    return levels + rng.normal(0, within, len(levels)), np.repeat(np.arange(images), counts)


def test_interval_covers_the_truth_at_about_the_nominal_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = metrics.bootstrap_ci(*clustered(rng, 60), n=400, seed=trial)
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_interval_is_wider_when_the_expressions_of_an_image_are_alike():
    values = np.repeat(np.random.default_rng(0).random(50), 4)
    low, high = metrics.bootstrap_ci(values, np.repeat(np.arange(50), 4))
    narrow_low, narrow_high = metrics.bootstrap_ci(values, np.arange(200))
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(2, rel=0.1)  # sqrt(4 copies)


def test_interval_depends_on_the_seed_only(monkeypatch):
    values, groups = clustered(np.random.default_rng(1), 30)
    first = metrics.bootstrap_ci(values, groups)
    assert metrics.bootstrap_ci(values, groups) == first
    assert metrics.bootstrap_ci(values, groups, seed=1) != first
    monkeypatch.setattr(metrics, "_DRAWN_AT_ONCE", 30 * 7)  # 2,000 draws in chunks of 7
    assert metrics.bootstrap_ci(values, groups) == first
    assert np.isfinite(metrics.bootstrap_ci(values, groups.astype(str))).all()
    assert metrics.bootstrap_ci(values, groups, level=0.5)[0] > first[0]


def test_interval_of_one_image_is_unknown_and_of_none_an_error():
    assert all(math.isnan(bound) for bound in metrics.bootstrap_ci([0.1, 0.9], [3, 3]))
    with pytest.raises(ValueError, match="N > 0"):
        metrics.bootstrap_ci([], [])
    with pytest.raises(ValueError, match="values and"):
        metrics.bootstrap_ci([0.1, 0.9], [3])


# Breakdown


@pytest.mark.parametrize("seed", range(3))
def test_breakdown_equals_a_plain_loop(seed):
    rows = make_rows(seed=seed, category_hit=pd.array([True] * len(make_rows(seed=seed)), dtype="boolean"))

    def first_below(value, limits):
        return next(label for limit, label in limits if value < limit)

    def group_of(row, name):
        if name == "length":
            words = [(5, "1-4 words"), (9, "5-8 words"), (13, "9-12 words"), (99, "13+ words")]
            return first_below(row["n_words"], words)
        if name == "size":
            area = (row["tx2"] - row["tx1"]) * (row["ty2"] - row["ty1"]) / row["width"] / row["height"]
            return first_below(
                area, [(0.02, "below 2%"), (0.08, "2-8%"), (0.2, "8-20%"), (2, "20% and more")]
            )
        distractors = row["distractors"]
        return "unknown" if pd.isna(distractors) else ["0", "1", "2", "3+"][min(3, int(distractors))]

    tables = metrics.breakdown(rows)
    assert set(tables) == {"length", "size", "distractors"}
    for name, table in tables.items():
        groups = {}
        for row in rows.to_dict("records"):
            groups.setdefault(group_of(row, name), []).append(row["iou"])
        assert table.index.name == name
        assert set(table.index) == set(groups)
        assert table["n"].sum() == len(rows)
        for label, ious in groups.items():
            line = table.loc[label]
            assert line["n"] == len(ious)
            assert line["miou"] == pytest.approx(sum(ious) / len(ious))
            assert line["acc@0.5"] == pytest.approx(sum(iou >= 0.5 for iou in ious) / len(ious))
            assert not line["miou"] < line["miou_low"]
            assert not line["miou"] > line["miou_high"]
            assert line["category_recall"] == 1
        assert "semantic_similarity" not in table


def test_breakdown_keeps_rows_without_family_or_distractors():
    rows = make_rows(10, distractors=None)
    rows["family"] = ["", None, "order", "relation"] * (len(rows) // 4) + [""] * (len(rows) % 4)
    tables = metrics.breakdown(rows)
    assert list(tables["family"].index) == ["order", "relation", "unknown"]
    assert tables["family"]["n"].sum() == len(rows)
    assert list(tables["distractors"].index) == ["unknown"]
    without = metrics.breakdown(rows.drop(columns=["distractors", "family"]))
    assert list(without["distractors"].index) == ["unknown"]
    assert "family" not in without


# Crops and CLIP


def test_crop_holds_the_box_and_nothing_else():
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[10:40, 20:50] = (10, 200, 30)
    crops = crop_regions(Image.fromarray(pixels), [[20.3, 9.8, 49.6, 40.2], [0, 0, 80, 60]], 24)
    assert crops.shape == (2, 3, 24, 24)
    assert crops.dtype == torch.uint8
    assert (crops[0] == torch.tensor([10, 200, 30], dtype=torch.uint8).view(3, 1, 1)).all()
    assert crops[1].float().mean() < crops[0].float().mean()


def test_crop_of_the_whole_picture_equals_clip_preprocessing_without_the_centre_crop():
    from torchvision.transforms import v2

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    resized = v2.Resize((32, 32), interpolation=v2.InterpolationMode.BICUBIC)(picture)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(crop_regions(picture, torch.tensor([[0.0, 0.0, 70.0, 50.0]]), 32)[0], expected)


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 5, 5],
        [8, 8, 2, 2],
        [-90, -90, -50, -50],
        [900, 900, 990, 990],
        [3, -5, 3.2, 500],
        [0, 0, 1e9, 1e9],
    ],
)
@pytest.mark.parametrize(("mode", "size"), [("RGB", (64, 1)), ("L", (30, 40)), ("RGBA", (1, 1))])
def test_degenerate_boxes_become_at_least_a_pixel(mode, size, box):
    picture = Image.new(mode, size)
    assert crop_regions(picture, [box], 8).shape == (1, 3, 8, 8)


def test_crops_refuse_boxes_that_are_no_boxes():
    picture = Image.new("RGB", (9, 9))
    assert crop_regions(picture, np.zeros((0, 4)), 8).shape == (0, 3, 8, 8)
    for boxes in ([1, 2, 3, 4], [[1, 2, 3, math.nan]]):
        with pytest.raises(ValueError, match=r"\(N, 4\) finite boxes"):
            crop_regions(picture, boxes, 8)


@pytest.fixture(scope="module")
def tiny_clip():
    """A CLIP of random weights, small enough to run in loops."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text).eval(), open_clip.SimpleTokenizer()


@torch.no_grad()
def test_similarities_and_recall_of_a_tiny_clip_equal_loops(tiny_clip):
    model, tokenize = tiny_clip
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8))
    predicted = [[5, 5, 60, 50], [40.4, 20.2, 100, 80], [0, 0, 120, 90], [70, 10, 75, 88]]
    true = [[10, 8, 66, 52], [2, 2, 30, 30], [0, 0, 120, 90], [60, 10, 80, 88]]
    phrases = ["the dog", "a red cup on the left", "everything", "the tall one"]
    names = ["dog", "cup", "person"]
    true_index = torch.tensor([0, 1, 2, 2])

    def embed_crops(boxes):
        return model.encode_image(crop_regions(picture, boxes, 32).float() / 255)

    found, text = embed_crops(predicted), model.encode_text(tokenize(phrases))
    categories = model.encode_text(tokenize([f"a photo of a {name}" for name in names]))
    semantic, textual = F.cosine_similarity(found, embed_crops(true)), F.cosine_similarity(found, text)
    hits = category_hits(found, categories, true_index)
    assert hits.dtype == torch.bool

    def one_cosine(a, b):
        a, b = a.tolist(), b.tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def one_crop(box):
        part = picture.crop([round(v) for v in box]).resize((32, 32), Image.Resampling.BICUBIC)
        return model.encode_image(torch.tensor(np.array(part)).permute(2, 0, 1)[None] / 255)[0]

    for i in range(4):
        crop = one_crop(predicted[i])
        assert semantic[i].item() == pytest.approx(one_cosine(crop, one_crop(true[i])), abs=1e-4)
        assert textual[i].item() == pytest.approx(one_cosine(crop, text[i]), abs=1e-4)
        similar = [one_cosine(crop, category) for category in categories]
        assert hits[i].item() == (similar.index(max(similar)) == true_index[i].item())
    assert semantic[2].item() == pytest.approx(1)  # the same box

    rows = pd.DataFrame({"image_id": [1, 1, 2, 2], "sent_id": range(4), "iou": 0.5})
    rows = rows.assign(semantic_similarity=semantic.numpy(), category_hit=hits.numpy())
    summary = metrics.summarise(rows)
    assert summary["category_recall"] == hits.float().mean().item()
    assert summary["semantic_similarity"] == pytest.approx(semantic.mean().item())


def test_category_hits_do_not_depend_on_lengths_of_embeddings():
    crops, categories = torch.tensor([[1.0, 0.1], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [10.0, 10.0]])
    assert category_hits(crops, categories, torch.tensor([0, 1])).tolist() == [True, True]
    assert category_hits(crops * 7, categories, torch.tensor([1, 1])).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        category_hits(crops, categories, torch.tensor([-1, 0]))
