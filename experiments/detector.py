"""Train the detector that gives `detector-clip` its proposals on RefScenes, from nothing, on one GPU.

    python -m experiments.detector --data data/refscenes --out runs/detector.pt

The weights go where any local weights go:

    python -m vg_utils evaluate detector-clip --data data/refscenes --split test \\
        --model.detector-clip.detector fasterrcnn_mobilenet_v3_large_320_fpn \\
        --model.detector-clip.weights runs/detector.pt --model.detector-clip.num-classes 5

Why this architecture: of torchvision's detectors it is the one that is small, has two stages (the second only
has to sort crops of shared features, and learns that in few steps) and is built for small images; the
others are loaded to look at 800 pixels. It is built here without public weights, and torchvision then gives
it BatchNorm that learns: the frozen one of its public weights would keep the statistics of nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import get_model
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor

from vg_utils.config import DetectorClipConfig
from vg_utils.data import DataError, GroundingExample, load_examples, load_image
from vg_utils.files import write_atomically
from vg_utils.models.detectors import select_proposals
from vg_utils.models.precision import best_precision
from vg_utils.refscenes.raycast import SHAPES

ARCHITECTURE = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = 1 + len(SHAPES)  # background is 0, SHAPES[i] is i + 1
# Images hold a handful of solids: fewer regions than torchvision's 2,000 and 512 an image train faster.
FEW_REGIONS = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 150,
    "rpn_batch_size_per_image": 128,
    "box_batch_size_per_image": 64,
}
LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 1e-3, 0.01, 10.0
FOUND_IOU = 0.5
SETTINGS = DetectorClipConfig()  # its thresholds decide what is a proposal


@dataclass
class Annotated:
    """Decoded images and their objects, on one device.

    Attributes:
        images: uint8 (M, 3, S, S).
        boxes_xyxy: float32 (n, 4) in pixels, of each image.
        labels: int64 (n,) in [1, CLASSES), of each image.
    """

    images: Tensor
    boxes_xyxy: Sequence[Tensor]
    labels: Sequence[Tensor]


def read(root: Path, split: str, device: str, workers: int = 0, limit: int = 0) -> Annotated:
    """The images of a split (the first `limit`; 0: all), decoded once, and all their annotated objects.

    Raises:
        DataError: images that are not all squares of one size, or an object of another category.
    """
    examples = load_examples(root, split, strict=True)
    examples = [examples[i] for i in range(min(limit or len(examples), len(examples)))]
    width, height = examples[0].size_wh
    for example in examples:
        if example.size_wh != (width, width):
            raise DataError(
                f"{root}, image {example.image_id}: expected a square of {width} pixels as the first "
                f"image, got {example.size_wh}"
            )
        if unknown := set(example.object_categories) - set(SHAPES):
            raise DataError(
                f"{root}, image {example.image_id}: expected categories of {SHAPES}, got {sorted(unknown)}"
            )
    images = torch.empty((len(examples), 3, height, width), dtype=torch.uint8, device=device)
    done = 0
    for part in DataLoader(examples, 64, num_workers=workers, collate_fn=_decode):
        images[done : done + len(part)] = part.to(device)
        done += len(part)
    counts = [len(e.object_boxes_xyxy) for e in examples]
    boxes = torch.tensor([box for e in examples for box in e.object_boxes_xyxy]).view(-1, 4)
    labels = torch.tensor([1 + SHAPES.index(name) for e in examples for name in e.object_categories])
    # Views of one tensor: sent to the device once, not image by image.
    return Annotated(images, boxes.to(device).split(counts), labels.to(device).long().split(counts))


def _decode(examples: Sequence[GroundingExample]) -> Tensor:
    return torch.stack([pil_to_tensor(load_image(example.image)) for example in examples])


def build_detector() -> nn.Module:
    """The detector with random weights, all of it trainable."""
    return get_model(ARCHITECTURE, weights=None, weights_backbone=None, num_classes=CLASSES, **FEW_REGIONS)


def losses_of(model: nn.Module, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The detector's named losses on a batch; what `model(images, targets)` does, quicker.

    Its own forward pass resizes images one by one. And under autocast it would also reckon with boxes in
    bfloat16, whose eight digits misplace them by a pixel: here only the backbone runs in it.

    Args:
        images: float (B, 3, S, S) in [0, 1].
        targets: of each image `boxes` (n, 4) corners in pixels of it and `labels` (n,).
    """
    settings = model.transform
    side = settings.min_size[0]
    mean, std = (
        torch.tensor(v, device=images.device).view(3, 1, 1) for v in (settings.image_mean, settings.image_std)
    )
    scale = side / images.shape[-1]
    targets = [target | {"boxes": target["boxes"] * scale} for target in targets]
    images = F.interpolate((images - mean) / std, size=(side, side), mode="bilinear", align_corners=False)
    bf16 = best_precision(images.device) == "bf16"  # not float16: no gradient scaler here
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        features = model.backbone(images.contiguous(memory_format=torch.channels_last))
    features = {name: value.float() for name, value in features.items()}
    sizes = [(side, side)] * len(images)
    proposals, of_proposals = model.rpn(ImageList(images, sizes), features, targets)
    _, of_boxes = model.roi_heads(features, proposals, sizes, targets)
    return of_proposals | of_boxes


def batch_of(pictures: Annotated, chosen: Tensor, mirrored: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images in [0, 1] and targets of the chosen images (B,), those of `mirrored` (B,) flipped."""
    device, side = pictures.images.device, pictures.images.shape[-1]
    numbers, mirrored = chosen.tolist(), mirrored.to(device)
    images = pictures.images[chosen.to(device)].float() / 255
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    boxes = [pictures.boxes_xyxy[i] for i in numbers]
    counts = [len(b) for b in boxes]
    flat = torch.cat(boxes)  # (N, 4)
    x1, y1, x2, y2 = flat.unbind(1)
    rows = mirrored.repeat_interleave(torch.tensor(counts, device=device), output_size=len(flat))
    flat = torch.where(rows[:, None], torch.stack([side - x2, y1, side - x1, y2], dim=1), flat)
    labels = [pictures.labels[i] for i in numbers]
    return images, [{"boxes": b, "labels": n} for b, n in zip(flat.split(counts), labels, strict=True)]


def train(
    pictures: Annotated, steps: int, batch: int, seed: int = 0, say: Callable[[str], object] = print
) -> nn.Module:
    """A detector trained for so many steps, in evaluation mode; the same seed draws the same batches.

    Raises:
        RuntimeError: a loss that is not finite.
    """
    torch.manual_seed(seed)
    device, count = pictures.images.device, len(pictures.images)
    model = build_detector().train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1
    )
    chance = torch.Generator().manual_seed(seed)
    started, order = time.perf_counter(), torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        while len(order) < batch:  # every image once before any a second time
            order = torch.cat([order, torch.randperm(count, generator=chance)])
        chosen, order = order[:batch], order[batch:]
        losses = losses_of(model, *batch_of(pictures, chosen, torch.rand(batch, generator=chance) < 0.5))
        loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0 or step == steps:
            parts = {name: round(value.item(), 3) for name, value in losses.items()}
            if not loss.isfinite():
                raise RuntimeError(f"step {step}: expected finite losses, got {parts}")
            say(f"step {step} of {steps}, {time.perf_counter() - started:.0f} s, {parts}")
    return model.eval()


@torch.inference_mode()
def score(model: nn.Module, pictures: Annotated, batch: int = 64) -> dict[str, float]:
    """How well the proposals that `detector-clip` would get cover all annotated objects.

    Returns:
        `recall`: share of the objects that a proposal overlaps with IoU 0.5 or more; `proposals`: mean number
        in an image; `precision`: share of the proposals that overlap an object so.
    """
    covered = objects = right = proposals = 0
    side = pictures.images.shape[-1]
    for start in range(0, len(pictures.images), batch):
        images = pictures.images[start : start + batch].float() / 255
        answers, truths = model(list(images)), pictures.boxes_xyxy[start : start + batch]
        for found, truth in zip(answers, truths, strict=True):
            boxes = select_proposals(found["boxes"], found["scores"], (side, side), SETTINGS)
            near = box_iou(truth, boxes) >= FOUND_IOU  # (objects, proposals)
            covered, objects = covered + int(near.any(1).sum()), objects + len(truth)
            right, proposals = right + int(near.any(0).sum()), proposals + len(boxes)
    return {
        "recall": covered / max(1, objects),
        "proposals": proposals / len(pictures.images),
        "precision": right / max(1, proposals),
    }


def save_detector(path: Path, model: nn.Module) -> None:
    """Write the weights as float32 for `model.detector_clip.weights`."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_atomically(path, partial(torch.save, state))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, score on val, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="RefScenes, from `vg_utils prepare scenes`")
    parser.add_argument("--out", type=Path, default=Path("runs/detector.pt"))
    parser.add_argument("--steps", type=int, default=600, help="the same steps give the same detector")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int, default=0, help="only so many images of each split; 0: all")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.batch < 1:
        parser.error(f"expected 1 or more steps and images a batch, got {options.steps}, {options.batch}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures, val = (read(options.data, s, device, options.workers, options.limit) for s in ("train", "val"))
    print(f"{len(pictures.images):,} images of {pictures.images.shape[-1]} pixels on {device}", flush=True)
    model = train(pictures, options.steps, options.batch, options.seed, partial(print, flush=True))
    save_detector(options.out, model)
    found = score(model, val, options.batch)
    print(
        f"val, {len(val.images):,} images, score above {SETTINGS.score_threshold}: recall at IoU 0.5 "
        f"{found['recall']:.3f}, {found['proposals']:.1f} proposals an image, {found['precision']:.3f} of "
        f"them on an object\n{options.out}: --model.detector-clip.detector {ARCHITECTURE} "
        f"--model.detector-clip.weights {options.out} --model.detector-clip.num-classes {CLASSES}"
    )


if __name__ == "__main__":
    main()
