"""The pretraining of the small backbones, a few steps of it: it runs, learns and counts for every size."""

from __future__ import annotations

from random import Random

import pytest
import torch

from experiments import pretraining
from experiments.pretraining_corpus import ATTRIBUTES, Corpus, Tokens, draw_corpus, rows_by_scene, vocabulary
from vg_utils.config import ClipConfig, HRNetConfig
from vg_utils.models.clip import ClipBackbone, tokenize
from vg_utils.models.hrnet import HRNetBackbone

SIDES = (64, 32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pretraining, "SIDES", SIDES)
    monkeypatch.setattr(pretraining, "STATISTICS_BATCHES", 1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return draw_corpus("train", 8, 64, "cpu", at_once=5)


def check_statistics(statistics: dict, state: dict[str, torch.Tensor]) -> None:
    """Running statistics of every BatchNorm for each side, the module's own being those of the first."""
    names = {name for name in state if name.endswith(("running_mean", "running_var"))}
    assert tuple(statistics) == SIDES
    assert names
    for tensors in statistics.values():
        assert tensors.keys() == names
        assert all(value.isfinite().all() for value in tensors.values())
    large, small = statistics.values()
    assert any(not torch.equal(large[name], small[name]) for name in names)
    assert all(torch.equal(large[name], state[name]) for name in names)
    assert any(value.abs().max() > 0 for name, value in large.items() if name.endswith("running_mean"))


def test_a_corpus_is_what_was_drawn(corpus):
    assert corpus.images.shape == (8, 3, 64, 64)
    assert corpus.images.dtype == torch.uint8
    assert len(corpus.boxes_xyxy) == len(corpus.scene) == len(corpus.labels)
    assert corpus.scene.unique().tolist() == list(range(8))  # of both parts that it was drawn in
    assert (corpus.boxes_xyxy[:, 2:] > corpus.boxes_xyxy[:, :2]).all()
    for scene, refs in enumerate(corpus.refs):
        assert refs
        for row, texts in refs:
            assert corpus.scene[row] == scene
            assert texts
    whole = draw_corpus("train", 8, 64, "cpu", at_once=8)
    assert torch.equal(whole.images, corpus.images)
    assert whole.refs == corpus.refs


def test_clip_learns_from_crops_and_marked_pictures(corpus):
    model, statistics = pretraining.pretrain_clip(corpus, 2, 8, 1e-3, Random(0))
    assert isinstance(model, ClipBackbone)
    check_statistics(statistics, model.clip.state_dict())
    torch.manual_seed(0)
    fresh = dict(ClipBackbone(ClipConfig("scenes-rn", "random", "full", "full"), 64).named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, fresh[name])}
    for part in (
        "clip.visual.conv1",
        "clip.visual.attnpool",
        "clip.transformer",
        "clip.token_embedding",
        "clip.logit",
    ):
        assert any(name.startswith(part) for name in moved), part


def test_hrnet_learns_to_name_and_box_solids(corpus):
    model, statistics = pretraining.pretrain_hrnet(corpus, 2, 4, 2e-3, Random(0))
    assert isinstance(model, HRNetBackbone)
    check_statistics(statistics, model.net.state_dict())
    torch.manual_seed(0)  # as before it: `small`
    fresh = HRNetBackbone(HRNetConfig("scenes-hrnet", "random"), SIDES[0])
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2  # what makes maps of other strides does not train


def test_dense_losses_are_least_at_the_truth(corpus):
    """Cells of a finer grid than the images': each belongs to the nearest solid that holds it."""
    grid, rows = 16, rows_by_scene(corpus)
    assert (rows >= 0).sum() == len(corpus.scene)
    head = pretraining.DenseHead(1)
    axis = (torch.arange(grid) + 0.5) / grid
    maps = torch.zeros(len(corpus.images), sum(head.sizes), grid, grid)
    maps[:, 0] = -20
    for scene, own in enumerate(rows):
        for i in range(grid):
            for j in range(grid):
                x, y, best = axis[j], axis[i], (1.0, -1)
                for row in own[own >= 0].tolist():
                    x1, y1, x2, y2 = corpus.boxes_xyxy[row] / 64
                    off = max(abs(x - (x1 + x2) / 2) / (x2 - x1), abs(y - (y1 + y2) / 2) / (y2 - y1)) * 2
                    best = min(best, (float(off), row))
                if best[1] < 0:
                    continue
                x1, y1, x2, y2 = corpus.boxes_xyxy[best[1]] / 64
                sides = torch.stack([x - x1, y - y1, x2 - x, y2 - y])
                answer = [torch.tensor([20.0]), sides.expm1().log()]
                for name, label in zip(ATTRIBUTES, corpus.labels[best[1]], strict=True):
                    answer.append(torch.eye(len(ATTRIBUTES[name]))[label] * 40)
                maps[scene, :, i, j] = torch.cat(answer)
    outputs = list(maps.split(head.sizes, dim=1))
    right = pretraining.dense_losses(outputs, corpus, rows)
    assert all(value < 1e-3 for value in right.values())
    for number, name in enumerate(("presence", "box", *ATTRIBUTES)):
        wrong = [output.roll(3, dims=3) if i == number else output for i, output in enumerate(outputs)]
        losses = pretraining.dense_losses(wrong, corpus, rows)
        assert {key for key, value in losses.items() if value > 1e-2} == {name}


def test_words_have_one_number_each_and_the_vocabulary_holds_them(corpus):
    words, texts = Tokens(torch.device("cpu")), ["the red cube", "a ball", "the red cube"]
    tokens, numbers = words(texts)
    assert numbers.tolist() == [0, 1, 0]
    assert torch.equal(tokens, tokenize(texts, trim=True))
    more, numbers = words(["a ball", "the small cone"])
    assert numbers.tolist() == [1, 2]
    assert torch.equal(more, tokenize(["a ball", "the small cone"], trim=True))
    kept = vocabulary(corpus)
    phrases = [text for refs in corpus.refs for _, some in refs for text in some]
    assert set(tokenize([*phrases, "the purple thing"]).unique().tolist()) <= kept
    assert len(kept) < 1000
