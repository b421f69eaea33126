"""Milliseconds to an answer, as `Grounder` gives it, against the same model step by step.

    python -m vg_utils benchmark answering [--model NAME ...] [--against CHECKOUT]

On a GPU the systems have RefCOCOg's full size, and Grounding DINO-T (Liu et al. 2023), where transformers is
installed, is asked beside them; on a processor they have that of RefScenes. All weights are random. With
`--against` the baseline is another checkout of this project, such as the commit before a change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from benchmarks._one_build import Asking, OtherBuild
from benchmarks._timing import (
    Comparison,
    Report,
    clocks_in_turns,
    device,
    finish,
    in_turns,
    options,
    seconds_of,
)
from benchmarks._work import largest_difference, photographs

SYSTEMS = ("dense-grounder", "clip-hrnet", "clip-rpn-attention", "transvg")
PHRASES = 10
WAYS = {
    "first": "the first question about an image",
    "further": "each further question",
    "together": f"each of {PHRASES} asked together",
}
FAST, PLAIN, OTHER = "this build", "this build, step by step", "the other build"
DINO = "Grounding DINO-T, transformers, bf16 autocast"


def measure(
    model: str, full: bool, images: list[str], phrases: list[str], rounds: int, against: str | None
) -> tuple[list[Comparison], dict[str, float]]:
    """The three ways to ask, of one system."""
    builds = {
        PLAIN: Asking(model, full, images, phrases, fast=False),
        FAST: Asking(model, full, images, phrases),
    }
    given = {name: torch.tensor(build.boxes()) for name, build in builds.items()}
    other = None
    if against:
        other = OtherBuild(against, "Asking", model=model, full=full, images=images, phrases=phrases)
        given[OTHER] = torch.tensor(other.result("boxes"))
    baseline = OTHER if against else PLAIN
    comparisons = []
    for way, words in WAYS.items():
        clocks: dict[str, Callable[[int], float]] = {}
        if other is not None:
            clocks[OTHER] = partial(other.seconds, way)
        clocks |= {name: partial(seconds_of, getattr(build, way)) for name, build in builds.items()}
        seconds = clocks_in_turns(clocks, rounds)
        title = f"{model}, {'refcocog' if full else 'scenes'} size, a JPEG of 640 x 480: {words}"
        comparisons.append(Comparison(title, baseline, seconds, len(phrases), "ms"))
    if other is not None:
        other.close()
    plain = given.pop(PLAIN)
    checks = {
        f"{model}: pixels between boxes, {name} to {PLAIN}": largest_difference(boxes, plain)
        for name, boxes in given.items()
    }
    spread = largest_difference(plain, plain[:1].expand_as(plain))
    return comparisons, checks | {f"{model}: pixels between boxes of different phrases": spread}


def dino(image: str, rounds: int) -> Comparison:
    """One question to Grounding DINO-T: a file read, resized to 800 x 1066, asked about, as its users do."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoImageProcessor

    torch.manual_seed(0)
    network = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().to(device())
    processor = GroundingDinoImageProcessor()
    # [CLS] eight words full stop [SEP], as numbers: the vocabulary would have to be downloaded.
    tokens = torch.tensor([[101, *range(2000, 2008), 1012, 102]], device=device())

    @torch.inference_mode()
    def ask() -> torch.Tensor:
        seen = processor(images=Image.open(image).convert("RGB"), return_tensors="pt").to(device())
        with torch.autocast(device().type, torch.bfloat16):
            return network(**seen, input_ids=tokens, attention_mask=torch.ones_like(tokens)).pred_boxes.cpu()

    seconds = in_turns({DINO: ask}, rounds)
    return Comparison("beside it: one question", DINO, seconds, 1, "ms")


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("answering", "Milliseconds to an answer, against the same model step by step.")
    parser.add_argument("--model", nargs="+", default=SYSTEMS, help="systems (default: four)")
    parser.add_argument("--against", metavar="CHECKOUT", help="baseline: another checkout of this project")
    given = parser.parse_args(arguments)
    full = device().type == "cuda" and not given.tiny
    rounds = given.rounds or (1 if given.tiny else 5)
    with tempfile.TemporaryDirectory() as folder:
        examples = photographs(Path(folder), 6)
        images = [str(example.image) for example in examples]
        phrases = [e.text for example in examples for e in example.expressions]
        phrases = phrases[: 3 if given.tiny else PHRASES]
        comparisons, checks = [], {"questions": len(phrases)}
        for model in given.model:
            found, seen = measure(model, full, images, phrases, rounds, given.against)
            comparisons, checks = [*comparisons, *found], checks | seen
        if full and find_spec("transformers"):
            comparisons.append(dino(images[0], rounds))
    return finish(Report("answering", comparisons, checks), given.json)


if __name__ == "__main__":
    main()
