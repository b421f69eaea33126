"""Milliseconds to the first answer about an image and to further ones; images a second, in a batch or not.

    python -m vg_utils benchmark grounding [--full]

The first question pays for decoding and encoding the image (`Grounder.set_image`); the ones after it for
the phrase and the head. Published code pays for the first each time. `Grounder.ground_batch` is measured
against the same images and questions one after another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._timing import Comparison, Report, finish, in_turns, options
from benchmarks._work import enliven, photographs, untrained
from vg_utils.models import build_model
from vg_utils.predictor import Grounder

PHRASES = 10
FIRST, FURTHER = "the first question about an image", "each further question"
TOGETHER = f"each of {PHRASES} asked together"
ALONE, BATCH = "one after another", "in a batch"


def measure(model: str, full: bool, folder: Path, rounds: int, images: int) -> Report:
    """Ask a model with random weights about one photograph, and about many."""
    torch.manual_seed(0)
    config = untrained(model, full)
    examples = photographs(folder, images)
    network = build_model(model, config.model)
    enliven(network, examples, config.model.image_size)
    grounder = Grounder(network, config)
    path = examples[0].image
    phrases = [e.text for example in examples for e in example.expressions][:PHRASES]

    afresh = [grounder.set_image(path).ground(phrase)[0] for phrase in phrases]
    again = [grounder.ground(phrase)[0] for phrase in phrases]
    together = grounder.ground(phrases)
    corners = [torch.tensor([p.box_xyxy for p in answers]) for answers in (afresh, again, together)]
    spread = (corners[0] - corners[0][0]).abs().max().item()
    seconds = in_turns(
        {
            FIRST: lambda: [grounder.set_image(path).ground(phrase) for phrase in phrases],
            FURTHER: lambda: [grounder.ground(phrase) for phrase in phrases],
            TOGETHER: lambda: grounder.ground(phrases),
        },
        rounds,
    )
    paths, asked = [e.image for e in examples], [[e.expressions[0].text] for e in examples]

    def alone() -> list:
        return [grounder.ground(said, grounder.encode(path)) for path, said in zip(paths, asked, strict=True)]

    ways = {ALONE: alone, BATCH: lambda: grounder.ground_batch(paths, asked)}
    given = [torch.tensor([answers[0].box_xyxy for answers in answer()]) for answer in ways.values()]
    title = f"{model}, {config.preset} size, a JPEG of 640 x 480 pixels"
    comparisons = [
        Comparison(title, FIRST, seconds, len(phrases), "ms"),
        Comparison(
            f"{images} such images, a question each", ALONE, in_turns(ways, rounds), images, "images/s"
        ),
    ]
    checks = {
        "questions": len(phrases),
        "pixels between the boxes of different questions": spread,
        "pixels between the boxes, first to further": (corners[0] - corners[1]).abs().max().item(),
        "pixels between the boxes, further to together": (corners[1] - corners[2]).abs().max().item(),
        "pixels between the boxes, alone to in a batch": (given[0] - given[1]).abs().max().item(),
    }
    return Report("grounding", comparisons, checks)


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("grounding", "Milliseconds to the first answer about an image and to each further one.")
    parser.add_argument("--full", action="store_true", help="RN50 and HRNet-W18 at 224, as on RefCOCOg")
    parser.add_argument("--model", default="clip-hrnet", help="name in vg_utils/models (default: clip-hrnet)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rounds = given.rounds or (1 if given.tiny else 5)
        images = 6 if given.tiny else 24
        return finish(measure(given.model, given.full, Path(folder), rounds, images), given.json)


if __name__ == "__main__":
    main()
