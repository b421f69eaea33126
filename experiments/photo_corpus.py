"""Photographs on the device, for the pretraining of their backbone: boxes with names, and captions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from vg_utils.boxes import boxes_to_model, to_xyxy
from vg_utils.data.phrases.reading import read_captions
from vg_utils.data.phrases.writing import HELD_OUT
from vg_utils.data.refer_files import read_instances
from vg_utils.data.splits import split_of
from vg_utils.data.text import swap_left_right
from vg_utils.data.transforms import EvalTransform

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
    """

    images: Tensor
    captions: list[list[str]]
    boxes_xyxy: Tensor
    picture: Tensor
    label: Tensor
    classes: list[str]

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
    instances = read_instances(data / "instances.json")
    records = [r for r in instances["images"] if held_out(r["file_name"]) == measured]
    records = sorted(records, key=lambda r: r["file_name"])[: limit or None]
    number = {record["id"]: i for i, record in enumerate(records)}
    captions = read_captions(data / "captions.json")
    with ThreadPoolExecutor() as pool:
        views = list(pool.map(EvalTransform(side), [data / "images" / r["file_name"] for r in records]))
    classes = {category["id"]: i for i, category in enumerate(instances["categories"])}
    boxes, picture, label = [], [], []
    for item in instances["annotations"]:
        x, y, w, h = item["bbox"]
        if item["image_id"] in number and min(w, h) >= SMALLEST and not item.get("iscrowd", 0):
            boxes.append((x, y, x + w, y + h))
            picture.append(number[item["image_id"]])
            label.append(classes[item["category_id"]])
    letterboxes = torch.stack([view.letterbox for view in views])[picture]  # (K, 4)
    squares = to_xyxy(boxes_to_model(torch.tensor(boxes), letterboxes, side)) * side
    return Photos(
        torch.stack([view.image for view in views]).to(device),
        [captions[record["id"]] for record in records],
        squares.to(device),
        torch.tensor(picture, device=device),
        torch.tensor(label, device=device),
        [category["name"] for category in instances["categories"]],
    )


def sample_boxes(photos: Photos, count: int) -> Tensor:
    """Rows (count,) of boxes, a class as often as the root of its share: two of five boxes are persons."""
    frequency = photos.label.bincount(minlength=len(photos.classes)).float()
    return torch.multinomial(frequency.clamp(min=1).rsqrt()[photos.label], count, replacement=True)


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
