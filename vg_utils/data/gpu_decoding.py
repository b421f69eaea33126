"""JPEG files decoded and letterboxed on a GPU: half a millisecond where Pillow takes four to ten.

Pixels are not Pillow's to the bit: it is another decoder, and Pillow reads large files at a reduced scale.
Training reads files with Pillow; answering on a GPU may do so with this.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from vg_utils.boxes import letterbox, letterbox_size
from vg_utils.data.transforms import PADDING_RGB, EvalTransform, View

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


def read_image(image: Path | str | Image.Image, size: int, device: torch.device | str) -> View:
    """An image letterboxed into a square of `size` pixels, as by `EvalTransform`, on the device or the CPU.

    On a GPU plain JPEG files (grey or colour, upright) are decoded there; whatever else comes, and what its
    decoder refuses, goes through Pillow.

    Raises:
        DataError: a file that is missing or does not decode.
    """
    if torch.device(device).type == "cuda" and _is_plain_jpeg(image):
        try:
            pixels = decode_jpeg(read_file(str(image)), ImageReadMode.RGB, device=device)
        except RuntimeError:
            pass  # a kind of JPEG that only Pillow reads, or a broken one, of which it will say so
        else:
            return letterboxed(pixels, size)
    return EvalTransform(size)(image)


def letterboxed(pixels: torch.Tensor, size: int) -> View:
    """uint8 (3, H, W) in the middle of a square of `size` pixels, antialiased bicubic, on its device."""
    height, width = pixels.shape[1:]
    size_wh = (width, height)
    new_width, new_height = letterbox_size(size_wh, size)
    placed = letterbox(size_wh, size)
    left, top = int(placed[2]), int(placed[3])
    drawn = F.interpolate(pixels[None].float(), (new_height, new_width), mode="bicubic", antialias=True)[0]
    square = pixels.new_empty((3, size, size))
    for channel, value in zip(square, PADDING_RGB, strict=True):  # a fill each: nothing comes from the CPU
        channel.fill_(value)
    square[:, top : top + new_height, left : left + new_width] = drawn.round().clamp(0, 255)
    return View(square, torch.zeros(0, 4), placed, [], size_wh)


def _is_plain_jpeg(image: Path | str | Image.Image) -> bool:
    if isinstance(image, Image.Image):
        return False
    try:
        with Image.open(image) as opened:  # reads the header
            upright = opened.getexif().get(ORIENTATION, 1) == 1
            return opened.format == "JPEG" and opened.mode in ("L", "RGB") and upright
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False
