"""What the small backbones know before they ground anything: `python -m experiments.backbones`.

They stand where OpenAI's CLIP and ImageNet's HRNet stand at full size. CLIP is asked to name and to retrieve,
as in zero-shot classification (Radford et al. 2021, section 3.1), in words that its captions had, too. HRNet
is asked what one linear layer, fitted anew, reads from its map of the task that it was pretrained on, beside
the same layer on the same network with random weights. The images are other splits under the pretraining's
seed, on which nothing was trained; a few minutes on a processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.pretraining import DRAWN, SIDES, DenseHead, assign_cells, dense_losses, statistics_by_side
from experiments.pretraining_corpus import (
    ATTRIBUTES,
    SEED,
    Corpus,
    crop,
    draw_corpus,
    mark,
    resized,
    rows_by_scene,
)
from vg_utils.boxes import paired_iou
from vg_utils.config import ClipConfig, HRNetConfig
from vg_utils.evaluation.metrics import bootstrap_ci
from vg_utils.models.clip import ClipBackbone, tokenize
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.pickles import write_pickle

OUT = Path(__file__).parent / "backbones.pkl"
TEMPLATES = {"shape": "the {}", "color": "the {} thing", "material": "the {} thing"}
PROBE_STEPS, PROBE_BATCH, PROBE_RATE = 600, 64, 1e-2  # of the linear layer on HRNet's map
AT_ONCE = 64  # images


def answer(question: str, chance: float | None, scores: Tensor, pictures: Tensor) -> dict:
    """A line of the report: the mean of scores (N,), its interval over images (N,), what chance gives."""
    low, high = bootstrap_ci(scores.float().numpy(), pictures.numpy())
    found = {"question": question, "chance": chance, "score": scores.float().mean().item()}
    return found | {"score_low": low, "score_high": high, "n": len(scores)}


def ask_clip(model: ClipBackbone, corpus: Corpus, side: int) -> list[dict]:
    """Names of crops, descriptions for crops, crops for descriptions, and the solid that a phrase means."""
    parts = torch.arange(len(corpus.scene)).split(AT_ONCE)
    crops = torch.cat([encode(model, crop(corpus, rows, side, room=0)) for rows in parts])
    lines = zero_shot(model, crops, corpus) + retrieval(model, crops, corpus)
    return [*lines, marked(model, corpus, side)]


def zero_shot(model: ClipBackbone, crops: Tensor, corpus: Corpus) -> list[dict]:
    """Whether the right name of each attribute is nearest to a crop (K, D) among all of them."""
    lines = []
    for number, (name, template) in enumerate(TEMPLATES.items()):
        texts = read(model, [template.format(word) for word in ATTRIBUTES[name]])
        hits = (crops @ texts.T).argmax(1) == corpus.labels[:, number]
        lines.append(answer(f"{name} of a crop", 1 / len(texts), hits, corpus.scene))
    return lines


def retrieval(model: ClipBackbone, crops: Tensor, corpus: Corpus) -> list[dict]:
    """Crops (K, D) and the descriptions of all looks, each asked for the other."""
    looks = list(product(*(range(len(ATTRIBUTES[name])) for name in TEMPLATES)))
    words = [[ATTRIBUTES[name][i] for name, i in zip(TEMPLATES, look, strict=True)] for look in looks]
    texts = read(model, [f"the {material} {color} {shape}" for shape, color, material in words])
    similarity = crops @ texts.T  # (K, looks)
    fits = (corpus.labels[:, None, : len(TEMPLATES)] == torch.tensor(looks)).all(2)  # (K, looks)
    rank = (similarity > similarity[fits][:, None]).sum(1)  # each crop has one look
    lines = [
        answer(f"description of a crop, of {len(looks)}: R@{k}", k / len(looks), rank < k, corpus.scene)
        for k in (1, 5)
    ]
    there = fits.any(0)
    first = fits.gather(0, similarity.argmax(0, keepdim=True))[0, there]
    chance = fits.float().mean(0)[there].mean().item()
    return [*lines, answer("crop of a description: R@1", chance, first, torch.arange(len(first)))]


def marked(model: ClipBackbone, corpus: Corpus, side: int) -> dict:
    """Of an image with each of its solids marked in turn: is a phrase nearest to the one that it means?"""
    hits, pictures, chances = [], [], []
    for scene, (refs, rows) in enumerate(zip(corpus.refs, rows_by_scene(corpus), strict=True)):
        rows = rows[rows >= 0]
        images = encode(model, mark(corpus, rows, side, Random(0)))
        texts = read(model, [text for _, sentences in refs for text in sentences])
        truth = torch.tensor([row for row, sentences in refs for _ in sentences])
        hits.append(rows[(texts @ images.T).argmax(1)] == truth)
        pictures += [scene] * len(truth)
        chances += [1 / len(rows)] * len(truth)
    chance = sum(chances) / len(chances)
    return answer(
        "solid that a phrase means, of its image's", chance, torch.cat(hits), torch.tensor(pictures)
    )


def ask_hrnet(model: HRNetBackbone, learn: Corpus, test: Corpus, side: int) -> list[dict]:
    """What a linear layer, trained on `learn`, says of the cells of `test` that a solid covers."""
    maps = features(model, learn, side)
    scale = maps.std((0, 2, 3), keepdim=True).clamp(min=1e-6)  # of each channel, alike for any network
    head = train_probe(maps / scale, learn)
    maps = features(model, test, side) / scale
    with torch.no_grad():
        _, distances, *logits = head(maps)
    cells = assign_cells(test, rows_by_scene(test), maps.shape[-1])
    pictures, lines = test.scene[cells.row], []
    for number, (name, scores) in enumerate(zip(ATTRIBUTES, logits, strict=True)):
        labels = test.labels[cells.row, number]
        hits = cells.read(scores).argmax(1) == labels
        commonest = labels.bincount().max().item() / len(labels)
        lines.append(answer(f"{name} of the solid in a cell", commonest, hits, pictures))
    iou = paired_iou(cells.boxes_of(distances), cells.boxes_xyxy)
    return [*lines, answer("IoU of its box", None, iou, pictures)]


def train_probe(maps: Tensor, corpus: Corpus) -> DenseHead:
    """A linear layer for the dense task of the pretraining, on maps (M, C, G, G) of the corpus' images."""
    torch.manual_seed(0)
    head, rows = DenseHead(maps.shape[1]), rows_by_scene(corpus)
    optimizer = torch.optim.AdamW(head.parameters(), PROBE_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROBE_STEPS)
    for _ in range(PROBE_STEPS):
        chosen = torch.randint(0, len(maps), (PROBE_BATCH,))
        optimizer.zero_grad()
        sum(dense_losses(head(maps[chosen]), corpus, rows[chosen]).values()).backward()
        optimizer.step()
        schedule.step()
    return head


def untrained(corpus: Corpus, side: int) -> HRNetBackbone:
    """An HRNet with random weights, and running statistics of the images: without them it says nothing."""
    torch.manual_seed(0)
    model = HRNetBackbone(HRNetConfig("scenes-hrnet", "random"), side)
    some = resized(corpus.images, side).split(AT_ONCE)
    statistics_by_side(model.net, model, {side: list(some)})
    return model


@torch.no_grad()
def features(model: HRNetBackbone, corpus: Corpus, side: int) -> Tensor:
    """Maps (M, C, G, G) of the corpus' images."""
    model.eval()
    return torch.cat([model(resized(part, side)) for part in corpus.images.split(AT_ONCE)])


@torch.no_grad()
def encode(model: ClipBackbone, images: Tensor) -> Tensor:
    """Unit vectors (N, D) of images (N, 3, S, S)."""
    return F.normalize(model.encode_images(images), dim=1)


@torch.no_grad()
def read(model: ClipBackbone, texts: Sequence[str]) -> Tensor:
    """Unit vectors (N, D) of phrases."""
    return F.normalize(model.encode_texts(tokenize(texts, trim=True)).pooled, dim=1)


def measure(scenes: int) -> dict:
    """Ask both backbones at every input size on so many test images; plain data."""
    learn, test = (draw_corpus(split, scenes, DRAWN, "cpu") for split in ("val", "test"))
    found = {"scenes": scenes, "seed": SEED, "solids": len(test.scene), "parameters": {}, "answers": []}
    for side in SIDES:
        clip = ClipBackbone(ClipConfig("scenes-rn", "shipped"), side).eval()
        hrnet = HRNetBackbone(HRNetConfig("scenes-hrnet", "shipped"), side)
        asked = {
            "clip": ask_clip(clip, test, side),
            "hrnet": ask_hrnet(hrnet, learn, test, side),
            "random hrnet": ask_hrnet(untrained(learn, side), learn, test, side),
        }
        lines = [{"backbone": name, "side": side} | line for name, some in asked.items() for line in some]
        found["answers"] += lines
        for name, model in (("clip", clip), ("hrnet", hrnet)):
            found["parameters"][name] = sum(p.numel() for p in model.parameters())
        for line in lines:
            print(f"{line['backbone']:12} {side}  {line['question']:40} {line['score']:.3f}", flush=True)
    return found


def main() -> None:
    """Measure and write `experiments/backbones.pkl`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--scenes", type=int, default=500, help="of test, and as many of val for the linear layer"
    )
    options = parser.parse_args()
    write_pickle(options.out, measure(options.scenes))
    print(f"{options.out}: written; python -m experiments.report puts it into RESULTS.md")


if __name__ == "__main__":
    main()
