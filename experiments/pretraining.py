"""Pretrain the small backbones of the `scenes` preset: `python -m experiments.pretraining --out DIR`.

They stand where OpenAI's CLIP and ImageNet's HRNet stand at full size, so that freezing, the feature cache
and CLIP similarity mean something on a machine without a network. The CLIP learns as CLIP does, by telling
which phrase belongs to which crop, or image with one solid marked, of a batch; the HRNet learns a dense
task, naming and boxing the solid that each cell of its map lies on. Neither is asked to find a phrase's box.

Both learn at two input sizes, in turn, and BatchNorm's running statistics are taken for each at the end:
trained on sizes from 128 to 224 with one set of them, the features of evaluation mode were off by 25% at 128,
and the boxes read from them by three times (measured). The CLIP that is shipped is from
before and learned at 128 only (`weights/pretraining.json`).

Needs a GPU: 20,000 scenes, about nine minutes on an H200. The scenes are RefScenes' own training split under
a seed that no other command uses; `experiments.pretraining_corpus` draws them. What the backbones know in the
end is measured by `python -m experiments.backbones`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from experiments.pretraining_corpus import (
    ATTRIBUTES,
    SEED,
    Corpus,
    Tokens,
    clip_batch,
    draw_corpus,
    resized,
    rows_by_scene,
    vocabulary,
)
from vg_utils.boxes import paired_iou
from vg_utils.config import ClipConfig, HRNetConfig
from vg_utils.models.backbones import normalise
from vg_utils.models.clip import ClipBackbone, resized_positions
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.models.precision import best_precision
from vg_utils.models.shipped import WEIGHTS_DIR, Statistics, pack
from vg_utils.refscenes.scenes import VERSION

DRAWN = 224  # side of a drawn image in pixels
SIDES = (224, 128)  # of the model's square input in pixels, in turn; the preset `scenes` has the second
STATISTICS_BATCHES = 100  # from which BatchNorm's running statistics are taken for each side


def pretrain_clip(
    corpus: Corpus, steps: int, batch: int, lr: float, random: Random
) -> tuple[ClipBackbone, Statistics]:
    """Contrastive learning (Radford et al. 2021, section 2.3) on crops and on images with a solid marked.

    Rows that happen to have the same phrase count as each other's positives.

    Returns:
        the model, with the running statistics of the first side, and those of all sides.
    """
    device = corpus.images.device
    config = ClipConfig(name="scenes-rn", weights="random", tuning="full", text_tuning="full")
    model = ClipBackbone(config, SIDES[0]).to(device)
    model.clip.logit_scale.requires_grad_(True)
    optimizer, schedule = _optimizer(model, lr, steps)
    words = Tokens(device)
    model.train()
    for step in range(steps):
        images, texts = clip_batch(corpus, batch, SIDES[step % len(SIDES)], random)
        tokens, number = words(texts)
        with torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device) == "bf16"):
            image = F.normalize(_embed(model, images).float(), dim=1)
            text = F.normalize(model.encode_texts(tokens).pooled.float(), dim=1)
        logits = model.clip.logit_scale.exp().clamp(max=100) * image @ text.T  # (N, N)
        target = (number[:, None] == number[None]).float()
        target = target / target.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        _step(loss, optimizer, schedule, model)
        if step % 200 == 0:
            print(f"clip {step}/{steps}: loss {loss.item():.3f}", flush=True)
    visual = model.clip.visual
    batches = {side: [clip_batch(corpus, batch, side, random)[0] for _ in range(4)] for side in SIDES}
    return model, statistics_by_side(visual, lambda images: _embed(model, images), batches, "visual.")


def _embed(model: ClipBackbone, images: Tensor) -> Tensor:
    """Vectors of images of any side, the attention pooling's positions interpolated to it."""
    visual, grid = model.clip.visual, images.shape[-1] // model.stride
    name = "attnpool.positional_embedding"
    positions = resized_positions(visual.get_parameter(name), grid)
    return functional_call(visual, {name: positions}, (normalise(images, model.mean, model.std),))


def statistics_by_side(
    module: nn.Module, run: Callable[[Tensor], Tensor], batches: dict[int, list[Tensor]], prefix: str = ""
) -> Statistics:
    """BatchNorm's running statistics of a module for each side; it is left with those of the first."""
    found = {}
    for side in reversed(batches):  # the first one last
        update_bn(batches[side], _Running(module, run))
        found[side] = {
            prefix + name: value.clone()
            for name, value in module.state_dict().items()
            if name.endswith(("running_mean", "running_var"))
        }
    return dict(reversed(found.items()))


class _Running(nn.Module):
    """A module that `update_bn` can run."""

    def __init__(self, module: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


class DenseHead(nn.Module):
    """For each cell of the HRNet map: is a solid here, which, and how far are its four sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = [1, 4, *(len(names) for names in ATTRIBUTES.values())]
        self.convolution = nn.Conv2d(channels, sum(self.sizes), 1)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, G, G) -> presence (B, 1, G, G), distances (B, 4, G, G), logits of each attribute."""
        return list(self.convolution(features.float()).split(self.sizes, dim=1))


def pretrain_hrnet(
    corpus: Corpus, steps: int, batch: int, lr: float, random: Random
) -> tuple[HRNetBackbone, Statistics]:
    """Dense naming and boxing of solids; returns the model and the running statistics."""
    device = corpus.images.device
    config = HRNetConfig(name="scenes-hrnet", weights="random", tuning="full")
    model = HRNetBackbone(config, SIDES[0]).to(device, memory_format=torch.channels_last)
    head = DenseHead(model.channels).to(device)
    optimizer, schedule = _optimizer(nn.ModuleList([model, head]), lr, steps)
    of_scene = rows_by_scene(corpus)
    model.train()

    def pictures(scenes: Tensor, side: int) -> Tensor:
        return resized(corpus.images[scenes], side).to(memory_format=torch.channels_last)

    for step in range(steps):
        scenes = torch.randint(0, len(corpus.images), (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device) == "bf16"):
            features = model(pictures(scenes, SIDES[step % len(SIDES)]))
        losses = dense_losses(head(features), corpus, of_scene[scenes])
        loss = sum(losses.values())
        _step(loss, optimizer, schedule, model)
        if step % 200 == 0:
            print(f"hrnet {step}/{steps}:", {k: round(v.item(), 3) for k, v in losses.items()}, flush=True)
    some = torch.arange(min(STATISTICS_BATCHES * 16, len(corpus.images)), device=device).split(batch)
    batches = {side: [pictures(scenes, side) for scenes in some] for side in SIDES}
    return model, statistics_by_side(model.net, model, batches)


def dense_losses(outputs: list[Tensor], corpus: Corpus, rows: Tensor) -> dict[str, Tensor]:
    """Losses of the dense task.

    A cell belongs to the solid whose box holds it and whose centre is nearest in units of the box (after
    FCOS, Tian et al. 2019, section 3.2).

    Args:
        outputs: of `DenseHead`.
        rows: int64 (B, K), rows of the corpus' solids of each image, -1 where there are fewer.
    """
    presence, distances, *attributes = outputs
    cells = assign_cells(corpus, rows, presence.shape[-1])
    losses = {"presence": F.binary_cross_entropy_with_logits(presence.flatten(1), cells.inside.float())}
    predicted, true = cells.boxes_of(distances), cells.boxes_xyxy
    losses["box"] = F.l1_loss(predicted, true) * 5 + 1 - paired_iou(predicted, true).mean()
    for number, (name, logits) in enumerate(zip(ATTRIBUTES, attributes, strict=True)):
        losses[name] = F.cross_entropy(cells.read(logits), corpus.labels[cells.row, number])
    return losses


@dataclass
class Cells:
    """The cells of B maps of G x G that have a solid, P of them.

    Attributes:
        inside: bool (B, G * G), whether a cell has one.
        row: int64 (P,), its row in the corpus.
        boxes_xyxy: (P, 4), its box in [0, 1].
        centres: (P, 2), x and y of the cell in [0, 1].
    """

    inside: Tensor
    row: Tensor
    boxes_xyxy: Tensor
    centres: Tensor

    def read(self, maps: Tensor) -> Tensor:
        """What maps (B, C, G, G) say of these cells: (P, C)."""
        return maps.flatten(2).transpose(1, 2)[self.inside]

    def boxes_of(self, distances: Tensor) -> Tensor:
        """Boxes (P, 4) in [0, 1] from what a `DenseHead` says of distances to their sides (B, 4, G, G)."""
        sides = F.softplus(self.read(distances))  # left, top, right, bottom
        return torch.cat([self.centres - sides[:, :2], self.centres + sides[:, 2:]], dim=1)


def assign_cells(corpus: Corpus, rows: Tensor, grid: int) -> Cells:
    """Which solid each cell of a map belongs to, see `dense_losses`."""
    boxes = corpus.boxes_xyxy[rows.clamp(min=0)] / corpus.images.shape[-1]  # (B, K, 4) in [0, 1]
    axis = (torch.arange(grid, device=rows.device) + 0.5) / grid
    cell = torch.stack([axis.repeat(grid), axis.repeat_interleave(grid)], dim=1)  # (G*G, 2) x, y
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    offset = ((cell[None, None] - centre[:, :, None]) / size[:, :, None] * 2).abs().amax(-1)  # (B, K, G*G)
    offset = offset.masked_fill((rows < 0)[..., None], torch.inf)
    nearest, owner = offset.min(dim=1)  # (B, G*G)
    inside = nearest < 1
    row = rows.gather(1, owner)[inside]
    own = boxes.gather(1, owner[..., None].expand(-1, -1, 4))[inside]
    return Cells(inside, row, own, cell.expand(len(rows), -1, 2)[inside])


def _optimizer(
    model: nn.Module, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)


def _step(loss: Tensor, optimizer, schedule, model: nn.Module) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def main() -> None:
    """Pretrain both and write them with a note of how they came about."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--clip-steps", type=int, default=5_000)
    parser.add_argument("--hrnet-steps", type=int, default=3_500)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    random, started = Random(SEED), time.perf_counter()
    corpus = draw_corpus("train", options.scenes, DRAWN, device)
    hrnet, statistics = pretrain_hrnet(corpus, options.hrnet_steps, options.batch // 2, 2e-3, random)
    save_file(pack(hrnet.net, statistics=statistics), options.out / "scenes-hrnet.safetensors")
    clip, statistics = pretrain_clip(corpus, options.clip_steps, options.batch, 1e-3, random)
    save_file(pack(clip.clip, vocabulary(corpus), statistics), options.out / "scenes-rn.safetensors")
    report = {name: value for name, value in vars(options).items() if name != "out"}
    report |= {
        "refscenes_version": VERSION,
        "input_sides": SIDES,
        "seed": SEED,
        "device": device,
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(report, indent=2)
    (options.out / "pretraining.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
