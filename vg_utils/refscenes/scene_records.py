"""From the scenes of RefScenes to the records of RefCOCOg's files, and of the file of absent phrases."""

from __future__ import annotations

import sys

from vg_utils.data.refer_files import picture_name
from vg_utils.refscenes.raycast import SHAPES


class Records:
    """Collects `instances.json`, `refs(umd).p` and `absent(umd).p`, as builtins only.

    Words that come back are interned: a pickle writes a string once and then refers to it, so its bytes would
    tell in which process the string was made.
    """

    def __init__(self, info: dict, size: int) -> None:
        self.size = size
        self.refs: list[dict] = []
        self.instances: dict = {
            "info": info,
            "licenses": [{"id": 1, "name": "generated, free to use", "url": ""}],
            "images": [],
            "annotations": [],
            "categories": [{"supercategory": "solid", "id": i, "name": s} for i, s in enumerate(SHAPES, 1)],
        }
        self.sentences = 0
        self._absent: list[tuple[dict, dict]] = []  # what an absent phrase needs besides its sentence

    def add(self, first_id: int, scenes: list[dict]) -> None:
        """Add the scenes, whose images have the ids from `first_id` on."""
        for image_id, scene in enumerate(scenes, first_id):
            split = sys.intern(scene["split"])
            picture = {
                "id": image_id,
                "file_name": picture_name(image_id),
                "width": self.size,
                "height": self.size,
            }
            self.instances["images"].append({**picture, "license": 1})
            annotations = self.instances["annotations"]
            first_annotation = len(annotations) + 1
            for number, thing in enumerate(scene["objects"], first_annotation):
                annotations.append(
                    {
                        "id": number,
                        "image_id": image_id,
                        "category_id": SHAPES.index(thing["shape"]) + 1,
                        "bbox": thing["box_xywh"],
                        "area": thing["area"],
                        "iscrowd": 0,
                        "segmentation": [],
                        **{key: thing[key] for key in ("color", "material", "size")},
                    }
                )
            for ref in scene["refs"]:
                annotation = annotations[first_annotation - 1 + ref["object"]]
                sentences = [self.sentence(sentence) for sentence in ref["sentences"]]
                self.refs.append(
                    {
                        "ref_id": len(self.refs) + 1,
                        "ann_id": annotation["id"],
                        "image_id": image_id,
                        "category_id": annotation["category_id"],
                        "split": split,
                        "file_name": picture_name(image_id)[:-4] + f"_{annotation['id']}.jpg",
                        "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        "sentences": sentences,
                    }
                )

            whose = {"image_id": image_id, "split": split}
            self._absent += [(whose, written) for written in scene["absent"]]

    def absent(self) -> list[dict]:
        """The phrases that fit nothing; call it last, because their ids come after those of all others."""
        return [{**whose, **self.sentence(written)} for whose, written in self._absent]

    def sentence(self, written: dict) -> dict:
        """One sentence in RefCOCOg's form, with its family."""
        self.sentences += 1
        text = written["text"]
        return {
            "tokens": text.split(),
            "raw": text,
            "sent": text,
            "sent_id": self.sentences,
            "family": sys.intern(written["family"]),
        }
