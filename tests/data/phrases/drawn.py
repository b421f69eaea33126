"""Small detection data sets for the tests of this folder: random boxes, drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from vg_utils.data.phrases.making import Made, Picture, look_at, make

CLASSES = (
    "person",
    "person",
    "person",
    "dog",
    "car",
    "car",
    "tennis racket",
    "horse",
    "chair",
    "umbrella",
    "gizmo",
)
CAPTIONS = (
    "A man holding a tennis racket on a court",
    "A man in a red shirt swinging a tennis racket",
    "A young man riding a horse while a dog watches",
    "The man is wearing a white shirt",
)
COLORS = {"red": (200, 20, 25), "blue": (30, 40, 190), "white": (250, 250, 250), "green": (20, 130, 40)}


def random_picture(seed: int, captions: bool = True) -> Picture:
    """Up to nine boxes of some classes in an image of 320x240, without pixels."""
    random = Random(seed)
    boxes, categories = [], []
    for _ in range(random.randint(1, 9)):
        width, height = random.uniform(10, 160), random.uniform(10, 200)
        boxes.append([random.uniform(0, 320 - width), random.uniform(0, 240 - height), width, height])
        categories.append(random.choice(CLASSES))
    known = frozenset((*CLASSES, "cat", "bus", "tie"))
    return Picture(seed, None, (320, 240), boxes, categories, (), CAPTIONS if captions else (), known)


def made_and_objects(picture: Picture, seed: int = 0) -> tuple[Made, object]:
    """An image's phrases, and its objects looked at anew."""
    weights = dict.fromkeys(sorted(picture.known or ()), 1.0)
    return make(picture, seed, weights), look_at(picture)


def write_set(folder: Path, pictures: int = 6) -> dict[str, Path]:
    """A data set on disk: cars in colours and people, with captions."""
    (folder / "images").mkdir(parents=True)
    random = Random(0)
    instances = {"images": [], "annotations": [], "categories": []}
    names = ("person", "car", "dog", "traffic_light")
    instances["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    captions = []
    for image_id in range(1, pictures + 1):
        image = Image.new("RGB", (200, 150), (110, 120, 118))
        draw = ImageDraw.Draw(image)
        for k, color in enumerate(random.sample(sorted(COLORS), 2)):
            box = [10 + 100 * k, 60, 80, 40]
            draw.rectangle([box[0], box[1], box[0] + box[2], box[1] + box[3]], fill=COLORS[color])
            number = len(instances["annotations"]) + 1
            record = {"id": number, "image_id": image_id, "bbox": box, "category_id": 2, "area": 3200}
            instances["annotations"].append({**record, "iscrowd": 0})
        name = f"street_{image_id:06d}.jpg"
        image.save(folder / "images" / name, quality=95)
        instances["images"].append({"id": image_id, "file_name": name, "width": 200, "height": 150})
        captions.append({"id": image_id, "image_id": image_id, "caption": "Two cars on a street."})
    dog = {"id": 999, "image_id": 1, "bbox": [90, 110, 30, 30], "category_id": 3, "area": 900, "iscrowd": 0}
    instances["annotations"].append(dog)
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))
    return {
        "instances": folder / "instances.json",
        "images": folder / "images",
        "captions": folder / "captions.json",
    }
