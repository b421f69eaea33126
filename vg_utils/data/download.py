"""Download RefCOCOg, RefCOCO or RefCOCO+: the annotations, then only the images they need.

It can be stopped at any moment and run again: images that are there and whole are not fetched twice. Beside
`annotations/` and `images/` it keeps `manifest.json` (length, size and checksum of every image) and, if
images could not be had, `failed.json` (why).
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from vg_utils.data.examples import DataError
from vg_utils.data.fetch import Entry, Fetcher, Picture, fetch_all, remove_temporary, verify
from vg_utils.data.markers import check_root
from vg_utils.data.records import WHOLE, checked, first_bytes, read_json
from vg_utils.data.refer_files import (
    IMAGE_FOLDERS,
    annotation_folder,
    first_file,
    partitions,
    picture_name,
    read_instances,
    read_refs,
    refs_file,
)
from vg_utils.files import check_room, write_atomically

COCO_TRAIN2014 = "http://images.cocodataset.org/train2014"
SOURCES = {  # dataset: its name on the hub, and the partition its rows belong to
    "refcocog": ("jxu124/refcocog", "umd"),
    "refcoco": ("jxu124/refcoco", "unc"),
    "refcoco+": ("jxu124/refcocoplus", "unc"),
}
MANIFEST = "manifest.json"
IMAGE_WITH_SIZE = {"id": WHOLE, "width": WHOLE, "height": WHOLE}
LEAST_BYTES = 80_000  # an image, half of what COCO's have on average: less room is too little for sure
_SAVE_EVERY = 500  # images between two writings of the manifest


class DownloadError(RuntimeError):
    """Not one image could be had."""


@dataclass(frozen=True)
class DownloadSummary:
    """What a download came to.

    Attributes:
        root: the folder.
        wanted: images that the annotations (or the limit) ask for.
        already: images that were there before.
        fetched: images that came now, `fetched_bytes` in all.
        failed: name and reason of those that could not be had.
        seconds: time it took.
    """

    root: Path
    wanted: int
    already: int
    fetched: int
    fetched_bytes: int
    failed: dict[str, str]
    seconds: float

    def __str__(self) -> str:
        text = (
            f"{self.root}: {self.already + self.fetched} of {self.wanted} images, {self.fetched} of them "
            f"new ({self.fetched_bytes / 1e6:.1f} MB in {self.seconds:.0f} s)"
        )
        if self.failed:
            name, reason = next(iter(self.failed.items()))
            text += f"; {len(self.failed)} failed, listed in failed.json (first: {name}: {reason})"
        return text


def prepare_refcocog(
    root: str | Path,
    dataset: str = "refcocog",
    *,
    base_url: str = COCO_TRAIN2014,
    source: str | Path | None = None,
    workers: int = 16,
    retries: int = 5,
    timeout_s: float = 20.0,
    backoff_s: float = 0.5,
    progress: bool = True,
    limit: int | None = None,
) -> DownloadSummary:
    """Make `root` a folder that `load_examples` reads; run it again to resume or to repair.

    Args:
        root: gets `annotations/`, `images/`, `manifest.json`. Annotations that lie there already are used as
            they are, and so are whole images in `images/`, `train2014/` or the folder itself.
        dataset: `refcocog`, `refcoco` or `refcoco+`.
        base_url: where the images of COCO train2014 are, without the last slash.
        source: another name on the hub, or a folder of parquet files, for the annotations.
        workers: images fetched at the same time.
        retries, timeout_s, backoff_s: see `fetch.Fetcher`; the latter two in seconds.
        progress: show a bar.
        limit: only the first so many images by image id, for a try.

    Raises:
        DataError: an unknown data set, a folder with other data, or annotations that cannot be had or read.
        OSError: the folder cannot be written to, or its disk has too little room.
        DownloadError: no image could be had. If only some fail, they are in the summary and `failed.json`.
    """
    start = time.monotonic()
    root = Path(root)
    if dataset not in SOURCES:
        raise DataError(f"expected the data set {', '.join(SOURCES)}, got {dataset!r}")
    if workers < 1:
        raise DataError(f"workers: expected 1 or more, got {workers}")
    check_root(root)
    pictures = _pictures(_annotations(root, dataset, source))[:limit]
    _mark(root)
    folder = root / IMAGE_FOLDERS[0]
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)

    manifest = _read_manifest(root / MANIFEST)
    already = _already_here(root, pictures, manifest, workers, progress)
    missing = [picture for picture in pictures if picture.name not in already]
    check_room(folder, LEAST_BYTES * len(missing))
    for picture in missing:
        manifest.pop(picture.name, None)
    manifest |= already
    fetcher = Fetcher(base_url, retries, timeout_s, backoff_s)
    failed = _fetch_missing(fetcher, missing, root, manifest, workers, progress)
    _save_failed(root / "failed.json", failed)

    if failed and len(failed) == len(pictures):
        raise DownloadError(_nothing_came(base_url, root, failed))
    new = [manifest[picture.name] for picture in missing if picture.name in manifest]
    return DownloadSummary(
        root=root,
        wanted=len(pictures),
        already=len(already),
        fetched=len(new),
        fetched_bytes=sum(entry["bytes"] for entry in new),
        failed=failed,
        seconds=time.monotonic() - start,
    )


def is_download(root: str | Path) -> bool:
    """Whether a folder is one that `prepare_refcocog` began, and not somebody's own.

    Annotations written from the hub say so themselves: earlier versions had no manifest before the images.
    """
    instances = Path(root) / "annotations" / "instances.json"
    head = first_bytes(instances, 300) if instances.is_file() else b""
    return b": referred objects only" in head or (Path(root) / MANIFEST).is_file()


def _mark(root: Path) -> None:
    """Make sure of the manifest, by which `is_download` knows the folder from the first moment on."""
    if not (root / MANIFEST).exists():
        _save_json(root / MANIFEST, {})


def _annotations(root: Path, dataset: str, source: str | Path | None) -> Path:
    """The folder of the annotations, written from the hub if none are there."""
    hub_name, partition = SOURCES[dataset]
    try:
        folder = annotation_folder(root)
    except DataError:
        from vg_utils.data.hub import hub_to_refer  # late: it takes seconds, in vain when resuming

        _mark(root)
        return hub_to_refer(source or hub_name, root, partition)
    if not partitions(folder):  # somebody's instances.json: not to be overwritten
        raise DataError(f"{folder}: expected refs({partition}).p beside instances.json, found none")
    return folder


def _pictures(folder: Path) -> list[Picture]:
    """The images that any partition refers to, by image id."""
    path = folder / "instances.json"
    images = checked(read_instances(path)["images"], IMAGE_WITH_SIZE, f"{path}, images")
    sizes = {r["id"]: (r["width"], r["height"]) for r in images}
    wanted = {ref["image_id"] for name in partitions(folder) for ref in read_refs(refs_file(folder, name))}
    unknown = sorted(wanted - sizes.keys())
    if unknown:
        raise DataError(f"{folder}: instances.json has no record of image {unknown[0]} ({len(unknown)} such)")
    return [Picture(picture_name(image_id), sizes[image_id]) for image_id in sorted(wanted)]


def _already_here(
    root: Path, pictures: list[Picture], manifest: dict[str, Entry], workers: int, progress: bool
) -> dict[str, Entry]:
    """The entries of the images that are here and whole."""
    folders = [root / name for name in IMAGE_FOLDERS]

    def entry_of(picture: Picture) -> Entry | None:
        path = first_file(folder / picture.name for folder in folders)
        return path and verify(path, picture, manifest.get(picture.name))

    with ThreadPoolExecutor(workers) as pool:
        entries = pool.map(entry_of, pictures)
        bar = tqdm(entries, "checking", len(pictures), unit=" images", disable=not progress)
        return {picture.name: entry for picture, entry in zip(pictures, bar, strict=True) if entry}


def _fetch_missing(
    fetcher: Fetcher,
    missing: list[Picture],
    root: Path,
    manifest: dict[str, Entry],
    workers: int,
    progress: bool,
) -> dict[str, str]:
    """Fetch the images, add them to the manifest on disk as they come, and return the failures by name."""
    failed = {}
    done = fetch_all(fetcher, missing, root / IMAGE_FOLDERS[0], workers)
    try:
        with tqdm(done, "fetching", len(missing), unit=" images", disable=not progress or not missing) as bar:
            for number, (picture, entry, reason) in enumerate(bar, start=1):
                if entry:
                    manifest[picture.name] = entry
                else:
                    failed[picture.name] = reason
                if number % _SAVE_EVERY == 0:
                    _save_json(root / MANIFEST, manifest)
    finally:  # also when interrupted: what is in the manifest need not be decoded again
        _save_json(root / MANIFEST, manifest)
    return failed


def _read_manifest(path: Path) -> dict[str, Entry]:
    """The manifest of an earlier run; an unreadable one only means that every image is decoded again."""
    try:
        content = read_json(path, "a manifest")
    except DataError:
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    keys = {"bytes", "width", "height", "sha256"}
    return {name: entry for name, entry in entries if isinstance(entry, dict) and keys <= entry.keys()}


def _save_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(dict(sorted(content.items())), indent=0) + "\n").encode())


def _save_failed(path: Path, failed: dict[str, str]) -> None:
    if failed:
        _save_json(path, failed)
    else:
        path.unlink(missing_ok=True)


def _nothing_came(base_url: str, root: Path, failed: dict[str, str]) -> str:
    name, reason = next(iter(failed.items()))
    return (
        f"none of {len(failed)} images could be had from {base_url}; the first, {name}: {reason}\n"
        "Ways out: check the connection and run again; name another place of COCO's train2014 images as "
        f"the base URL; unpack train2014.zip into {root / 'train2014'}; or use RefScenes, which needs no "
        "download (python -m vg_utils prepare scenes)"
    )
