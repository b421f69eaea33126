"""A small data set in RefCOCOg's own layout, and where the real ones lie, for the tests of this folder."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vg_utils.data.refer_files import picture_name

# The real files stand beside the repository, not in it; VG_SHARED says where if they are somewhere else.
SHARED = Path(os.environ.get("VG_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
PHOTOS = SHARED / "refcocog_photos"
ANNOTATIONS = SHARED / "refcocog_annotations"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no real photographs at {PHOTOS}")
needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason=f"no real annotations at {ANNOTATIONS}"
)


def sentence(sent_id: int, text: str, **more) -> dict:
    return {"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split(), **more}


def ref(ref_id: int, ann_id: int, image_id: int, split: str, sentences: list[dict]) -> dict:
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [s["sent_id"] for s in sentences],
        "sentences": sentences,
    }


def annotation(ann_id: int, image_id: int, bbox_xywh: list[float], category_id: int = 1) -> dict:
    return {"id": ann_id, "image_id": image_id, "bbox": bbox_xywh, "category_id": category_id}


def small_set() -> tuple[dict, list[dict]]:
    """Three images of 64x48 and four references; image 7 has an object that nobody refers to."""
    instances = {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "width": 64, "height": 48, "file_name": picture_name(i)} for i in (9, 7, 8)],
        "annotations": [
            annotation(70, 7, [1.5, 2.0, 10.0, 20.0]),
            annotation(71, 7, [30.0, 5.0, 20.0, 30.0]),
            annotation(72, 7, [40.0, 5.0, 10.0, 10.0], category_id=3),
            annotation(80, 8, [0.0, 0.0, 64.4, 48.0], category_id=3),  # hangs over by less than a pixel
            annotation(90, 9, [5.0, 5.0, 5.0, 5.0]),
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }
    refs = [
        ref(3, 90, 9, "val", [sentence(5, "the one")]),
        ref(0, 70, 7, "train", [sentence(0, " The man  on the LEFT"), sentence(1, "the man on the left")]),
        ref(1, 72, 7, "train", [sentence(2, "a car", family="name")]),
        ref(2, 80, 8, "test", [sentence(3, "a car"), sentence(4, "a cár")]),
    ]
    return instances, refs


def write_set(
    root: Path, instances: dict, refs: list[dict], partition: str = "umd", images: str = "images"
) -> Path:
    """Write the set with its images, by hand rather than with the project's own writer."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances.json").write_text(json.dumps(instances))
    (root / "annotations" / f"refs({partition}).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / images).mkdir(exist_ok=True)
    for record in instances["images"]:
        write_picture(root / images / record["file_name"], (record["width"], record["height"]), record["id"])
    return root


def write_picture(path: Path, size_wh: tuple[int, int], seed: int = 0) -> None:
    """An image of coloured noise, so that its file is not tiny and a truncated one does not decode."""
    width, height = size_wh
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


# Values that stand where others are meant
HOSTILE = [None, True, [1], {"a": 1}, "x" * 5000, 10**400, -(10**400), float("nan"), float("inf"), 2**64]
HOSTILE += ["\ud800", nested(300), 7.5, [10**400] * 4, [1.0, 2.0, True, 4.0], [["a"] * 2000], {}]
