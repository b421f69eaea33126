"""Images that stay on the device: decoded once, then augmented there, a batch at a time.

Decoding is what limits training of small models. 21,899 images of RefCOCOg at 224 are 3.3 GB as bytes: they
fit beside a model on most GPUs, and then an epoch reads no file at all. The augmentation is that of
`transforms.TrainTransform` in distribution, not to the bit: it zooms the letterboxed square, not the file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vg_utils.boxes import to_xyxy
from vg_utils.data.batches import Batch, GroundingLoader, Tokenizer, whole_batch_loader
from vg_utils.data.examples import DataError, GroundingExample
from vg_utils.data.held import Phrases, Pictures, describe
from vg_utils.data.images import wrong_size
from vg_utils.data.transforms import (
    PADDING_RGB,
    EvalTransform,
    TrainTransform,
    change_colors,
    random_colors,
)
from vg_utils.processes import end_with_parent

DECODED_AT_ONCE = 64
GREY = (0.299, 0.587, 0.114)  # share of red, green and blue in a grey level (ITU-R 601), as torchvision's


class ResidentPictures:
    """All images of some examples as bytes on a device, with all their phrases as tokens.

    Args:
        examples: the records; M of them with R phrases together, absent ones included.
        size: side S of the model's square in pixels.
        tokenizer: that of the models that will look at them.
        device: where the images stay: 3 S^2 bytes each.
        workers: decoding processes.
        progress: show a bar.

    Attributes:
        pictures, phrases: what is held of them.
    """

    def __init__(
        self,
        examples: Sequence[GroundingExample],
        size: int,
        tokenizer: Tokenizer,
        device: torch.device | str,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        self.size, self.tokenizer, self.device = size, tokenizer, torch.device(device)
        images = torch.empty((len(examples), 3, size, size), dtype=torch.uint8, device=self.device)
        options = {"num_workers": workers, "worker_init_fn": end_with_parent}
        decoded = DataLoader(_Decoded(examples, size), DECODED_AT_ONCE, **options)
        done = 0
        for part in tqdm(decoded, desc="decoding", disable=not progress, leave=False):
            images[done : done + len(part)] = part.to(self.device)
            done += len(part)
        self.pictures, self.phrases = describe(examples, images, tokenizer)

    @property
    def examples(self) -> Sequence[GroundingExample]:
        """The records."""
        return self.pictures.examples

    def to(self, device: torch.device | str, images: Tensor | None = None) -> ResidentPictures:
        """The same images on another device, or sharing `images` there; the rest is shared with these."""
        phrases = self.phrases
        moved = self._with(
            replace(self.pictures, images=self.pictures.images.to(device) if images is None else images),
            replace(
                phrases,
                tokens=phrases.tokens.to(device),
                mirrored_tokens=phrases.mirrored_tokens.to(device),
            ),
        )
        moved.device = torch.device(device)
        return moved

    def with_examples(self, examples: Sequence[GroundingExample]) -> ResidentPictures:
        """The same images with other phrases."""
        return self._with(*describe(examples, self.pictures.images, self.tokenizer))

    def first(self, count: int) -> ResidentPictures:
        """The first so many images, sharing memory with these."""
        rows = int(self.pictures.counts[:count].sum())
        return self._with(self.pictures[:count], self.phrases[:rows])

    def _with(self, pictures: Pictures, phrases: Phrases) -> ResidentPictures:
        other = copy.copy(self)
        other.pictures, other.phrases = pictures, phrases
        return other

    def loader(
        self,
        batch_images: int,
        transform: TrainTransform | EvalTransform,
        shuffle: bool,
        seed: int = 0,
        max_expressions: int | None = None,
        absent: int | None = 0,
        drop_last: bool = False,
        per_epoch: int = 0,
    ) -> GroundingLoader:
        """Batches on the device, in the order that `make_loader` would give the files."""
        dataset = ResidentDataset(self, transform, seed, max_expressions, absent)
        return whole_batch_loader(dataset, batch_images, shuffle, seed, drop_last, per_epoch)


class _Decoded(Dataset):
    """The letterboxed images alone."""

    def __init__(self, examples: Sequence[GroundingExample], size: int) -> None:
        self.examples, self.transform = examples, EvalTransform(size)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Tensor:
        example = self.examples[number]
        view = self.transform(example.image)
        if view.size_wh != tuple(example.size_wh):  # else every box of it would be silently wrong
            raise DataError(wrong_size(example, view.size_wh))
        return view.image


class ResidentDataset(Dataset):
    """A way of looking at resident images; arguments as those of `GroundingDataset`."""

    def __init__(
        self,
        pictures: ResidentPictures,
        transform: TrainTransform | EvalTransform,
        seed: int,
        max_expressions: int | None,
        absent: int | None,
    ) -> None:
        self.held, self.transform, self.seed = pictures, transform, seed
        self.max_expressions, self.absent = max_expressions, absent
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's random numbers."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.held.examples)

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        """The batch of these (epoch, image) pairs, a pure function of the seed and of them."""
        pictures, phrases = self.held.pictures, self.held.phrases
        device, numbers = self.held.device, [number for _, number in indices]
        key = np.random.SeedSequence((self.seed, indices[0][0], *numbers)).generate_state(1)[0]
        chance = torch.Generator().manual_seed(int(key))
        chosen = torch.tensor(numbers)  # (B,)
        recolored = torch.zeros(len(chosen), dtype=torch.bool)
        if share := getattr(self.transform, "recolor", 0.0):
            recolored = pictures.can_recolor[chosen] & (torch.rand(len(chosen), generator=chance) < share)
        rows, image_index = self._choose(chosen, recolored, chance)
        images = pictures.images[chosen.to(device)]
        sizes_wh, letterboxes = pictures.sizes_wh[chosen], pictures.letterboxes[chosen]
        boxes = phrases.boxes_cxcywh[rows]
        boxes_xyxy, mirrored = phrases.boxes_xyxy[rows], torch.zeros(len(chosen), dtype=torch.bool)
        if isinstance(self.transform, TrainTransform):
            mirrored = torch.rand(len(chosen), generator=chance) < self.transform.flip
            mirrored &= pictures.can_mirror[chosen]
            images = _recolor(images, recolored, chance)
            images, letterboxes, boxes, boxes_xyxy = self._augment(
                images,
                letterboxes,
                boxes,
                boxes_xyxy,
                image_index,
                pictures.sizes_wh[chosen],
                mirrored,
                chance,
            )
        swapped = mirrored[image_index]  # (N,)
        on_device = rows.to(device)
        tokens = torch.where(
            swapped.to(device)[:, None], phrases.mirrored_tokens[on_device], phrases.tokens[on_device]
        )
        longest = int(phrases.lengths[rows].max())
        return Batch(
            images=images,
            tokens=tokens[:, :longest],
            image_index=image_index.to(device),
            target_boxes_cxcywh=boxes.to(device),
            target_boxes_xyxy=boxes_xyxy.to(device),
            letterboxes=letterboxes.to(device),
            sizes_wh=sizes_wh.to(device),
            image_ids=[pictures.image_ids[i] for i in numbers],
            sent_ids=[phrases.sent_ids[i] for i in rows.tolist()],
            texts=[
                (phrases.mirrored_texts if swap else phrases.texts)[row]
                for row, swap in zip(rows.tolist(), swapped.tolist(), strict=True)
            ],
        )

    def _choose(self, chosen: Tensor, recolored: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (N,) of the phrases that take part, and the place of each one's image in the batch."""
        pictures, phrases = self.held.pictures, self.held.phrases
        image_index = torch.arange(len(chosen)).repeat_interleave(pictures.counts[chosen])
        first = pictures.counts[chosen].cumsum(0) - pictures.counts[chosen]
        offset = torch.arange(len(image_index)) - first[image_index]
        rows = pictures.starts[chosen][image_index] + offset
        fits = ~(recolored[image_index] & phrases.names_color[rows])
        rows, image_index = rows[fits], image_index[fits]
        absent = phrases.boxes_cxcywh[rows, 2] == 0
        # Shuffled within each image's present and absent phrases; the first so many of each take part.
        group = image_index * 2 + absent
        order = (group + torch.rand(len(rows), generator=chance, dtype=torch.float64)).argsort()
        sizes = torch.bincount(group, minlength=2 * len(chosen))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[group[order]]
        limits = [math.inf if limit is None else limit for limit in (self.max_expressions, self.absent)]
        keep = place < torch.where(absent, limits[1], limits[0])
        return rows[keep], image_index[keep]

    def _augment(
        self,
        images: Tensor,
        letterboxes: Tensor,
        boxes_cxcywh: Tensor,
        boxes_xyxy: Tensor,
        image_index: Tensor,
        sizes_wh: Tensor,
        mirrored: Tensor,
        chance: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Zoom, shift, mirror and colour the images, and their letterboxes and boxes with them.

        See `TrainTransform` for what is drawn. Returns float images (B, 3, S, S) in [0, 1], the rest anew.
        """
        settings, count = self.transform, len(images)
        there = boxes_cxcywh[:, 2] > 0

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=chance)

        corners = to_xyxy(boxes_cxcywh[there]).clamp(0, 1)  # all in shares of the square from here on
        into = image_index[there][:, None].expand(-1, 2)
        low = torch.full((count, 2), 1.0).scatter_reduce(0, into, corners[:, :2], "amin")  # (B, 2)
        high = torch.full((count, 2), 0.0).scatter_reduce(0, into, corners[:, 2:], "amax")
        lone = (high <= low).any(1)  # no phrase of the image has a box
        low[lone], high[lone] = 0.0, 1.0
        zoom = uniform(math.log(settings.scale[0]), math.log(settings.scale[1])).exp()
        zoom = torch.minimum(zoom, (1 / (high - low).amax(1)).clamp(min=1.0))[:, None]  # (B, 1)
        middle = (1 - zoom) / 2
        first, last = -low * zoom, 1 - high * zoom  # shifts that keep all targets in the square
        near_first = torch.maximum(first, middle - settings.translate)
        near_last = torch.minimum(last, middle + settings.translate)
        drawn = near_first + (near_last - near_first) * torch.rand((count, 2), generator=chance)
        shift = torch.where(near_first <= near_last, drawn, torch.minimum(torch.maximum(middle, first), last))

        side = torch.where(mirrored, -1.0, 1.0)  # (B,)
        # grid_sample asks where in the old square, from -1 to 1, each new place p in [-1, 1] comes from; if
        # it is not mirrored: (p + 1 - 2 shift) / zoom - 1
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = side / zoom[:, 0], 1 / zoom[:, 0]
        theta[:, :, 2] = (1 - 2 * shift) / zoom - 1
        images = _sample(images, theta.to(images.device))
        factors = [uniform(1 - settings.jitter, 1 + settings.jitter) for _ in range(3)]
        images = _jitter(images, *(factor.to(images.device).view(-1, 1, 1, 1) for factor in factors))

        scale, place = letterboxes[:, :2] * zoom, letterboxes[:, 2:] * zoom + shift * self.held.size
        width = sizes_wh[:, 0].float()
        turned = self.held.size - place[:, 0] - scale[:, 0] * width
        place[:, 0] = torch.where(mirrored, turned, place[:, 0])
        letterboxes = torch.cat([scale, place], dim=1)

        row_zoom, row_shift, row_mirrored = zoom[image_index], shift[image_index], mirrored[image_index]
        new = torch.cat([boxes_cxcywh[:, :2] * row_zoom + row_shift, boxes_cxcywh[:, 2:] * row_zoom], dim=1)
        new[:, 0] = torch.where(row_mirrored, 1 - new[:, 0], new[:, 0])
        x1, y1, x2, y2 = boxes_xyxy.unbind(1)
        w = width[image_index]
        flipped = torch.stack([w - x2, y1, w - x1, y2], dim=1)
        boxes_xyxy = torch.where((row_mirrored & there)[:, None], flipped, boxes_xyxy)
        return images, letterboxes, torch.where(there[:, None], new, 0.0), boxes_xyxy


def _recolor(images: Tensor, which: Tensor, chance: torch.Generator) -> Tensor:
    """Images (B, 3, S, S) from 0 to 255, where bool (B,) says so in random other colours."""
    if not which.any():
        return images
    images, where = images.float(), which.nonzero().flatten().to(images.device)
    colors = random_colors(len(where), chance).to(images.device)
    images[where] = 255 * change_colors(images[where] / 255, colors)
    return images


def _sample(images: Tensor, theta: Tensor) -> Tensor:
    """Bytes (B, 3, S, S) under affine maps (B, 2, 3) -> float in [0, 1], the letterbox's colour outside."""
    padding = torch.tensor(PADDING_RGB, device=images.device).view(1, 3, 1, 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float() - padding, grid, align_corners=False)  # zeros outside
    return (moved + padding) / 255


def _jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Torchvision's three adjustments with a factor (B, 1, 1, 1) an image."""
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    images = (images * brightness).clamp(0, 1)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    grey = (images * weights).sum(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)
