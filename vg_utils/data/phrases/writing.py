"""`prepare phrases`: a detection data set in, a grounding data set in RefCOCOg's layout out."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from vg_utils.data.examples import DataError
from vg_utils.data.markers import PHRASES, check_begun, write_marker
from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.collages import Collage, make_collage, pair_up
from vg_utils.data.phrases.making import Made, Picture, make
from vg_utils.data.phrases.reading import class_weights, known_weights, read_captions, read_pictures
from vg_utils.data.records import Record
from vg_utils.data.refer_files import read_instances, write_refer
from vg_utils.data.splits import divide
from vg_utils.files import write_atomically
from vg_utils.processes import end_with_parent

VERSION = 2  # raise it whenever the same seed gives other phrases
HELD_OUT = 5  # images of a hundred in val, and as many in test
CHUNK = 64  # images that a process takes at a time
FEW_PICTURES = 500  # are made before processes have started


@dataclass
class Summary:
    """What was made and what was left out.

    Attributes:
        root: the folder.
        images, phrases, absent: numbers by split.
        families: number of phrases by family, absent ones apart.
        left_out: number of objects, proposals and images that were left out, by reason.
    """

    root: Path
    images: Counter = field(default_factory=Counter)
    phrases: Counter = field(default_factory=Counter)
    absent: Counter = field(default_factory=Counter)
    families: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        def table(counts: Counter) -> Iterator[str]:
            yield from (f"  {number:>9,}  {name}" for name, number in counts.most_common())

        splits = ", ".join(f"{n:,} {split}" for split, n in self.images.items())
        lines = [
            f"{self.root}: {self.images.total():,} images ({splits}), {self.phrases.total():,} phrases, "
            f"{self.absent.total():,} that fit nothing",
            "phrases by family:",
            *table(self.families),
            "left out:",
            *table(self.left_out),
        ]
        return "\n".join(lines)


def make_phrases(
    instances: str | Path,
    images: str | Path,
    root: str | Path,
    captions: str | Path | None = None,
    seed: int = 0,
    collages: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Summary:
    """Write a grounding data set made from detections: RefCOCOg's layout with absent phrases.

    All is checked and all phrases are made before anything is written. A run that was cut short starts anew,
    and a folder made with the same arguments is made again in place, file by file.

    Args:
        instances: detections in COCO's layout (`images`, `annotations` with `bbox` x, y, width, height,
            `categories`). An image may say `all_objects_annotated: false`, see `annotated_classes`.
        images: folder of the images, under their `file_name` or COCO's name.
        root: folder for `annotations/` and `images/`; images are linked (hard) where possible, else copied.
        captions: sentences in COCO's layout (`annotations` with `image_id`, `caption`), or None.
        seed: of everything.
        collages: how many images to add to train that show two others of it, see `collages`.
        processes: how many work at once; None takes one a core for many images. The phrases are the same.
            New processes import the script that calls this: it needs `if __name__ == "__main__":`.
        progress: show a bar.

    Raises:
        DataError: damaged or missing files, an image that is missing, does not decode or has another size, a
            folder with other data.
    """
    root, instances_path = Path(root), Path(instances)
    if collages < 0:
        raise DataError(f"collages: expected how many, 0 or more, got {collages}")
    made_with = {
        "instances": instances_path.name,
        "captions": bool(captions),
        "seed": seed,
        "version": VERSION,
    }
    made_with |= {"collages": collages} if collages else {}
    check_begun(root, PHRASES, made_with)
    records = read_instances(instances_path)
    sentences = read_captions(Path(captions)) if captions else {}
    pictures = read_pictures(records, instances_path, Path(images), sentences)

    weights, run = class_weights(pictures), partial(in_processes, processes=processes, progress=progress)
    made = list(run(partial(make_some, seed=seed, weights=weights), pictures, "phrases"))
    names = {picture.image_id: picture.path.name for picture in pictures}
    split_by_name = divide((names[each.image_id] for each in made if each.phrases), HELD_OUT)
    splits = {each.image_id: split_by_name[names[each.image_id]] for each in made if each.phrases}

    train = [k for k, each in enumerate(made) if splits.get(each.image_id) == "train"]
    first_id = max((picture.image_id for picture in pictures), default=0) + 1
    sheets = list(pair_up([pictures[k] for k in train], [made[k] for k in train], collages, seed, first_id))
    of_sheets = list(run(partial(make_some_collages, seed=seed, weights=weights), sheets, "collages"))
    sheets = [sheet for sheet, each in zip(sheets, of_sheets, strict=True) if each.phrases]
    splits |= {sheet.image_id: "train" for sheet in sheets}
    records = with_collages(records, sheets)

    summary = Summary(root)
    out, refs, absent = to_records(records, [*made, *of_sheets], splits, made_with, summary)
    if not refs:
        raise DataError(f"{instances_path}: expected images with objects to speak of, made no phrase")
    write_marker(root / PHRASES, made_with)
    for picture in pictures:
        if picture.image_id in splits:
            place(picture.path, root / "images" / picture.path.name)
    list(run(partial(write_some, folder=root / "images"), sheets, "files of collages"))
    write_refer(root, "umd", out, refs, absent)
    return summary


def make_some(pictures: Sequence[Picture], seed: int, weights: dict[str, float]) -> list[Made]:
    """The work of a process: some images."""
    return [make(picture, seed, known_weights(weights, picture)) for picture in pictures]


def make_some_collages(sheets: Sequence[Collage], seed: int, weights: dict[str, float]) -> list[Made]:
    """The same of collages; absent phrases name no class that one of their data sets does not annotate."""
    return [
        make_collage(sheet, seed, known_weights(known_weights(weights, sheet.parts[0]), sheet.parts[1]))
        for sheet in sheets
    ]


def write_some(sheets: Sequence[Collage], folder: Path) -> list[None]:
    """The files of some collages."""
    return [sheet.write(folder / sheet.file_name) for sheet in sheets]


def in_processes(work, items: Sequence, title: str, processes: int | None, progress: bool) -> Iterator:
    """What `work`, a function of some items, gives of all of them, in order."""
    chunks = [items[k : k + CHUNK] for k in range(0, len(items), CHUNK)]
    if processes is None:
        processes = os.cpu_count() or 1 if len(items) > FEW_PICTURES else 1
    with tqdm(total=len(items), desc=title, unit="img", disable=not progress) as bar:
        if processes <= 1:
            for chunk in map(work, chunks):
                yield from chunk
                bar.update(len(chunk))
            return
        with ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent) as pool:
            for chunk in pool.map(work, chunks):
                yield from chunk
                bar.update(len(chunk))


def with_collages(instances: Record, sheets: Sequence[Collage]) -> Record:
    """The records with the images and the boxes of collages."""
    category_ids = {lexicon.canonical(str(each["name"])): each["id"] for each in instances["categories"]}
    next_id = max((record["id"] for record in instances["annotations"]), default=0) + 1
    images, annotations = list(instances["images"]), list(instances["annotations"])
    for sheet in sheets:
        width, height = sheet.size_wh
        of = [part.image_id for part in sheet.parts]
        images.append(
            {
                "id": sheet.image_id,
                "file_name": sheet.file_name,
                "width": width,
                "height": height,
                "collage_of": of,
            }
        )
        categories = [category for part in sheet.parts for category in part.categories]
        for (x, y, w, h), category in zip(sheet.boxes_xywh, categories, strict=True):
            bbox = [round(value, 2) for value in (x, y, max(w, 1.0), max(h, 1.0))]
            box = {"bbox": bbox, "category_id": category_ids[category]}
            annotations.append({"id": next_id, "image_id": sheet.image_id, "iscrowd": 0, **box})
            next_id += 1
    return {**instances, "images": images, "annotations": annotations}


def to_records(
    instances: Record, made: Sequence[Made], splits: dict[int, str], made_with: dict, summary: Summary
) -> tuple[Record, list[Record], list[Record]]:
    """`instances.json`, references and absent phrases as RefCOCOg's files have them."""
    of_image: dict[int, list[Record]] = defaultdict(list)
    for record in instances["annotations"]:
        of_image[record["image_id"]].append(record)
    refs: list[Record] = []
    absent: list[Record] = []
    sent_id = 0

    def sentence(phrase) -> Record:
        nonlocal sent_id
        sent_id += 1
        # Pickles tell apart equal strings that are different objects, as those of other processes are
        text, family = sys.intern(phrase.text), sys.intern(phrase.family)
        return {
            "tokens": text.split(),
            "raw": text,
            "sent": text,
            "sent_id": sent_id,
            "family": family,
        }

    for each in made:
        summary.left_out.update(each.left_out)
        split = splits.get(each.image_id)
        if split is None:
            summary.left_out["image: nothing to say"] += 1
            continue
        annotations = [r for r in of_image[each.image_id] if r["bbox"][2] >= 1 and r["bbox"][3] >= 1]
        summary.images[split] += 1
        summary.phrases[split] += len(each.phrases)
        summary.absent[split] += len(each.absent)
        summary.families.update(phrase.family for phrase in each.phrases)
        summary.families.update(f"absent: {phrase.family}" for phrase in each.absent)
        for i in sorted({phrase.object for phrase in each.phrases}):
            sentences = [sentence(phrase) for phrase in each.phrases if phrase.object == i]
            refs.append(
                {
                    "ref_id": len(refs) + 1,
                    "ann_id": annotations[i]["id"],
                    "image_id": each.image_id,
                    "category_id": annotations[i]["category_id"],
                    "split": split,
                    "file_name": "",
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "sentences": sentences,
                }
            )
    for each in made:
        if each.image_id in splits:
            whose = {"image_id": each.image_id, "split": splits[each.image_id]}
            absent += [{**whose, **sentence(phrase)} for phrase in each.absent]
    complete = all(record.get("all_objects_annotated", True) for record in instances["images"])
    info = instances.get("info")
    info = {
        **(info if isinstance(info, dict) else {}),
        "generator": "vg_utils.data.phrases",
        "lists_all_objects": complete,
    }
    out = {
        "info": {**info, **made_with},
        "licenses": instances.get("licenses", []),
        "images": [record for record in instances["images"] if record["id"] in splits],
        "annotations": [record for record in instances["annotations"] if record["image_id"] in splits],
        "categories": instances["categories"],
    }
    return out, refs, absent


def place(source: Path, target: Path) -> None:
    """The image in the new folder: another name of the same file where the disk allows it, else a copy."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def link_or_copy(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    write_atomically(target, link_or_copy)
