"""`prepare`: data sets drawn, downloaded, made from boxes or converted, and the flags of each."""

from __future__ import annotations

import argparse
from typing import Any

from vg_utils.config import ConfigError, nearest
from vg_utils.data.convert import FORMATS, convert

OF_REFCOCO = ("base_url", "source", "workers")
FLAGS = {  # beside --root
    "scenes": ("images", "size", "seed"),
    "phrases": ("instances", "images", "captions", "collages", "seed"),
    "jsonl": ("from", "images"),
    **dict.fromkeys(("refcocog", "refcoco", "refcoco+"), OF_REFCOCO),
}


def add_flags(command: argparse.ArgumentParser) -> None:
    """Put the data sets, and the flags of all of them, into the parser of the verb."""
    command.add_argument("dataset", choices=list(FLAGS))
    command.add_argument("--root", required=True, help="folder to fill; run again to resume")
    converted = f"jsonl: what to convert, and what it is: {', '.join(FORMATS)}"
    command.add_argument("--from", nargs=2, metavar=("FORMAT", "SOURCE"), help=converted)
    images = "scenes: how many of train, others a fifth (default: 2000); phrases, jsonl: folder of the images"
    command.add_argument("--images", help=images)
    command.add_argument("--instances", help="phrases: file of boxes in COCO's layout")
    command.add_argument("--captions", help="phrases: file of captions in COCO's layout")
    collages = "phrases: how many images of train to add that show two others of it (default: 0)"
    command.add_argument("--collages", type=int, help=collages)
    command.add_argument("--size", type=int, help="scenes: side of an image in pixels (default: 224)")
    command.add_argument("--seed", type=int, help="scenes, phrases: same seed, same data (default: 0)")
    command.add_argument("--base-url", help="refcoco*: where the images are (default: COCO's server)")
    command.add_argument("--source", help="refcoco*: hub data set or folder of parquet with the annotations")
    command.add_argument("--workers", type=int, help="refcoco*: parallel downloads (default: 16)")


def prepare(options: argparse.Namespace) -> None:
    """What `prepare` does.

    Raises:
        ConfigError: flags that do not go together, or images that could not be downloaded.
        DataError: as the writers say.
    """
    known = {flag for flags in FLAGS.values() for flag in flags}
    given = {name: value for name, value in vars(options).items() if name in known and value is not None}
    for name in given.keys() - set(FLAGS[options.dataset]):
        raise ConfigError(f"--{name.replace('_', '-')}: prepare {options.dataset} has no such flag")
    ways = {"scenes": _scenes, "phrases": _phrases, "jsonl": _jsonl}
    ways.get(options.dataset, _refcoco)(options, given)


def _scenes(options: argparse.Namespace, given: dict[str, Any]) -> None:
    from vg_utils.refscenes.scenes import processes_of_a_program, write_scenes

    images = given.get("images", "2000")
    try:
        given["images"] = int(images)  # of others it is a folder
    except ValueError:
        raise ConfigError(f"--images: expected a number of images, got {images!r}") from None
    root = write_scenes(options.root, **given, processes=processes_of_a_program(given["images"]))
    print(f"RefScenes is in {root}")


def _phrases(options: argparse.Namespace, given: dict[str, Any]) -> None:
    missing = [f"--{name}" for name in ("instances", "images") if name not in given]
    if missing:
        raise ConfigError(f"phrases: {' and '.join(missing)} missing: which boxes of which images?")
    from vg_utils.data.phrases import make_phrases

    print(make_phrases(root=options.root, **given))


def _jsonl(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if "from" not in given:
        raise ConfigError(f"jsonl: --from FORMAT SOURCE missing; formats are {', '.join(FORMATS)}")
    kind, source = given["from"]
    if kind not in FORMATS:
        raise ConfigError(f"--from: unknown format {kind!r}{nearest(kind, FORMATS)}")
    print(convert(source, kind, options.root, given.get("images")))
    train = "python -m vg_utils train --preset photos --model dense-grounder --init photos/dense-grounder"
    print(f"next: {train} --data {options.root} --out RUN")


def _refcoco(options: argparse.Namespace, given: dict[str, Any]) -> None:
    from vg_utils.data.download import prepare_refcocog

    summary = prepare_refcocog(options.root, options.dataset, **given)
    print(summary)
    if summary.failed:
        raise ConfigError(
            f"{len(summary.failed)} images are missing; run the same command again to retry them"
        )
