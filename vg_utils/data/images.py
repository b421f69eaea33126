"""Images as people have them, and as they see them: the one place that opens and decodes one.

An image is taken from a file, an address, an array or memory. What comes out is RGB as a viewer shows it:
turned upright as its EXIF note says, 16 bits scaled to 8, transparent parts on white, the first frame of
several. Boxes refer to that upright image. Whatever Pillow raises is one `DataError` that names the file.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import IO, TYPE_CHECKING, Union

import numpy as np
from PIL import Image

from vg_utils.data.examples import BadRecord, DataError, GroundingExample, Report, one_line

if TYPE_CHECKING:
    from torch import Tensor

ImageSource = Union[Path, str, Image.Image, np.ndarray, "Tensor", IO[bytes]]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # read and written
LARGEST_DOWNLOAD = 64 * 2**20  # bytes of an image behind an address
HEAD_BYTES = 4096  # enough for the header of most files
_SEGMENT, _SIDES, _CHUNK = Struct(">BBH"), Struct(">HH"), Struct(">I4sII")  # of JPEG, JPEG, PNG
_OF_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of JPEG beside the image's sides
_READ_AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_NOTES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow finds an orientation


def load_image(source: ImageSource) -> Image.Image:
    """The image as RGB, upright.

    Args:
        source: a file, an `http(s)` address (`LARGEST_DOWNLOAD` bytes at most), a file object, a PIL image of
            any mode, a uint8 array (H, W, 3), (H, W, 4) or (H, W), or a tensor (3, H, W) or (1, H, W) of
            uint8 or of floats in [0, 1].

    Raises:
        DataError: nothing there, or nothing that decodes; it names the file.
    """
    with open_image(source) as image:
        return to_rgb(image)


@contextmanager
def open_image(source: ImageSource) -> Iterator[Image.Image]:
    """The image as it is stored, only its header read where it is a file; see `load_image`.

    What Pillow raises while it is open is a DataError.
    """
    try:
        if isinstance(source, Image.Image):
            yield source
        elif isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            with Image.open(_readable(source)) as image:
                yield image
        else:
            yield _from_array(source)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything
        text = one_line(str(error), 200) or type(error).__name__
        raise DataError(f"{_name(source)}: expected an image that decodes, got: {text}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as RGB, upright, on white where it is transparent; a new one."""
    orientation = orientation_of(image)  # before decoding, which forgets it in TIFF files
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    for note in _NOTES:  # it is upright now: who opens it again must not turn it again
        rgb.info.pop(note, None)
    return rgb


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, from the header alone; 1 for TIFF files, which Pillow turns by itself."""
    if image.format == "TIFF":
        return 1
    # Not image.getexif(): of a PNG file that decodes the pixels, to look for notes after them.
    return Image.Image.getexif(image).get(ORIENTATION, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of the upright image."""
    width, height = image.size
    return (height, width) if orientation_of(image) in _SIDEWAYS else (width, height)


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height in pixels of a file's upright image, from its header. Raises as `load_image` does."""
    size_wh = plain_size(_head(path))
    if size_wh is not None:
        return size_wh
    with open_image(path) as image:
        return upright_size(image)


def _head(path: Path | str) -> bytes:
    """The first bytes of a file; none where they cannot be had at once."""
    try:
        file = os.open(path, _READ_AT_ONCE)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(file, HEAD_BYTES)
    except OSError:
        return b""
    finally:
        os.close(file)


def plain_size(head: bytes) -> tuple[int, int] | None:
    """Width and height by the first bytes of a JPEG or PNG file: as Pillow finds them, far quicker.

    None where these do not tell: another format, notes that may turn the image, or a header that is longer.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(head)
    return _png_size(head) if head.startswith(b"\x89PNG\r\n\x1a\n") else None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """By its segments, of a marker, a length that counts itself, and content."""
    at, size_wh = 2, None
    while at + 12 <= len(head):
        start, marker, length = _SEGMENT.unpack_from(head, at)
        if start != 0xFF or marker in (0xE1, 0xFF):  # E1: EXIF and XMP
            return None
        if marker == 0xDA:  # the pixels begin
            return size_wh
        if marker in _OF_FRAMES:
            height, width = _SIDES.unpack_from(head, at + 5)
            size_wh = width, height
        at += 2 + length
    return None


def _png_size(head: bytes) -> tuple[int, int] | None:
    """By its chunks, of a length, a name, content and a checksum."""
    at, size_wh = 8, None
    while at + 16 <= len(head):
        length, name, *sides = _CHUNK.unpack_from(head, at)
        if name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return None
        if name == b"IDAT":
            return size_wh
        if name == b"IHDR":
            size_wh = tuple(sides)
        at += 12 + length
    return None


def readable(examples: Sequence[GroundingExample], strict: bool, report: Report) -> list[GroundingExample]:
    """The examples whose image decodes and has the size that its record states.

    The first other one is a BadRecord if `strict`, else all are counted in `report`.
    """
    unique = {example.image: example for example in examples if not isinstance(example.image, Image.Image)}
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter
        faults = dict(zip(unique, pool.map(_fault, unique.values()), strict=True))
    kept = []
    for example in examples:
        fault = None if isinstance(example.image, Image.Image) else faults[example.image]
        if fault is None:
            kept.append(example)
        else:
            report.handle(fault, strict)
    return kept


def _fault(example: GroundingExample) -> BadRecord | None:
    """What is wrong with the image of an example, if anything is."""
    try:
        with open_image(example.image) as image:
            size_wh = upright_size(image)
            image.draft("L", (1, 1))  # a JPEG file at an eighth of its size, without colours
            image.load()
    except DataError as error:
        return BadRecord("image does not decode", str(error))
    if size_wh != tuple(example.size_wh):
        return BadRecord("image of another size", wrong_size(example, size_wh))
    return None


def wrong_size(example: GroundingExample, size_wh: tuple[int, int]) -> str:
    """The message where an image is not as large as its record states: every box would be silently wrong."""
    return (
        f"image {example.image_id} ({example.image}): expected an image of {example.size_wh} pixels (width, "
        f"height) as its record states, got {size_wh}"
    )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits or of floats scaled to 0 to 255, not clipped."""
    levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    most = levels.max(initial=0)
    if image.mode.startswith("I;16") or 255 < most <= 65535:
        top = 65535
    elif image.mode == "F" and most <= 1:
        top = 1
    else:
        top = max(most, 255)
    return Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(np.uint8))


def _readable(source: Path | str | IO[bytes]) -> Path | str | IO[bytes]:
    """A regular file, or a file object."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        from vg_utils.data.fetch import FetchError, download  # late: it takes a while to import

        try:
            return io.BytesIO(download(source, LARGEST_DOWNLOAD))
        except FetchError as error:
            raise DataError(f"{source}: expected an image, got: {error}") from error
    if isinstance(source, str | os.PathLike) and not os.path.isfile(source):  # a pipe would never end
        there = os.path.exists(source)
        raise DataError(
            f"{source}: expected an image, found {'no regular file' if there else 'no such file'}"
        )
    return source


def _from_array(source: np.ndarray | Tensor) -> Image.Image:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        values = source.detach().cpu()
        if values.is_floating_point():
            values = (values.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        source = values.numpy()
        source = source[0] if source.ndim == 3 and len(source) == 1 else source
        source = np.moveaxis(source, 0, -1) if source.ndim == 3 else source
    if not isinstance(source, np.ndarray):
        expected = "a file, an address, an image, an array or a tensor"
        raise DataError(f"expected {expected} as an image, got {type(source).__name__}")
    channels = source.shape[2:] if source.ndim in (2, 3) else (0,)
    if source.dtype != np.uint8 or channels not in ((), (3,), (4,)) or 0 in source.shape:
        raise DataError(
            f"expected an image as uint8 array (H, W, 3), or as tensor (3, H, W) of uint8 or of floats in "
            f"[0, 1], got {source.dtype} {source.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(source))


def _name(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "image")
