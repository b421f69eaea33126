"""Training pairs/s with an image encoded once for all its expressions, against once for each of them.

    python -m vg_utils benchmark grouping [--full]

Same model, same pairs in a step, same precision; a step is forward, losses, backward and optimizer. The
default is the size of the `scenes` preset; `--full` is RN50 and HRNet-W18 at 224. `clip-rpn-attention` is
also compared with how the ClipRPN project trained: each image of 640 x 640 is a tensor that is turned to a
PIL image, preprocessed and put through CLIP's trunk once per phrase, one by one. Only that differs: phrases
are encoded in one batch, and head, losses and precision are ours in every variant, not the project's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from torchvision.transforms.v2 import functional as F

from benchmarks._timing import Comparison, Report, device, finish, in_turns, options, require_equal
from benchmarks._work import enliven, largest_difference, one_by_one, photographs, untrained
from vg_utils.config import Config
from vg_utils.data.batches import Batch, GroundingDataset, collate
from vg_utils.data.examples import GroundingExample
from vg_utils.data.images import load_image
from vg_utils.data.transforms import EvalTransform
from vg_utils.models import build_model
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.clip import ClipTokenizer
from vg_utils.models.precision import autocast
from vg_utils.training.optim import make_optimizer

PROJECT_SIDE = 640  # pixels of the ClipRPN project's images
GROUPED, EACH = "one image for all its expressions", "one image per expression"
PROJECTS_WAY, READY = (
    "the ClipRPN project's way: one by one, through PIL",
    "the same, resized beforehand (by workers)",
)


def batch_of(examples: Sequence[GroundingExample], size: int) -> Batch:
    """All examples as one batch, decoded and resized here and now."""
    dataset = GroundingDataset(examples, EvalTransform(size))
    return collate([dataset[number] for number in range(len(dataset))], ClipTokenizer())


def compare_grouping(
    title: str, config: Config, examples: Sequence[GroundingExample], rounds: int
) -> tuple[Comparison, dict[str, float]]:
    """Steps on batches that are on the device already: grouped, and with an image for each expression."""
    model, step = trainer(config, examples)
    size = config.model.image_size
    grouped = batch_of(examples, size).to(device())
    each = batch_of(one_by_one(examples), size).to(device())
    require_equal(title, grouped.sent_ids, each.sent_ids)
    check = same_boxes(title, predict(model, each), predict(model, grouped))
    seconds = in_turns({EACH: lambda: step(each), GROUPED: lambda: step(grouped)}, rounds)
    comparison = Comparison(title, EACH, seconds, len(grouped.image_index), "pairs/s")
    return comparison, check


def compare_with_seed(
    title: str, config: Config, examples: Sequence[GroundingExample], rounds: int
) -> tuple[Comparison, dict[str, float]]:
    """Steps from images of 640 x 640: the ClipRPN project's way, one per expression, and grouped."""
    model, step = trainer(config, examples)
    size = config.model.image_size
    examples = [in_memory(example) for example in examples]
    pairs = one_by_one(examples)
    batch = batch_of(examples, size)
    pictures = [F.pil_to_tensor(example.image) for example in pairs]  # (3, 640, 640) each
    index = torch.arange(len(pairs), device=device())
    ready = batch.to(device())

    def as_the_seed() -> Batch:
        return replace(ready, images={"map": encode_as_the_seed(model, pictures, size)}, image_index=index)

    check = same_boxes(title, predict(model, as_the_seed()), predict(model, ready))
    seconds = in_turns(
        {
            PROJECTS_WAY: lambda: step(as_the_seed()),
            EACH: lambda: step(batch_of(pairs, size).to(device())),
            GROUPED: lambda: step(batch_of(examples, size).to(device())),
            READY: lambda: step(ready),
        },
        rounds,
    )
    comparison = Comparison(title, PROJECTS_WAY, seconds, len(pairs), "pairs/s")
    return comparison, check


def encode_as_the_seed(model: GroundingModel, pictures: Sequence[Tensor], size: int) -> Tensor:
    """CLIP's maps (N, C, h, w) of N images (3, 640, 640), which repeat: an image for each phrase."""
    preprocess = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), ToTensor()])
    maps = []
    for picture in pictures:
        image = preprocess(F.to_pil_image(picture))[None].to(device())  # the model normalises
        with torch.no_grad(), autocast(device()):  # frozen
            maps.append(model.encode_images(image)["map"])
    return torch.cat(maps)


def trainer(
    config: Config, examples: Sequence[GroundingExample]
) -> tuple[GroundingModel, Callable[[Batch], None]]:
    """A model in training and its step, as `training.engine` does it without accumulation and clipping."""
    torch.manual_seed(0)
    model = build_model(config.model.name, config.model).to(device())
    enliven(model, examples, config.model.image_size)
    model.train()
    if device().type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.train)

    def step(batch: Batch) -> None:
        outputs = forward(model, batch)
        losses = model.losses(outputs, batch.target_boxes_cxcywh)
        sum(weight * losses[name] for name, weight in model.loss_weights.items()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def forward(model: GroundingModel, batch: Batch) -> Features:
    """The model's outputs as float32; a batch may hold image features in place of images."""
    with autocast(device()):
        images = batch.images if isinstance(batch.images, dict) else model.encode_images(batch.images)
        if device().type == "cpu":  # torch's GroupNorm crashes in the backward of a channels-last map there
            images = {name: value.contiguous() for name, value in images.items()}
        outputs = model(images, model.encode_texts(batch.tokens), batch.image_index)
    return {name: value.float() for name, value in outputs.items()}


def predict(model: GroundingModel, batch: Batch) -> Tensor:
    """The boxes_cxcywh (N, 4) that the model gives in evaluation; it goes on in training."""
    model.eval()
    with torch.no_grad():
        boxes = forward(model, batch)["boxes_cxcywh"]
    model.train()
    return boxes


def same_boxes(title: str, one: Tensor, other: Tensor) -> dict[str, float]:
    """How far apart the variants' boxes (N, 4) are, beside how far apart those of different phrases are."""
    return {
        f"{title}: between the variants' boxes": largest_difference(one, other),
        f"{title}: between boxes": largest_difference(one[:1].expand_as(one), one),
    }


def in_memory(example: GroundingExample) -> GroundingExample:
    """The example with its image decoded and squashed to the project's square; the boxes follow."""
    scale_x, scale_y = (PROJECT_SIDE / side for side in example.size_wh)
    factors = (scale_x, scale_y, scale_x, scale_y)
    expressions = [
        e._replace(box_xyxy=tuple(v * f for v, f in zip(e.box_xyxy, factors, strict=True)))
        for e in example.expressions
    ]
    image = load_image(example.image).resize((PROJECT_SIDE, PROJECT_SIDE), Image.Resampling.BICUBIC)
    return replace(
        example,
        image=image,
        size_wh=image.size,
        expressions=expressions,
        object_boxes_xyxy=(),
        object_categories=(),
    )


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("grouping", "Training pairs/s, image-grouped against an image for each expression.")
    parser.add_argument("--full", action="store_true", help="RN50 and HRNet-W18 at 224, as on RefCOCOg")
    parser.add_argument("--images", type=int, help="in a step (default: 12, with --full 3, on a GPU 64)")
    given = parser.parse_args(arguments)
    images = given.images or (64 if device().type == "cuda" else 3 if given.full else 12)
    images, rounds = (3, 1) if given.tiny else (images, 3)
    rounds = given.rounds or rounds
    size = "full size" if given.full else "scenes size"
    with tempfile.TemporaryDirectory() as folder:
        examples = photographs(Path(folder), images)
        comparisons, checks = [], {"images": images, "pairs in a step of each": len(one_by_one(examples))}
        for tuning, words in (("frozen", "backbones frozen"), ("full", "backbones trained")):
            config = untrained("clip-hrnet", given.full, tuning)
            comparison, check = compare_grouping(f"clip-hrnet, {size}, {words}", config, examples, rounds)
            comparisons, checks = [*comparisons, comparison], checks | check
        config = untrained("clip-rpn-attention", given.full)
        title = f"clip-rpn-attention, {size}, CLIP frozen"
        comparison, check = compare_with_seed(title, config, examples, rounds)
        comparisons, checks = [*comparisons, comparison], checks | check
    return finish(Report("grouping", comparisons, checks), given.json)


if __name__ == "__main__":
    main()
