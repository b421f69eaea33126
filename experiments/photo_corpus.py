"""Photographs on the device, for the pretraining of their backbone: boxes with names, and captions."""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from vg_utils.boxes import boxes_to_model, to_xyxy
from vg_utils.data.phrases.reading import annotated_classes
from vg_utils.data.phrases.writing import HELD_OUT
from vg_utils.data.splits import split_of
from vg_utils.data.text import swap_left_right
from vg_utils.data.transforms import EvalTransform

COMMON = 0.02  # share of the images; those with a class that fewer show are drawn more often
SMALLEST = 16  # pixels of a box's shorter side; what is smaller cannot be told, even by people


def held_out(file_name: str) -> bool:
    """Whether an image is kept for measuring: those of val and test of the phrases made from its boxes."""
    return split_of(file_name, HELD_OUT) != "train"


@dataclass
class Photos:
    """M images with K boxes.

    Attributes:
        images: uint8 (M, 3, S, S), letterboxed.
        captions: of each image, some or none.
        boxes_xyxy: float32 (K, 4), in pixels of the square.
        picture: int64 (K,), the image of each box.
        label: int64 (K,), its class.
        classes: their names.
        all_boxes, all_labels: float32 (M, L, 4) and int64 (M, L), every box of each image, however small, and
            its class; -1 where there are fewer.
        known: bool (M, C), which classes somebody looked for in each image.
    """

    images: Tensor
    captions: list[list[str]]
    boxes_xyxy: Tensor
    picture: Tensor
    label: Tensor
    classes: list[str]
    all_boxes: Tensor
    all_labels: Tensor
    known: Tensor

    def captioned(self) -> list[int]:
        """The images with captions."""
        return [number for number, captions in enumerate(self.captions) if captions]


def read_photos(data: Path, side: int, device: torch.device, measured: bool, limit: int = 0) -> Photos:
    """The images to learn from, or those to measure on, decoded onto the device.

    Args:
        data: a folder with `instances.json` and `captions.json`, in COCO's layouts, and `images`.
        side: of the squares, S.
        device: where the images stay: 3 S^2 bytes each.
        measured: whether those that are held out are asked for.
        limit: at most so many; 0: all.
    """
    instances = json.loads((data / "instances.json").read_text())
    records = [r for r in instances["images"] if held_out(r["file_name"]) == measured]
    records = sorted(records, key=lambda r: r["file_name"])[: limit or None]
    number = {record["id"]: i for i, record in enumerate(records)}
    captions: dict[int, list[str]] = defaultdict(list)
    for caption in json.loads((data / "captions.json").read_text())["annotations"]:
        captions[caption["image_id"]].append(caption["caption"])
    with ThreadPoolExecutor() as pool:
        views = list(pool.map(EvalTransform(side), [data / "images" / r["file_name"] for r in records]))
    classes = {category["id"]: i for i, category in enumerate(instances["categories"])}
    items = [
        item
        for item in instances["annotations"]
        if item["image_id"] in number and not item.get("iscrowd", 0) and min(item["bbox"][2:]) > 0
    ]
    corners = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in (item["bbox"] for item in items)])
    picture = torch.tensor([number[item["image_id"]] for item in items])
    label = torch.tensor([classes[item["category_id"]] for item in items])
    letterboxes = torch.stack([view.letterbox for view in views])[picture]  # (K, 4)
    squares = to_xyxy(boxes_to_model(corners, letterboxes, side)) * side
    told = (corners[:, 2:] - corners[:, :2]).amin(1) >= SMALLEST
    return Photos(
        torch.stack([view.image for view in views]).to(device),
        [captions[record["id"]] for record in records],
        squares[told].to(device),
        picture[told].to(device),
        label[told].to(device),
        [category["name"] for category in instances["categories"]],
        by_image(squares, picture, len(records), 0.0).to(device),
        by_image(label, picture, len(records), -1).to(device),
        looked_for(instances, records).to(device),
    )


def by_image(values: Tensor, picture: Tensor, count: int, empty: float) -> Tensor:
    """Values (K, ...) of boxes, put together by image (K,): (count, L, ...), filled up with `empty`."""
    rows = [(picture == number).nonzero()[:, 0] for number in range(count)]
    return pad_sequence([values[some] for some in rows], batch_first=True, padding_value=empty)


def looked_for(instances: dict, records: list[dict]) -> Tensor:
    """bool (M, C): which classes are annotated in these images."""
    names = {category["id"]: category["name"] for category in instances["categories"]}
    of_image: dict[int, list[dict]] = defaultdict(list)
    for item in instances["annotations"]:
        of_image[item["image_id"]].append(item)
    known = annotated_classes(instances["images"], of_image, names)
    return torch.tensor([[name in known[record["id"]] for name in names.values()] for record in records])


def sample_boxes(photos: Photos, count: int) -> Tensor:
    """Rows (count,) of boxes, a class as often as the root of its share: two of five boxes are persons."""
    frequency = photos.label.bincount(minlength=len(photos.classes)).float()
    return torch.multinomial(frequency.clamp(min=1).rsqrt()[photos.label], count, replacement=True)


def image_weights(photos: Photos) -> Tensor:
    """How often to draw each image (M,): one with a rare class more (Gupta et al. 2019, appendix B.2)."""
    classes = range(len(photos.classes))
    shows = torch.stack([(photos.all_labels == label).any(1) for label in classes], 1).float()  # (M, C)
    often = (COMMON / shows.mean(0).clamp(min=1e-9)).sqrt().clamp(min=1)
    return (shows * often).amax(1).clamp(min=1)


def crops(photos: Photos, rows: Tensor, side: int, room: float = 0.0) -> Tensor:
    """Boxes (N,) with up to `room` of their size on each side, cut out: (N, 3, side, side) in [0, 1]."""
    boxes, edge = photos.boxes_xyxy[rows], photos.images.shape[-1]
    around = torch.rand_like(boxes) * room * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = (boxes + torch.tensor([-1, -1, 1, 1], device=boxes.device) * around).clamp(0, edge)
    pictures, place = photos.picture[rows].unique(return_inverse=True)
    regions = torch.cat([place[:, None], boxes], dim=1)
    images = photos.images[pictures].float() / 255
    return roi_align(images, regions, side, sampling_ratio=2, aligned=True).clamp(0, 1)


def captioned_batch(photos: Photos, count: int, side: int, chance: Random) -> tuple[Tensor, list[str]]:
    """Whole images with a caption each, half of them mirrored where the caption allows it.

    Returns:
        float (N, 3, side, side) in [0, 1], and N captions.
    """
    numbers = chance.sample(photos.captioned(), count)
    captions = [chance.choice(photos.captions[number]) for number in numbers]
    swapped = [swap_left_right(text) if chance.random() < 0.5 else None for text in captions]
    images = resized(photos.images[numbers], side)
    mirrored = torch.tensor([text is not None for text in swapped], device=images.device)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images, [new or old for new, old in zip(swapped, captions, strict=True)]


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, S, S) -> float (B, 3, side, side) in [0, 1]."""
    images = images.float() / 255
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def jitter(images: Tensor, strength: float = 0.3) -> Tensor:
    """Brightness and contrast of each image changed; colours stay, captions name them."""
    factors = 1 + strength * (2 * torch.rand(2, len(images), 1, 1, 1, device=images.device) - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * factors[0] + mean) * factors[1]).clamp(0, 1)
