"""Box formats, the letterbox and its inverse, IoU and overlaps: boxes change format here only.

Two formats are used everywhere, and each name says which one it holds:

- `boxes_xyxy`: float32 (N, 4), corners in absolute pixels of the original image;
- `boxes_cxcywh`: float32 (N, 4), centre and size in [0, 1] of the model's square input, after the letterbox.

A letterbox is four numbers `(scale_x, scale_y, left, top)` with `x_model = x * scale_x + left` in pixels of
the square input. It never crops: the whole image is in the square, the rest is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area, box_convert, clip_boxes_to_image

__all__ = [
    "best_boxes",
    "boxes_to_image",
    "boxes_to_model",
    "letterbox",
    "letterbox_size",
    "paired_iou",
    "to_cxcywh",
    "to_xyxy",
]

OTHER_IOU = 0.5  # of the boxes of a phrase, what overlaps a better one by more is the same again


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre and size to corners, in whatever unit came: (..., 4) -> (..., 4)."""
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Corners to centre and size, in whatever unit came: (..., 4) -> (..., 4)."""
    return box_convert(boxes_xyxy, "xyxy", "cxcywh")


def letterbox_size(size_wh: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height in whole pixels of an image made to fit a square of `size`, at least 1 x 1."""
    width, height = size_wh
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def letterbox(size_wh: tuple[int, int], size: int) -> Tensor:
    """Letterbox of an image of `size_wh` pixels into the middle of a square of `size` pixels.

    Returns:
        float32 (4,): scale_x, scale_y, left, top. The two scales differ only by the rounding to whole pixels.
    """
    width, height = size_wh
    new_width, new_height = letterbox_size(size_wh, size)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    return torch.tensor([new_width / width, new_height / height, left, top], dtype=torch.float32)


def boxes_to_model(boxes_xyxy: Tensor, letterboxes: Tensor, size: int) -> Tensor:
    """Original pixels to the model's square: (N, 4) corners -> (N, 4) centre and size in [0, 1].

    Args:
        boxes_xyxy: (N, 4) corners in pixels of the original image.
        letterboxes: (4,) or (N, 4), the letterbox of each box's image.
        size: side of the model's square input in pixels.
    """
    scale, shift = letterboxes[..., :2], letterboxes[..., 2:]
    corners = boxes_xyxy.unflatten(-1, (2, 2)) * scale.unsqueeze(-2) + shift.unsqueeze(-2)  # (N, 2, 2)
    return to_cxcywh(corners.flatten(-2) / size)


def boxes_to_image(
    boxes_cxcywh: Tensor, letterboxes: Tensor, size: int, size_wh: tuple[int, int] | None = None
) -> Tensor:
    """Inverse of `boxes_to_model`: (N, 4) centre and size in [0, 1] -> (N, 4) corners in original pixels.

    With `size_wh` the corners are clipped to that image.
    """
    scale, shift = letterboxes[..., :2], letterboxes[..., 2:]
    corners = to_xyxy(boxes_cxcywh).unflatten(-1, (2, 2)) * size  # (N, 2, 2)
    boxes_xyxy = ((corners - shift.unsqueeze(-2)) / scale.unsqueeze(-2)).flatten(-2)
    return boxes_xyxy if size_wh is None else clip_boxes_to_image(boxes_xyxy, (size_wh[1], size_wh[0]))


def paired_iou(boxes_xyxy: Tensor, other_xyxy: Tensor) -> Tensor:
    """IoU of row i with row i: two (N, 4) tensors of corners -> (N,) in [0, 1]; 0 where the union is empty.

    >>> paired_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).item()
    0.3333333432674408
    """
    top_left = torch.maximum(boxes_xyxy[:, :2], other_xyxy[:, :2])
    bottom_right = torch.minimum(boxes_xyxy[:, 2:], other_xyxy[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    union = box_area(boxes_xyxy) + box_area(other_xyxy) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def best_boxes(boxes_xyxy: Tensor, scores: Tensor, top: int) -> list[list[tuple[list[float], float]]]:
    """Of each phrase the answer and the best of the boxes after it that are others, by suppression.

    Args:
        boxes_xyxy: (N, K, 4), the answer first, then candidates in any order.
        scores: (N, K), of the candidates; one of zero, or without area, is none.
        top: most boxes a phrase.

    Returns:
        Of each phrase up to `top` boxes with their scores, the answer first.
    """
    if top == 1:
        return [[one] for one in zip(boxes_xyxy[:, 0].tolist(), scores[:, 0].tolist(), strict=True)]
    from torchvision.ops import batched_nms  # late: it costs a second

    count, considered = scores.shape
    usable = (scores > 0) & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(2)
    order = scores.masked_fill(~usable, -1)
    order[:, 0] = 2  # above every score: the answer stays
    phrase = torch.arange(count).repeat_interleave(considered)
    kept = batched_nms(boxes_xyxy.flatten(0, 1), order.flatten(), phrase, OTHER_IOU)  # the best first
    kept = kept[order.flatten()[kept] >= 0]
    found: list[list[tuple[list[float], float]]] = [[] for _ in range(count)]
    chosen = boxes_xyxy.flatten(0, 1)[kept].tolist(), scores.flatten()[kept].tolist()
    for number, box, score in zip(phrase[kept].tolist(), *chosen, strict=True):
        if len(found[number]) < top:
            found[number].append((box, score))
    return found
