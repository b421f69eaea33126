"""From an image, its boxes and its phrases to the model's square: decoding, letterbox, augmentation.

Whatever happens to the image, random zoom and shift included, is written down in the same four numbers as
the plain letterbox (see `boxes.py`), so boxes always go through `boxes.boxes_to_model` and back by
`boxes_to_image`. Only the mirror image is not in them: after a flip the boxes are in pixels of the mirrored
original.

Boxes refer to the image as it is *seen*, turned upright as its EXIF note says (see `images.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxFormat

from vg_utils.boxes import letterbox, letterbox_size
from vg_utils.data.images import ImageSource, load_image, open_image, to_rgb, upright_size
from vg_utils.data.text import swap_left_right

__all__ = ["PADDING_RGB", "Decoded", "EvalTransform", "TrainTransform", "View", "decode"]
__all__ += ["change_colors", "crop_regions", "random_colors"]

PADDING_RGB = (122, 116, 104)  # CLIP's mean colour: zero once normalised

# JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves this many pixels for each one needed. For squares
# of 64 to 224 pixels, 58 COCO photographs then differ from their full decode by 0.5 to 1.3 grey levels on
# average, the worst by 2.4; with a margin of 1 by up to 2.0, the worst by 3.9. A 640 x 480 photograph for 224
# takes 60% of the time.
DECODE_MARGIN = 1.4


class Decoded(NamedTuple):
    """An image, perhaps decoded at a reduced scale.

    Attributes:
        picture: mode RGB.
        size_wh: width and height of the original (upright), which boxes refer to.
        shrink: original pixels for each pixel of `picture`: 1, 2, 4 or 8.
    """

    picture: Image.Image
    size_wh: tuple[int, int]
    shrink: int


class View(NamedTuple):
    """What a transform makes of one image.

    Attributes:
        image: uint8 (3, S, S), RGB, the model's square input.
        boxes_xyxy: float32 (N, 4), pixels of the original image (of the mirrored one, if it was flipped).
        letterbox: float32 (4,), see `boxes.letterbox`.
        texts: the N phrases, left and right swapped if the image was flipped.
        size_wh: width and height of the original image in pixels.
    """

    image: Tensor
    boxes_xyxy: Tensor
    letterbox: Tensor
    texts: list[str]
    size_wh: tuple[int, int]


def decode(image: ImageSource, size: int) -> Decoded:
    """Read an image with at least the detail that a letterbox of `size` pixels can show.

    Args:
        image: anything that `images.load_image` takes. JPEG files are decoded at a reduced scale if enough.
        size: side of the square in pixels that the image will be drawn into.

    Raises:
        DataError: nothing there, or nothing that decodes; it names the file.
    """
    with open_image(image) as opened:
        size_wh, stored_width, drafted = upright_size(opened), opened.width, None
        if opened is not image:  # a file, which may be decoded as it suits; None unless its format can do it
            wanted_wh = [math.ceil(side * DECODE_MARGIN) for side in letterbox_size(opened.size, size)]
            drafted = opened.draft(None, tuple(wanted_wh))
        shrink = round(stored_width / drafted[1][2]) if drafted else 1
        return Decoded(to_rgb(opened), size_wh, shrink)


@dataclass(frozen=True)
class EvalTransform:
    """The letterbox and nothing else: the whole image in the middle of a square of `size` pixels."""

    size: int

    def __call__(
        self,
        image: ImageSource,
        boxes_xyxy: Tensor | None = None,
        texts: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> View:
        """See `View`; boxes and texts come back as they are, and nothing is random."""
        decoded = decode(image, self.size)
        placed = letterbox(decoded.size_wh, self.size)
        boxes_xyxy = torch.zeros(0, 4) if boxes_xyxy is None else boxes_xyxy
        return View(_draw(decoded, placed, self.size), boxes_xyxy, placed, list(texts), decoded.size_wh)


@dataclass(frozen=True)
class TrainTransform:
    """Random mirror image, zoom, shift and colours; every target box stays in the square as a whole.

    Attributes:
        size: side of the square in pixels.
        flip: probability of mirroring. Left and right are swapped in the phrases; the image stays as it is
            if any of its phrases cannot be swapped (see `text.swap_left_right`).
        jitter: brightness, contrast and saturation are each multiplied by 1 - jitter to 1 + jitter.
        recolor: share of the images that are shown in quite other colours (see `random_colors`), so that a
            thing's shape is learned apart from its colour. Which they are, and which phrases then fit, is up
            to the data set.
        scale: smallest and largest zoom relative to the letterbox, evenly distributed in its logarithm.
            Zooming in goes no further than the targets allow, all of them together.
        translate: largest shift from the middle, as a share of the square; more only where a target would be
            cut. What leaves the square is lost, and with it, at times, the thing that a phrase relates to:
            keep it small.
    """

    size: int
    flip: float = 0.5
    jitter: float = 0.2
    recolor: float = 0.0
    scale: tuple[float, float] = (0.7, 1.4)
    translate: float = 0.1

    def __call__(
        self,
        image: ImageSource,
        boxes_xyxy: Tensor,
        texts: Sequence[str],
        generator: torch.Generator | None = None,
        colors: Tensor | None = None,
    ) -> View:
        """A random `View`; all randomness comes from the generator (None: torch's global one).

        With `colors` (3, 3) the image is shown in those (see `change_colors`).
        """
        mirrored_texts = [swap_left_right(text) for text in texts]
        mirrored = _uniform(0, 1, generator) < self.flip and None not in mirrored_texts
        zoom = math.exp(_uniform(math.log(self.scale[0]), math.log(self.scale[1]), generator))

        decoded = decode(image, math.ceil(self.size * zoom))
        width, height = decoded.size_wh
        if mirrored:
            boxes_xyxy = F.horizontal_flip_bounding_boxes(boxes_xyxy, BoundingBoxFormat.XYXY, (height, width))
        placed = self._place(boxes_xyxy, decoded.size_wh, zoom, generator)
        factors = [_uniform(1 - self.jitter, 1 + self.jitter, generator) for _ in range(3)]
        return View(
            _draw(decoded, placed, self.size, mirrored, factors, colors),
            boxes_xyxy,
            placed,
            mirrored_texts if mirrored else list(texts),
            decoded.size_wh,
        )

    def _place(
        self, boxes_xyxy: Tensor, size_wh: tuple[int, int], zoom: float, generator: torch.Generator | None
    ) -> Tensor:
        """A random letterbox, (4,), that shows all the boxes. It draws whole pixels, like the plain one."""
        width, height = size_wh
        if len(boxes_xyxy):  # one box around all targets, clipped lest an overhang asks for the impossible
            clipped = clip_boxes_to_image(boxes_xyxy, (height, width))
            x1, y1, x2, y2 = (*clipped[:, :2].amin(0).tolist(), *clipped[:, 2:].amax(0).tolist())
        else:
            x1, y1, x2, y2 = 0.0, 0.0, float(width), float(height)
        scale = self.size / max(width, height)
        # Two pixels of slack: one for rounding the drawn size up, one for a whole-pixel shift to exist.
        zoom = min(zoom, max(1.0, (self.size - 2) / (scale * max(x2 - x1, y2 - y1))))
        new_width, new_height = max(1, round(width * scale * zoom)), max(1, round(height * scale * zoom))
        scale_x, scale_y = new_width / width, new_height / height
        left = self._shift(new_width, x1 * scale_x, x2 * scale_x, generator)
        top = self._shift(new_height, y1 * scale_y, y2 * scale_y, generator)
        return torch.tensor([scale_x, scale_y, left, top], dtype=torch.float32)

    def _shift(self, drawn: int, low: float, high: float, generator: torch.Generator | None) -> int:
        """Random position along one axis for an image `drawn` pixels long that shows its `low` to `high`."""
        first, last = math.ceil(-low - 1e-6), math.floor(self.size - high + 1e-6)  # all that show the targets
        centre, reach = (self.size - drawn) // 2, int(self.translate * self.size)
        near_first, near_last = max(first, centre - reach), min(last, centre + reach)
        if near_first > near_last:  # zoomed in on targets far from the middle: go as far as they need
            return min(max(centre, first), last)
        return int(torch.randint(near_first, near_last + 1, (), generator=generator))


def random_colors(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random matrices (count, 3, 3) for `change_colors`.

    They turn the wheel of colours by any angle and let what is colourful fade by a random share, in a third
    of them until only greys are left. Greys stay what they are.
    """
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    vivid = (1.5 * torch.rand(count, generator=generator) - 0.5).clamp(min=0)[:, None, None]
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return grey + vivid * (cosine * (torch.eye(3) - grey) + sine * across)  # Rodrigues, about the greys' axis


def change_colors(images: Tensor, colors: Tensor) -> Tensor:
    """RGB images (..., 3, H, W) in [0, 1] with every colour multiplied by a matrix (..., 3, 3)."""
    return torch.einsum("...ij,...jhw->...ihw", colors, images).clamp(0, 1)


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _draw(
    decoded: Decoded,
    placed: Tensor,
    size: int,
    mirrored: bool = False,
    factors: Sequence[float] = (1.0, 1.0, 1.0),
    colors: Tensor | None = None,
) -> Tensor:
    """Draw the image into a square where the letterbox `placed` says: uint8 (3, size, size).

    The part that will be seen is resampled straight from the decoded image (antialiased bicubic, Pillow's
    `box` argument because it takes fractions of pixels), so zooming in costs no more than a letterbox.
    """
    width, height = decoded.size_wh
    scale_x, scale_y, left, top = placed.tolist()
    x1, x2 = int(max(left, 0)), int(min(left + round(width * scale_x), size))  # in the square
    y1, y2 = int(max(top, 0)), int(min(top + round(height * scale_y), size))
    seen_x1, seen_x2 = (x1 - left) / scale_x, (x2 - left) / scale_x  # in the original
    seen_y1, seen_y2 = (y1 - top) / scale_y, (y2 - top) / scale_y
    if mirrored:  # the letterbox speaks of the mirrored original
        seen_x1, seen_x2 = width - seen_x2, width - seen_x1
    # The letterbox is float32: by its rounding it may reach a millionth over the edge, which Pillow refuses.
    box = (max(seen_x1, 0), max(seen_y1, 0), min(seen_x2, width), min(seen_y2, height))
    part = decoded.picture.resize(
        (x2 - x1, y2 - y1), Image.Resampling.BICUBIC, box=tuple(v / decoded.shrink for v in box)
    )
    if mirrored:
        part = F.horizontal_flip(part)
    if tuple(factors) != (1.0, 1.0, 1.0):
        part = F.adjust_brightness(part, factors[0])
        part = F.adjust_contrast(part, factors[1])
        part = F.adjust_saturation(part, factors[2])
    square = torch.tensor(PADDING_RGB, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)  # (3, S, S)
    drawn = F.pil_to_tensor(part)
    if colors is not None:
        drawn = (255 * change_colors(drawn / 255, colors)).round().byte()
    square[:, y1:y2, x1:x2] = drawn
    return square


def crop_regions(image: Image.Image, boxes_xyxy: ArrayLike | Tensor, size: int) -> Tensor:
    """The contents of boxes as squares for CLIP's image encoder.

    A crop is resized to the square (bicubic with antialiasing, as CLIP's own preprocessing does), not
    centre-cropped, which would cut the ends off a long object. Sides are rounded to whole pixels, so that
    nothing outside the box bleeds in, and moved inside the image; an empty or inverted box, or one
    outside the image, becomes a pixel wide, high or both.

    Args:
        image: the original image.
        boxes_xyxy: (N, 4) corners in pixels of that image.
        size: side of the squares in pixels.

    Returns:
        uint8 (N, 3, size, size), RGB.

    Raises:
        ValueError: boxes of another shape, or not finite.
    """
    boxes = torch.as_tensor(boxes_xyxy).detach().cpu().double().numpy()
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"expected (N, 4) finite boxes, got shape {boxes.shape}: {boxes[:3].tolist()}")
    image = load_image(image)
    limit = np.array(image.size, dtype=float)
    top_left = np.clip(np.round(boxes[:, :2]), 0, limit - 1)  # (N, 2)
    bottom_right = np.clip(np.round(boxes[:, 2:]), top_left + 1, limit)  # (N, 2)
    crops = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    for row, corners in enumerate(np.concatenate([top_left, bottom_right], axis=1).astype(int).tolist()):
        crops[row] = np.asarray(image.crop(corners).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
