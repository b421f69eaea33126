"""What `ground` does: many images, many phrases, and what is drawn of the answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from PIL import Image

from vg_utils.config import ConfigError
from vg_utils.data import DataError, load_image
from vg_utils.data.images import IMAGE_ENDINGS
from vg_utils.files import check_file
from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT
from vg_utils.models.prediction import Prediction, Predictions, check_phrases
from vg_utils.predictor import Grounder

FIGURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
READ_ENDINGS = (*IMAGE_ENDINGS, ".gif")  # what counts as an image in a folder
NO_PRESENCE = (
    "--threshold: expected a model that says how likely a phrase is to fit anything, such as "
    "dense-grounder; {} gives a box for every phrase"
)


def check_threshold(threshold: float) -> None:
    """Raise a ConfigError unless it is a share."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold: expected a share in [0, 1], got {threshold}")


def ground_images(
    images: Sequence[Path],
    phrases: Sequence[str],
    checkpoint: str = DEFAULT_CHECKPOINT,
    device: str | None = None,
    top: int = 1,
    threshold: float | None = None,
    out: str | None = None,
    sheet: str | None = None,
    heatmap: str | None = None,
) -> dict[Path, Predictions]:
    """Boxes of the same phrases in every image, drawn where files are named for it.

    Args:
        images: files, of `split_words`.
        checkpoint: a run directory or a shipped one; by default the one for photographs.
        device: by default the best there is.
        top: most boxes a phrase.
        threshold: where something is drawn, a phrase whose presence is below it has no box.
        out: file for the image with the boxes on it. A name without an ending is a folder, for any number of
            images under their own names; so it is with the two others.
        sheet: file for a panel a phrase.
        heatmap: file for a panel a phrase, with the cells that the model took for the box.

    Raises:
        ConfigError: a threshold that is no share, or something that this model does not have.
        DataError: an image that does not decode, or a phrase without a word.
        OSError: a file that cannot be written.
    """
    phrases = check_phrases(phrases)
    if threshold is not None:
        check_threshold(threshold)
    drawn = _targets("--out", out, images, IMAGE_ENDINGS, ".png")
    sheets = _targets("--sheet", sheet, images, FIGURE_ENDINGS, ".jpg")
    heatmaps = _targets("--heatmap", heatmap, images, FIGURE_ENDINGS, ".jpg")
    load_image(images[0])  # what is no image is said before the model is loaded
    grounder = Grounder.load(checkpoint, device)
    name = grounder.config.model.name
    if threshold is not None and not grounder.model.learns_presence:
        raise ConfigError(NO_PRESENCE.format(name))
    answers = grounder.ground_batch(images, [phrases] * len(images), top)
    if heatmap and any(p.heatmap is None for found in answers for p in found):
        raise ConfigError(f"--heatmap: expected a model with a map, such as dense-grounder; {name} has none")
    if out or sheet or heatmap:
        for image, predictions in zip(images, answers, strict=True):
            places = (targets.get(image) for targets in (drawn, sheets, heatmaps))
            _draw(load_image(image), predictions, grounder.origin, threshold, *places)
    return dict(zip(images, answers, strict=True))


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """IMAGE [IMAGE ...] PHRASE [PHRASE ...]: the words that name images come first.

    An image is a file, a folder stands for the images in it, and a pattern (`photos/*.jpg`) for what matches.

    Raises:
        DataError: the first word names no image, there is no phrase, or a phrase looks like a missing file.
    """
    images: list[Path] = []
    for number, word in enumerate(words):
        found = _images_of(word)
        if not found and number == 0:
            folder = Path(word).is_dir()
            what = f"a folder without {', '.join(READ_ENDINGS)}" if folder else "no such file"
            raise DataError(f"{word}: expected an image, a folder of images or a pattern, found {what}")
        if not found:
            break
        images += found
    phrases = list(words[len(words) if found else number :])
    if not phrases:
        raise DataError(f"expected a phrase after the image, got only {' '.join(words)}")
    for phrase in phrases:
        if phrase.lower().endswith(READ_ENDINGS):
            raise DataError(f"{phrase}: expected an image, found no such file (images come before phrases)")
    return list(dict.fromkeys(images)), phrases


def print_answers(
    found: dict[Path, Predictions], origin: str, threshold: float | None = None, as_json: bool = False
) -> None:
    """What `ground` says: a line a box under the line that says which model answers, or a list as JSON."""
    if not as_json:
        print(origin)
        for image, predictions in found.items():
            for p in predictions:
                print(f"{image}: " * (len(found) > 1) + answer_line(p, threshold))
        return
    plain = []
    for image, predictions in found.items():
        about = {"image": str(image), "origin": origin}
        for p in predictions:
            judged = {} if threshold is None else {"found": p.is_found(threshold)}
            plain.append(p.as_dict() | {"rank": p.rank} | judged | about)
    print(json.dumps(plain, indent=2, allow_nan=False))


def answer_line(p: Prediction, threshold: float | None = None) -> str:
    """An answer in a line of text."""
    box = f"box ({', '.join(f'{v:.0f}' for v in p.box_xyxy)}), score {p.score:.2f}"
    answer = box if p.is_found(threshold) else f"not found (presence {p.presence:.2f})"
    unknown = f"; unknown words: {', '.join(p.unknown_words)}" if p.unknown_words else ""
    return f"{p.phrase}: {answer}{unknown}"


def _images_of(word: str) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in READ_ENDINGS)
    return sorted(p for p in map(Path, glob(word)) if p.is_file()) if has_magic(word) else []


def _targets(
    flag: str, where: str | None, images: Sequence[Path], endings: Sequence[str], usual: str
) -> dict[Path, Path]:
    """Which file each image's drawing goes to; nothing if none was asked for.

    Raises:
        ConfigError: another ending, one file for several images, two images of one name, or the image itself.
        OSError: a file that cannot be written.
    """
    if where is None:
        return {}
    path = Path(where)
    if path.suffix and not path.is_dir():
        if path.suffix.lower() not in endings:
            raise ConfigError(f"{flag}: expected a file that ends in {', '.join(endings)}, got {where}")
        if len(images) > 1:
            raise ConfigError(f"{flag}: expected a folder for {len(images)} images, got the file {where}")
        targets = [path]
    else:
        kept = [image.suffix if image.suffix.lower() in endings else usual for image in images]
        targets = [path / f"{image.stem}{ending}" for image, ending in zip(images, kept, strict=True)]
    for target, count in Counter(targets).items():
        if count > 1:
            raise ConfigError(f"{flag}: {count} images would be drawn into {target}")
        check_file(target)
        if any(target.resolve() == image.resolve() for image in images):
            raise ConfigError(f"{flag}: {target} is an image that was asked about; choose another place")
    return dict(zip(images, targets, strict=True))


def _draw(
    image: Image.Image,
    predictions: Predictions,
    title: str,
    threshold: float | None,
    drawn: Path | None,
    sheet: Path | None,
    heatmap: Path | None,
) -> None:
    """The drawings of one image that were asked for."""
    # Imported late: matplotlib takes half a second, which an answer in words does not need.
    from vg_utils.figures.annotate import annotate, save_image
    from vg_utils.figures.pictures import heatmap_grid, prediction_grid, prediction_items

    if drawn:
        save_image(annotate(image, predictions, threshold), drawn)
    if sheet:
        prediction_grid(prediction_items(image, predictions, threshold), title=title, path=sheet)
    if heatmap:
        answers = [p for p in predictions if p.rank == 0]
        heatmap_grid(image, answers, heatmap, title, threshold=threshold)
