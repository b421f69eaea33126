"""The files of RefCOCO, RefCOCO+ and RefCOCOg: finding, reading and writing them, without interpreting them.

`refer.py` says what the files mean. Here is also what can be told from the references alone: how large the
splits are (`count_splits`) and whether they share images (`leakage`).
"""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO

from vg_utils.data.examples import DataError
from vg_utils.files import write_atomically

DEFAULT_PARTITION = "umd"
IMAGE_FOLDERS = ("images", "train2014", ".")
_SPLIT_ORDER = ("train", "val", "test", "testA", "testB")

Record = dict[str, Any]


def annotation_folder(root: str | Path) -> Path:
    """The folder of `instances.json`: `root/annotations` or `root`. Raises DataError if it is in neither."""
    candidates = [Path(root) / "annotations", Path(root)]
    for folder in candidates:
        if (folder / "instances.json").is_file():
            return folder
    raise DataError(f"{root}: expected instances.json in " + " or ".join(map(str, candidates)))


def partitions(folder: Path) -> list[str]:
    """Names of the partitions whose `refs(NAME).p` lie in the folder, sorted."""
    return sorted(path.name[len("refs(") : -len(").p")] for path in folder.glob("refs(*).p"))


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
    try:
        instances = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected COCO's annotations as JSON, got: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(instances, dict) or not isinstance(instances.get(key), list):
            raise DataError(f"{path}: expected an object with a list under {key!r}")
    return instances


def read_refs(path: Path) -> list[Record]:
    """`refs(PARTITION).p`, a pickled list of dicts, read without running any code that it might hold.

    Raises:
        DataError: the file is missing or damaged, names a global, or is not a list of references.
    """
    refs = _read_pickled(path, "references")
    for position, ref in enumerate(refs):
        _check_ref(ref, f"{path}, entry {position}")
    return refs


def read_absent(path: Path) -> list[Record]:
    """`absent(PARTITION).p`, phrases that fit nothing in their image; an empty list if there is no file.

    Only RefScenes has such a file. It is read as `read_refs` reads its own.

    Raises:
        DataError: the file is damaged, names a global, or is not a list of such phrases.
    """
    if not path.is_file():
        return []
    phrases = _read_pickled(path, "absent phrases")
    for position, phrase in enumerate(phrases):
        where = f"{path}, entry {position}"
        require_keys(phrase, ("image_id", "split", "sent_id", "sent"), where)
        if not all(isinstance(phrase[key], int) for key in ("image_id", "sent_id")):
            raise DataError(f"{where}: expected whole numbers as image_id, sent_id, got {phrase}")
    return phrases


def _read_pickled(path: Path, what: str) -> list:
    """A pickled list of plain data; `what` names its content in error messages."""
    try:
        with path.open("rb") as file:
            found = _PlainUnpickler(file, path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: expected a pickled list of {what}, got: {error!r}") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a pickled list of {what}, got {type(found).__name__}")
    return found


def _check_ref(ref: Any, where: str) -> None:
    ids = ("ref_id", "ann_id", "image_id")
    require_keys(ref, (*ids, "split", "sentences"), where)
    if not all(isinstance(ref[key], int) for key in ids) or not isinstance(ref["sentences"], list):
        raise DataError(
            f"{where}: expected whole numbers as {', '.join(ids)} and a list of sentences, got {ref}"
        )


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists and dicts only: whatever else a pickle asks for is refused."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="utf-8")  # the original files were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the global {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the persistent id {pid!r}")


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


def find_picture(folders: Iterable[Path], image_id: int, file_name: str | None = None) -> Path | None:
    """The image under COCO's name in the first folder that has it, else under `file_name`, else None."""
    names = [picture_name(image_id)] + ([file_name] if file_name else [])
    return first_file(folder / name for folder in folders for name in names)


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first of the paths that is a file, else None."""
    return next((path for path in candidates if path.is_file()), None)


def require_keys(record: Any, keys: Iterable[str], where: str) -> None:
    """Raise a DataError unless the record is a dict with these keys."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a dict, got {type(record).__name__}")
    missing = [key for key in keys if key not in record]
    if missing:
        raise DataError(
            f"{where}: expected the keys {', '.join(missing)}, got only {', '.join(map(str, record))}"
        )


def split_names(refs: Iterable[Record]) -> list[str]:
    """The splits in use: train, val, test, testA, testB, then any others by name."""
    names = {ref["split"] for ref in refs}
    return [name for name in _SPLIT_ORDER if name in names] + sorted(names.difference(_SPLIT_ORDER))


def count_splits(root: str | Path, partition: str | None = None) -> dict[str, dict[str, int]]:
    """For each split the number of `refs`, `images` and `sentences`, from the references alone."""
    folder = annotation_folder(root)
    refs = read_refs(folder / f"refs({choose_partition(folder, partition)}).p")
    counts = {}
    for name in split_names(refs):
        own = [ref for ref in refs if ref["split"] == name]
        counts[name] = {
            "refs": len(own),
            "images": len({ref["image_id"] for ref in own}),
            "sentences": sum(len(ref["sentences"]) for ref in own),
        }
    return counts


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
        refs = read_refs(folder / f"refs({name}).p")
        images: dict[str, set[int]] = defaultdict(set)
        for ref in refs:
            images[ref["split"]].add(ref["image_id"])
        pairs = combinations(split_names(refs), 2)
        result[name] = {(first, second): len(images[first] & images[second]) for first, second in pairs}
    return result
