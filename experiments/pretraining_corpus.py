"""What the small backbones learn from (see `pretraining.py`): scenes with their solids, cut out or marked.

A corpus holds drawn scenes on the device; a CLIP batch is made of crops of its solids with a description, and
of images with one solid marked, with a phrase that refers to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.transforms.v2.functional import gaussian_blur

from vg_utils.models.clip import tokenize
from vg_utils.refscenes.expressions import ADJECTIVES, NOUNS
from vg_utils.refscenes.raycast import SHAPES
from vg_utils.refscenes.sampling import COLORS, MATERIALS, SIZES
from vg_utils.refscenes.scenes import make_scenes

SEED = 1_000_003  # no other command draws scenes from it
ATTRIBUTES = {"shape": list(SHAPES), "color": list(COLORS), "material": list(MATERIALS), "size": list(SIZES)}


@dataclass
class Corpus:
    """Scenes on the device with everything the two tasks need.

    Attributes:
        images: uint8 (M, 3, S, S).
        boxes_xyxy: float32 (K, 4), of all solids, in pixels.
        scene: int64 (K,), the image of each.
        labels: int64 (K, 4), its shape, colour, material and size.
        refs: of each image, the row of each referred solid with its phrases.
    """

    images: Tensor
    boxes_xyxy: Tensor
    scene: Tensor
    labels: Tensor
    refs: list[list[tuple[int, list[str]]]]


def draw_corpus(split: str, count: int, size: int, device: str, at_once: int = 500) -> Corpus:
    """`count` scenes of a split, held on the device."""
    images, boxes, scene, labels, refs = [], [], [], [], []
    for start in range(0, count, at_once):
        pictures, scenes = make_scenes(split, start, min(at_once, count - start), size, SEED, device)
        images.append(pictures)
        for number, made in enumerate(scenes, start):
            first = len(boxes)
            for item in made["objects"]:
                x, y, w, h = item["box_xywh"]
                boxes.append((x, y, x + w, y + h))
                scene.append(number)
                labels.append([names.index(item[name]) for name, names in ATTRIBUTES.items()])
            refs.append([(first + r["object"], [s["text"] for s in r["sentences"]]) for r in made["refs"]])
    tensors = (torch.tensor(values, device=device) for values in (boxes, scene, labels))
    return Corpus(torch.cat(images), *tensors, refs)


def rows_by_scene(corpus: Corpus) -> Tensor:
    """int64 (M, K): which rows are the solids of each image, filled up with -1."""
    counts = torch.bincount(corpus.scene, minlength=len(corpus.images))
    slot = torch.arange(len(corpus.scene), device=counts.device) - (counts.cumsum(0) - counts)[corpus.scene]
    rows = torch.full((len(counts), int(counts.max())), -1, device=counts.device)
    rows[corpus.scene, slot] = torch.arange(len(corpus.scene), device=counts.device)
    return rows


def clip_batch(corpus: Corpus, batch: int, side: int, random: Random) -> tuple[Tensor, list[str]]:
    """Half crops of solids with a description, half images that are blurred around a solid with its phrase.

    The second half is visual prompting as in CPT and its successors: the only way to tell the phrases of one
    image apart is to read their relations, and the refs of an image are in the batch together.
    """
    rows = torch.randint(0, len(corpus.boxes_xyxy), (batch // 2,), device=corpus.images.device)
    texts = [_describe(labels, random) for labels in corpus.labels[rows].tolist()]
    scenes = random.sample(range(len(corpus.refs)), batch // 2)
    chosen = [ref for scene in scenes for ref in corpus.refs[scene]][: batch // 2]
    texts += [random.choice(sentences) for _, sentences in chosen]
    marked = torch.tensor([row for row, _ in chosen], device=rows.device)
    return torch.cat([crop(corpus, rows, side), mark(corpus, marked, side, random)]), texts


def crop(corpus: Corpus, rows: Tensor, side: int, room: float = 0.35) -> Tensor:
    """The solids of (K,) rows with up to `room` of their size on each side, (K, 3, side, side) in [0, 1]."""
    boxes, drawn = corpus.boxes_xyxy[rows], corpus.images.shape[-1]
    around = torch.rand(len(rows), 4, device=rows.device) * room * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = (boxes + torch.tensor([-1, -1, 1, 1], device=rows.device) * around).clamp(0, drawn)
    rois = torch.cat([torch.arange(len(rows), device=rows.device)[:, None], boxes], dim=1)
    images = corpus.images[corpus.scene[rows]].float() / 255
    return roi_align(images, rois, side, sampling_ratio=2, aligned=True).clamp(0, 1)


def mark(corpus: Corpus, rows: Tensor, side: int, random: Random) -> Tensor:
    """The images of (K,) solids, sharp in the solid's box and blurred elsewhere, (K, 3, side, side)."""
    images = resized(corpus.images[corpus.scene[rows]], side)
    sigma = random.choice((1 / 64, 1 / 32, 1 / 16, 1 / 10)) * side
    radius = int(3 * sigma)
    soft = images
    for kernel in ([2 * radius + 1, 1], [1, 2 * radius + 1]):  # a Gaussian is one across after one down
        soft = gaussian_blur(soft, kernel, [sigma, sigma])
    boxes = corpus.boxes_xyxy[rows] * (side / corpus.images.shape[-1])
    place = torch.arange(side, device=rows.device) + 0.5
    across = (place >= boxes[:, :1]) & (place < boxes[:, 2:3])  # (K, side)
    down = (place >= boxes[:, 1:2]) & (place < boxes[:, 3:])
    return torch.where((down[:, :, None] & across[:, None])[:, None], images, soft)


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, S, S) -> float (B, 3, side, side) in [0, 1]."""
    return F.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)


def _describe(labels: list[int], random: Random) -> str:
    """A description of one solid; a crop does not show its size, so that is rarely named."""
    shape, color, material, size = (
        names[label] for names, label in zip(ATTRIBUTES.values(), labels, strict=True)
    )
    words = ["the"] if random.random() < 0.7 else ["a", "photo", "of", "a"]
    words += [random.choice(ADJECTIVES[size])] if random.random() < 0.1 else []
    words += [random.choice(ADJECTIVES[material])] if random.random() < 0.6 else []
    words += [color] if random.random() < 0.85 else []
    noun, _ = random.choice(NOUNS[shape if random.random() < 0.9 else None])
    words.append(noun)
    return " ".join(words)


def vocabulary(corpus: Corpus) -> set[int]:
    """Every token of a RefScenes phrase, of a description, and of a category's name in a prompt."""
    nouns = {word for forms in NOUNS.values() for form in forms for word in form}
    words = nouns | {word for names in ADJECTIVES.values() for word in names} | set(COLORS)
    prompts = ["a photo of a thing", "the thing", *words]
    phrases = {text for refs in corpus.refs for _, texts in refs for text in texts} | set(prompts)
    return set(tokenize(sorted(phrases)).unique().tolist())


class Tokens:
    """Tokenises each text once, and numbers the different ones."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number: dict[str, int] = {}
        self.rows: list[Tensor] = []

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """N texts -> tokens (N, L) and numbers (N,), equal for equal texts."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.number]:
            self.number |= {text: len(self.number) + i for i, text in enumerate(new)}
            self.rows += list(tokenize(new))
        numbers = [self.number[text] for text in texts]
        tokens = torch.stack([self.rows[i] for i in numbers])
        longest = int((tokens != 0).sum(1).max())
        return tokens[:, :longest].to(self.device), torch.tensor(numbers, device=self.device)
