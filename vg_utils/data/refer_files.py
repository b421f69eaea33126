"""The files of RefCOCO, RefCOCO+ and RefCOCOg: finding, reading and writing them, without interpreting them.

`refer.py` says what the files mean. Here is also what can be told from the references alone: how large the
splits are (`count_splits`) and whether they share images (`leakage`).
"""

from __future__ import annotations

import json
import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from vg_utils.data.examples import DataError, Report
from vg_utils.data.plain_pickle import read_plain
from vg_utils.data.records import LIST, TEXT, WHOLE, Kind, Record, checked, read_json
from vg_utils.files import write_atomically

DEFAULT_PARTITION = "umd"
# COCO's release of 2017 has the same images under other names; the third is where the API `refer` looks
IMAGE_FOLDERS = ("images", "train2014", "images/mscoco/images/train2014", "train2017", ".")
_SPLIT_ORDER = ("train", "val", "test", "testA", "testB")
REF = {"ref_id": WHOLE, "ann_id": WHOLE, "image_id": WHOLE, "split": TEXT, "sentences": LIST}
TARGETS = Kind(
    "whole numbers", lambda value: WHOLE.fits(value) or (LIST.fits(value) and all(map(WHOLE.fits, value)))
)
GENERAL_REF = REF | {"ann_id": TARGETS}
ABSENT = {"sent_id": WHOLE, "image_id": WHOLE, "split": TEXT, "sent": TEXT}


def annotation_folder(root: str | Path) -> Path:
    """The folder of `instances.json`: `root/annotations` or `root`. Raises DataError if it is in neither."""
    candidates = [Path(root) / "annotations", Path(root)]
    for folder in candidates:
        if (folder / "instances.json").is_file():
            return folder
    raise DataError(f"{root}: expected instances.json in " + " or ".join(map(str, candidates)))


def partitions(folder: Path) -> list[str]:
    """Names of the partitions whose `refs(NAME).p` or `grefs(NAME).json` lie in the folder, sorted."""
    names = {path.name[len("refs(") : -len(").p")] for path in folder.glob("refs(*).p")}
    return sorted(
        names | {path.name[len("grefs(") : -len(").json")] for path in folder.glob("grefs(*).json")}
    )


def refs_file(folder: Path, partition: str) -> Path:
    """The file of a partition's references: `refs(PARTITION).p`, else gRefCOCO's `grefs(PARTITION).json`."""
    return first_file([folder / f"refs({partition}).p", folder / f"grefs({partition}).json"]) or (
        folder / f"refs({partition}).p"
    )


def choose_partition(folder: Path, partition: str | None = None) -> str:
    """The partition asked for; None means the only one there, or `umd` if it is among several.

    Raises:
        DataError: it is not there; the message names the ones that are.
    """
    found = partitions(folder)
    if partition is None and len(found) == 1:
        return found[0]
    wanted = partition or DEFAULT_PARTITION
    if wanted not in found:
        raise DataError(
            f"{folder}: expected refs({wanted}).p, found partitions: {', '.join(found) or 'none'}"
        )
    return wanted


def read_instances(path: Path) -> Record:
    """`instances.json` with its lists `images`, `annotations`, `categories`. Raises DataError if damaged."""
    instances = read_json(path, "COCO's annotations as JSON")
    for key in ("images", "annotations", "categories"):
        if not isinstance(instances, dict) or not isinstance(instances.get(key), list):
            raise DataError(f"{path}: expected an object with a list under {key!r}")
    return instances


def read_refs(path: Path, strict: bool = True, report: Report | None = None) -> list[Record]:
    """`refs(PARTITION).p`, a pickled list of dicts, read without running any code that it might hold.

    Or gRefCOCO's `grefs(PARTITION).json`, where `ann_id` may be several, or -1 for none.

    Args:
        strict: raise on the first bad reference; else leave bad ones out and count them in `report`.

    Raises:
        DataError: the file is missing or damaged, names a global, is no list, or (strict) a bad reference.
    """
    general = path.suffix == ".json"
    what = f"a {'JSON' if general else 'pickled'} list of references"
    refs = read_json(path, what) if general else read_plain(path, what)
    return checked(_list(refs, path, what), GENERAL_REF if general else REF, str(path), strict, report)


def read_absent(path: Path, strict: bool = True, report: Report | None = None) -> list[Record]:
    """`absent(PARTITION).p`, phrases that fit nothing in their image; an empty list if there is no file.

    Only RefScenes has such a file. It is read as `read_refs` reads its own.
    """
    if not path.exists():
        return []
    what = "a pickled list of absent phrases"
    return checked(_list(read_plain(path, what), path, what), ABSENT, str(path), strict, report)


def _list(found: Any, path: Path, what: str) -> list:
    if not isinstance(found, list):
        raise DataError(f"{path}: expected {what}, got {type(found).__name__}")
    return found


def write_refer(
    root: str | Path,
    partition: str,
    instances: Record,
    refs: Sequence[Record],
    absent: Sequence[Record] = (),
) -> Path:
    """Write `instances.json` and `refs(PARTITION).p` into `root/annotations`; return that folder.

    Phrases that fit nothing go to `absent(PARTITION).p`, if there are any: readers of RefCOCOg's files, which
    know no such phrases, do not look there.
    """
    folder = Path(root) / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    # instances.json is what a reader looks for first, so it comes last: it stands for a complete set.
    if absent:
        write_atomically(folder / f"absent({partition}).p", pickle.dumps(list(absent), protocol=2))
    write_atomically(folder / f"refs({partition}).p", pickle.dumps(list(refs), protocol=2))
    write_atomically(folder / "instances.json", json.dumps(instances).encode())
    return folder


def picture_name(image_id: int) -> str:
    """COCO's name of the image. A ref's `file_name` is something else: it ends in the annotation's id."""
    return f"COCO_train2014_{image_id:012d}.jpg"


class ImageFolders:
    """Folders to look for images in, in this order, each listed once: thousands of images are looked for.

    Args:
        folders: those that are not there are passed over.
    """

    def __init__(self, folders: Iterable[Path]):
        self._names = {folder: set(os.listdir(folder)) for folder in folders if folder.is_dir()}

    def find(self, image_id: int, file_name: str | None = None) -> Path | None:
        """The image of the first folder that has it, under COCO's name of 2014 or 2017 or `file_name`."""
        names = [picture_name(image_id), f"{image_id:012d}.jpg"]
        if file_name:
            names += dict.fromkeys([file_name, file_name.replace("\\", "/")])
        for folder, there in self._names.items():
            for name in names:
                if name in there or ("/" in name and os.path.isfile(folder / name)):
                    return folder / name
        return None


def first_file(candidates: Iterable[str | Path]) -> Path | None:
    """The first of the paths that is a file, else None."""
    # `Path.is_file` raises where a name is too long
    return next((Path(path) for path in candidates if os.path.isfile(path)), None)


def split_names(refs: Iterable[Record]) -> list[str]:
    """The splits in use: train, val, test, testA, testB, then any others by name."""
    names = {ref["split"] for ref in refs}
    return [name for name in _SPLIT_ORDER if name in names] + sorted(names.difference(_SPLIT_ORDER))


def count_splits(root: str | Path, partition: str | None = None) -> dict[str, dict[str, int]]:
    """For each split the number of `refs`, `images` and `sentences`, from the references alone."""
    folder = annotation_folder(root)
    refs = read_refs(refs_file(folder, choose_partition(folder, partition)))
    counts = {}
    for name in split_names(refs):
        own = [ref for ref in refs if ref["split"] == name]
        counts[name] = {
            "refs": len(own),
            "images": len({ref["image_id"] for ref in own}),
            "sentences": sum(len(ref["sentences"]) for ref in own),
        }
    return counts


def images_by_split(refs: Iterable[Record]) -> dict[str, set[int]]:
    """The ids of the images that the references of each split are about."""
    images: dict[str, set[int]] = defaultdict(set)
    for ref in refs:
        images[ref["split"]].add(ref["image_id"])
    return images


class Leakage(dict[str, dict[tuple[str, str], int]]):
    """Number of images that two splits share, as `leakage["google"]["train", "val"]`; prints as lines."""

    @property
    def leaking(self) -> list[str]:
        """The partitions that have an image in two splits."""
        return [name for name, pairs in self.items() if any(pairs.values())]

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: {first} and {second} share {n or 'no'} image{'' if n == 1 else 's'}"
            for name, pairs in self.items()
            for (first, second), n in pairs.items()
        )


def leakage(root: str | Path, partition: str | None = None) -> Leakage:
    """Images shared by each pair of splits, in one partition or (None) in every partition there."""
    folder = annotation_folder(root)
    names = [choose_partition(folder, partition)] if partition else partitions(folder)
    result = Leakage()
    for name in names:
        refs = read_refs(refs_file(folder, name))
        images, pairs = images_by_split(refs), combinations(split_names(refs), 2)
        result[name] = {(first, second): len(images[first] & images[second]) for first, second in pairs}
    return result
