"""Ground phrases with onnxruntime alone: no torch, no vg_utils.

    python -m vg_utils export photos/dense-grounder --onnx exported
    pip install numpy pillow onnxruntime tokenizers
    python examples/ground_onnx.py exported IMAGE PHRASE [PHRASE ...]

For the model for photographs, whose tokenizer is written beside it. One thing is the package's alone: there,
a word that means nothing to the model lowers the presence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


class Grounder:
    """The two files in a folder, ready to be asked."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "model.json").read_text())
        self.size, self.padding = about["image_size"], tuple(about["padding_rgb"])
        self.encoder = onnxruntime.InferenceSession(folder / "image.onnx")
        self.head = onnxruntime.InferenceSession(folder / "phrases.onnx")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ground(self, image: Image.Image, phrases: list[str]) -> list[dict]:
        """Of each phrase its box, corners in pixels of the image, and the numbers that come with it."""
        # The letterbox: the whole image in the middle of a square
        image = image.convert("RGB")
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        left, top = (self.size - width) // 2, (self.size - height) // 2
        square = Image.new("RGB", (self.size, self.size), self.padding)
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))

        # Once an image
        features = self.encoder.run(None, {"image": np.asarray(square).transpose(2, 0, 1)[None]})

        # Once for all phrases
        tokens = np.array([e.ids for e in self.tokenizer.encode_batch(phrases)], dtype=np.int64)
        names = [one.name for one in self.head.get_inputs()]
        outputs = self.head.run(None, dict(zip(names, [*features, tokens], strict=True)))
        found = dict(zip([one.name for one in self.head.get_outputs()], outputs, strict=True))

        # Centre and size in the square to corners in the image
        centre, size = found["boxes_cxcywh"][:, :2], found["boxes_cxcywh"][:, 2:]
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * self.size
        drawn = np.array([width / image.width, height / image.height] * 2)
        boxes = (corners - [left, top, left, top]) / drawn
        boxes = boxes.clip(0, [*image.size, *image.size])
        numbers = {name: found[name] for name in ("score", "presence") if name in found}
        return [
            {"phrase": phrase, "box_xyxy": [round(float(v), 2) for v in boxes[i]]}
            | {name: round(float(values[i]), 4) for name, values in numbers.items()}
            for i, phrase in enumerate(phrases)
        ]


if __name__ == "__main__":
    folder, path, *asked = sys.argv[1:]
    print(json.dumps(Grounder(Path(folder)).ground(Image.open(path), asked), indent=2))
