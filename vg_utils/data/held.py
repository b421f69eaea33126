"""What is held of images that stay on a device: two tables, of the images and of their phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from vg_utils.boxes import boxes_to_model, letterbox
from vg_utils.data.batches import Tokenizer
from vg_utils.data.examples import GroundingExample
from vg_utils.data.text import names_color, swap_left_right


class _Rows:
    """A dataclass whose fields all have one row for the same thing: cut, it is those rows of each."""

    def __getitem__(self, rows: slice) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Pictures(_Rows):
    """What is held of M images.

    Attributes:
        examples: the records.
        images: uint8 (M, 3, S, S) on the device, letterboxed.
        image_ids, sizes_wh, letterboxes: M, int64 (M, 2) and float32 (M, 4), as in a `Batch`.
        counts, starts: int64 (M,), number of each one's phrases, and the row of its first.
        can_mirror: bool (M,), whether left and right can be swapped in all phrases of an image.
        can_recolor: bool (M,), whether an expression is left where it is shown in other colours.
    """

    examples: Sequence[GroundingExample]
    images: Tensor
    image_ids: list[int]
    sizes_wh: Tensor
    letterboxes: Tensor
    counts: Tensor
    starts: Tensor
    can_mirror: Tensor
    can_recolor: Tensor


@dataclass(frozen=True)
class Phrases(_Rows):
    """What is held of the R phrases of all images, absent ones included.

    Attributes:
        sent_ids, texts, mirrored_texts: R of each; the last with left and right swapped.
        boxes_xyxy, boxes_cxcywh: float32 (R, 4), in pixels of the image and shares of the square.
        names_color: bool (R,), whether it is left out where its image is shown in other colours.
        tokens, mirrored_tokens: int64 (R, L) on the device.
        lengths: int64 (R,), of the longer of both.
    """

    sent_ids: list[int]
    texts: list[str]
    mirrored_texts: list[str]
    boxes_xyxy: Tensor
    boxes_cxcywh: Tensor
    names_color: Tensor
    tokens: Tensor
    mirrored_tokens: Tensor
    lengths: Tensor


def describe(
    examples: Sequence[GroundingExample], images: Tensor, tokenizer: Tokenizer
) -> tuple[Pictures, Phrases]:
    """Everything about images (M, 3, S, S) that their examples say; tokens go to the device of these."""
    of_pictures = [(*example.expressions, *example.absent) for example in examples]
    counts = torch.tensor([len(some) for some in of_pictures])  # (M,)
    rows = [phrase for some in of_pictures for phrase in some]
    picture = torch.arange(len(examples)).repeat_interleave(counts)  # (R,)
    size = images.shape[-1]
    letterboxes = torch.stack([letterbox(example.size_wh, size) for example in examples])  # (M, 4)
    boxes_xyxy = torch.tensor([getattr(p, "box_xyxy", (0.0, 0.0, 0.0, 0.0)) for p in rows])  # (R, 4)
    boxes = boxes_to_model(boxes_xyxy, letterboxes[picture], size)
    texts = [phrase.text for phrase in rows]
    swapped = [swap_left_right(text) for text in texts]
    can_mirror = torch.ones(len(examples), dtype=torch.bool)
    can_mirror[picture[torch.tensor([text is None for text in swapped])]] = False
    with_color = torch.tensor([names_color(text) for text in texts])
    can_recolor = torch.zeros(len(examples), dtype=torch.bool)
    can_recolor[picture[~with_color & boxes_xyxy.any(1)]] = True
    mirrored_texts = [new or old for new, old in zip(swapped, texts, strict=True)]
    both = tokenizer([*texts, *mirrored_texts])  # (2 R, L)
    tokens, mirrored_tokens = both.to(images.device).chunk(2)
    pictures = Pictures(
        examples=examples,
        images=images,
        image_ids=[example.image_id for example in examples],
        sizes_wh=torch.tensor([example.size_wh for example in examples]),
        letterboxes=letterboxes,
        counts=counts,
        starts=counts.cumsum(0) - counts,
        can_mirror=can_mirror,
        can_recolor=can_recolor,
    )
    phrases = Phrases(
        sent_ids=[phrase.sent_id for phrase in rows],
        texts=texts,
        mirrored_texts=mirrored_texts,
        boxes_xyxy=boxes_xyxy,
        boxes_cxcywh=torch.where(boxes_xyxy.any(1, keepdim=True), boxes, 0.0),
        names_color=with_color,
        tokens=tokens,
        mirrored_tokens=mirrored_tokens,
        lengths=(both != 0).sum(1).view(2, -1).amax(0),
    )
    return pictures, phrases
