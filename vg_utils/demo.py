"""What `demo` does: questions to a model about an image, and what a page shows of the answers.

The page itself is in `vg_utils.demo_page`, the one place that knows Gradio, an optional extra.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from vg_utils.config import ConfigError
from vg_utils.data import DataError, load_image
from vg_utils.data.images import image_size
from vg_utils.figures.annotate import annotate
from vg_utils.figures.pictures import overlay_heatmap
from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT
from vg_utils.models.prediction import Prediction, Predictions
from vg_utils.predictor import Encoded, Grounder

MOST_MEGABYTES = 20  # of a file that is uploaded
MOST_PIXELS = 50_000_000  # of an image: what phones take
MOST_PHRASES, LONGEST_PHRASE = 20, 200  # at once; in letters
KEPT_IMAGES = 16  # encoded, whoever asked about them
SHOWN_PIXELS = 1280  # longer side of what is shown
ALL_PHRASES = -1  # beside the numbers of the phrases, from 0


@dataclass(frozen=True)
class Answer:
    """What a page shows until the next question.

    Attributes:
        image: the file that was asked about.
        predictions: one a phrase.
        encoding_seconds: what the image took; next to nothing where it was encoded before.
        answering_seconds: what the phrases took.
    """

    image: Path
    predictions: Predictions
    encoding_seconds: float
    answering_seconds: float


class Asker:
    """Answers questions, and keeps models and encoded images for the next one.

    Args:
        device: where the models run; by default the best there is.
    """

    def __init__(self, device: str | None = None) -> None:
        self.load: Callable[[str], Grounder] = cache(partial(Grounder.load, device=device))
        self._kept: Callable[[str, Path], Encoded] = lru_cache(KEPT_IMAGES)(
            lambda checkpoint, image: self.load(checkpoint).encode(image)
        )

    def ask(self, image: Path | None, text: str, checkpoint: str) -> Answer:
        """Find the phrases of a text, one a line, in an image.

        Args:
            image: a file that stays as it is: it is known again by its name. None is an error.
            text: see `split_phrases`.
            checkpoint: whatever `Grounder.load` takes.

        Raises:
            DataError: no image, one that is too large or does not decode, or phrases that cannot be asked.
            CheckpointError: no such checkpoint.
        """
        if image is None:
            raise DataError("expected an image, got none: upload one, take one or choose an example")
        phrases = split_phrases(text)
        width, height = image_size(image)
        if width * height > MOST_PIXELS:
            most = f"{MOST_PIXELS // 10**6} million pixels"
            raise DataError(f"{image}: expected an image of {most} at most, got {width} x {height}")
        grounder = self.load(checkpoint)
        started = time.perf_counter()
        encoded = self._kept(checkpoint, image)
        seen = time.perf_counter()
        predictions = grounder.ground(phrases, encoded)
        return Answer(image, predictions, seen - started, time.perf_counter() - seen)


def split_phrases(text: str) -> list[str]:
    """The different phrases of a text, one a line; empty lines are passed over.

    Raises:
        DataError: none, too many, or one that is too long.
    """
    phrases = list(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
    if not phrases:
        raise DataError("expected a phrase, got an empty text: write one a line, such as: the red cup")
    if len(phrases) > MOST_PHRASES:
        raise DataError(f"expected {MOST_PHRASES} phrases at most, got {len(phrases)}")
    for number, phrase in enumerate(phrases, 1):
        if len(phrase) > LONGEST_PHRASE:
            most = f"{LONGEST_PHRASE} letters at most"
            raise DataError(f"phrase {number}: expected {most}, got {len(phrase)}: {phrase[:30]} …")
    return phrases


def draw(answer: Answer, chosen: int = ALL_PHRASES, threshold: float | None = None) -> Image.Image:
    """The image with the boxes of all phrases, or with that of one, which is drawn whatever its presence.

    Args:
        answer: of `Asker.ask`.
        chosen: number of the phrase, from 0, or `ALL_PHRASES`.
        threshold: of all phrases, those whose presence is below it are not drawn.

    Returns:
        mode RGB, with a longer side of `SHOWN_PIXELS` at most.
    """
    only = None if chosen == ALL_PHRASES else answer.predictions[chosen].phrase
    threshold = threshold if only is None else None
    drawn = annotate(load_image(answer.image), answer.predictions, threshold, only)
    drawn.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return drawn


def draw_heatmaps(answer: Answer) -> list[tuple[Image.Image, str]]:
    """An image a phrase with where the model sees it, and the phrase; none of a model without maps."""
    image = load_image(answer.image)
    image.thumbnail((SHOWN_PIXELS // 2, SHOWN_PIXELS // 2))  # several stand in a row
    shown = [p for p in answer.predictions if p.heatmap is not None]
    return [(overlay_heatmap(image, p.heatmap), p.phrase) for p in shown]


def summary(p: Prediction, threshold: float | None = None) -> str:
    """A phrase and what the model says of it, in a line."""
    said = [p.phrase, f"score {p.score:.2f}"]
    if p.presence is not None:
        said.append(f"presence {p.presence:.2f}")
    if not p.is_found(threshold):
        said.append("not found")
    if p.unknown_words:
        said.append(f"unknown words: {', '.join(p.unknown_words)}")
    return " · ".join(said)


def timing(answer: Answer) -> str:
    """What the answer took, as a sentence."""
    return (
        f"Image encoded in {answer.encoding_seconds:.2f} s, "
        f"phrases answered in {answer.answering_seconds:.2f} s."
    )


def free_port(host: str, port: int) -> int:
    """The port, if nobody has it yet; of 0, any that is free.

    Raises:
        ConfigError: it is taken, it is none, or the host is none of this machine.
    """
    try:
        family, *_, (address, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.create_server((address, port), family=family) as server:
            return server.getsockname()[1]
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host, --port: expected a free port of this machine, got {host}, {port} ({reason}); --port 0 "
            "takes any"
        ) from None


def run_demo(
    checkpoint: str | None = None,
    device: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
) -> None:
    """Serve the page until it is stopped.

    Args:
        checkpoint: the one that is chosen first, beside the shipped ones; by default that for photographs.
        device: by default the best there is.
        host: address to listen on; by default nobody but this machine is heard.
        port: 0 takes any that is free.
        share: ask Gradio's server for a public address.

    Raises:
        ConfigError: Gradio is missing, the port is taken, or there is no such device.
        CheckpointError: no such checkpoint.
    """
    if find_spec("gradio") is None:
        raise ConfigError("expected gradio, which is not installed: pip install 'gradio>=6.31'")
    port, checkpoint = free_port(host, port), checkpoint or DEFAULT_CHECKPOINT
    asker = Asker(device)
    asker.load(checkpoint)  # what is wrong with it is said before there is a page
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the folder goes
    with tempfile.TemporaryDirectory(prefix="vg_utils-demo-") as uploads:
        # Gradio reads these while it is imported. A folder of its own, because it serves whatever lies there.
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_EXAMPLES_CACHE": f"{uploads}/examples"}
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ.pop("GRADIO_ALLOWED_PATHS", None)
        from vg_utils.demo_page import serve

        serve(asker, checkpoint, host, port, share)
