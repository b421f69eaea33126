"""From JPEG files to batches: images/s of the loader, against decoding and resizing once per expression.

    python -m vg_utils benchmark decoding [--data DIR]

An image counts when it is in a batch with all of its expressions, tokenised. The baseline does what most
published code does: an item is an expression, and its image is decoded in full and resized for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks._timing import Comparison, Report, finish, in_turns, options, require_equal
from benchmarks._work import one_by_one, photographs
from vg_utils.data import load_examples
from vg_utils.data.batches import GroundingDataset, make_loader
from vg_utils.data.examples import GroundingExample
from vg_utils.data.images import load_image
from vg_utils.data.transforms import EvalTransform, TrainTransform, View
from vg_utils.models.clip import ClipTokenizer, tokenize

SIZE = 224
BATCH_IMAGES = 16
BASELINE = "once per expression, full decode, v2.Resize"


class OncePerExpression(Dataset):
    """The baseline: item i is expression i, with its image decoded in full and squashed to a square."""

    def __init__(self, examples: Sequence[GroundingExample]) -> None:
        self.examples = one_by_one(examples)
        self.resize = v2.Compose([v2.PILToTensor(), v2.Resize((SIZE, SIZE), antialias=True)])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """uint8 (3, S, S), tokens (77,), the box in [0, 1] (4,), and the id of the sentence."""
        example = self.examples[index]
        expression = example.expressions[0]
        box = torch.tensor(expression.box_xyxy) / torch.tensor(example.size_wh * 2)
        image = self.resize(load_image(example.image))
        return image, tokenize([expression.text])[0], box, expression.sent_id


class FullDecode(EvalTransform):
    """The same letterbox of an image that was decoded in full."""

    def __call__(self, image, boxes_xyxy=None, texts=(), generator=None) -> View:
        return super().__call__(load_image(image), boxes_xyxy, texts, generator)


def measure(examples: Sequence[GroundingExample], workers: Sequence[int], rounds: int) -> Report:
    """Time an epoch of the examples through each loader."""
    transforms = {
        "once per image, full decode": FullDecode(SIZE),
        "once per image, reduced-scale decode": EvalTransform(SIZE),
        "once per image, reduced-scale decode, augmented": TrainTransform(SIZE),
    }
    sent_ids = [e.sent_id for example in examples for e in example.expressions]
    batch_pairs = max(1, BATCH_IMAGES * len(sent_ids) // len(examples))
    comparisons = []
    for count in workers:
        persist = {"num_workers": count, "persistent_workers": count > 0}
        loaders = {BASELINE: DataLoader(OncePerExpression(examples), batch_pairs, **persist)}
        for name, transform in transforms.items():
            dataset = GroundingDataset(examples, transform)
            loaders[name] = make_loader(dataset, ClipTokenizer(), BATCH_IMAGES, shuffle=False, workers=count)
        for name, loader in loaders.items():
            require_equal(name, sent_ids, sentences(loader))
        seconds = in_turns({n: lambda loader=loader: list(loader) for n, loader in loaders.items()}, rounds)
        title = f"decoding and batching, {count or 'no'} workers"
        comparisons.append(Comparison(title, BASELINE, seconds, len(examples), "images/s"))
    full, reduced = (t(examples[0].image).image.float() for t in list(transforms.values())[:2])
    checks = {"images": len(examples), "expressions of each variant": len(sent_ids)}
    grey = (full - reduced).abs().mean().item()
    return Report("decoding", comparisons, checks | {"mean grey levels, full to reduced decode": grey})


def sentences(loader: DataLoader) -> list[int]:
    """Ids of the sentences in the order that a loader gives them."""
    return [int(i) for batch in loader for i in (batch[3] if isinstance(batch, list) else batch.sent_ids)]


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("decoding", "Images/s of decoding and batching, against once per expression.")
    parser.add_argument("--data", help="measure on the `train` split of this data set (default: made here)")
    given = parser.parse_args(arguments)
    workers, rounds = ([0], 1) if given.tiny else ([0, 2], 3)
    with tempfile.TemporaryDirectory() as folder:
        if given.data:
            examples = load_examples(given.data, "train")
        else:
            examples = photographs(Path(folder), 4 if given.tiny else 24)
        return finish(measure(examples, workers, given.rounds or rounds), given.json)


if __name__ == "__main__":
    main()
