"""Image-phrase pairs a second of a training step on one batch that stays on the device.

    python -m vg_utils benchmark training [--model NAME ...] [--frozen] [--against CHECKOUT]

Everything trains, from random weights, or with `--frozen` all but the backbones; on a GPU the systems have
RefCOCOg's full size, on a processor that of RefScenes. With `--against` the baseline is another checkout of
this project. The checks say, of a GPU, how many kernels a step launches, in which share of its time one runs,
and how much memory is taken at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks._one_build import OtherBuild, Training
from benchmarks._timing import Comparison, Report, clocks_in_turns, device, finish, options, seconds_of
from benchmarks._work import EXPRESSIONS, typical_start
from vg_utils.refscenes.scenes import make_scenes

SYSTEMS = ("dense-grounder", "clip-rpn-attention", "clip-hrnet")
MERGING = ("dense-grounder", "transvg")  # systems that merge CLIP's levels with HRNet's
THIS, GRAPHS, OTHER = "this build", "this build, image encoder recorded", "the other build"
WITHOUT = "this build, recorded, without HRNet"


def phrases_of(images: int) -> list[str]:
    """As many of RefScenes' expressions as so many images of RefCOCOg have."""
    _, scenes = make_scenes("train", typical_start(images), images, size=32, device="cpu", draw=False)
    texts = [sentence["text"] for scene in scenes for ref in scene["refs"] for sentence in ref["sentences"]]
    return texts[: round(EXPRESSIONS * images)]


def measure(
    model: str, full: bool, images: int, frozen: bool, rounds: int, against: str | None
) -> tuple[Comparison, dict[str, float]]:
    """Steps of one system."""
    arguments = {"model": model, "full": full, "images": images, "phrases": phrases_of(images)}
    arguments |= {"frozen": frozen}
    clocks, profiles = {}, {}
    names = (THIS, GRAPHS, WITHOUT) if model in MERGING else (THIS, GRAPHS)
    for name in names if device().type == "cuda" else (THIS,):
        build = Training(**arguments, graphs=name != THIS, hrnet=name != WITHOUT)
        clocks[name], profiles[name] = partial(seconds_of, build.step), build.profile()
    other = OtherBuild(against, "Training", **arguments) if against else None
    if other is not None:
        clocks, profiles[OTHER] = {OTHER: partial(other.seconds, "step")} | clocks, other.result("profile")
    seconds = clocks_in_turns(clocks, rounds)
    if other is not None:
        other.close()
    pairs = len(arguments["phrases"])
    size = f"{'refcocog' if full else 'scenes'} size{', backbones frozen' if frozen else ''}"
    title = f"{model}, {size}, {images} images with {pairs} phrases"
    checks = {
        f"{model}, {name}: {what}": value
        for name, profile in profiles.items()
        for what, value in profile.items()
    }
    return Comparison(title, next(iter(clocks)), seconds, pairs, "pairs/s"), checks


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("training", "Image-phrase pairs a second of a training step.")
    parser.add_argument("--model", nargs="+", default=SYSTEMS, help="systems (default: three)")
    parser.add_argument("--images", type=int, help="in a step (default: 32 on a GPU, else 8)")
    parser.add_argument("--frozen", action="store_true", help="the backbones do not train")
    parser.add_argument("--against", metavar="CHECKOUT", help="baseline: another checkout of this project")
    given = parser.parse_args(arguments)
    on_gpu = device().type == "cuda"
    images = given.images or (2 if given.tiny else 32 if on_gpu else 8)
    rounds = given.rounds or (1 if given.tiny else 5)
    full = on_gpu and not given.tiny
    comparisons, checks = [], {"images": images}
    for model in given.model:
        comparison, seen = measure(model, full, images, given.frozen, rounds, given.against)
        comparisons, checks = [*comparisons, comparison], checks | seen
    return finish(Report("training", comparisons, checks), given.json)


if __name__ == "__main__":
    main()
