"""Pretrain the small backbones of the `scenes` preset: `python -m vg_utils.pretraining --out DIR`.

They stand where OpenAI's CLIP and ImageNet's HRNet stand at full size, so that freezing, the feature cache
and CLIP similarity mean something on a machine without a network. The CLIP learns as CLIP does, by telling
which phrase belongs to which crop, or picture with one solid marked, of a batch; the HRNet learns a dense
task, naming and boxing the solid that each cell of its map lies on. Neither is asked to find a phrase's box.

Both learn at two input sizes, in turn, and BatchNorm's running statistics are taken for each at the end:
trained on sizes from 128 to 224 with one set of them, the features of evaluation mode were off by 25% at 128,
and the boxes read from them by three times (measured).

Needs a GPU: 20,000 scenes, about nine minutes on an H200. The scenes are RefScenes' own training split under
a seed that no other command uses.
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
from torchvision.ops import roi_align
from torchvision.transforms.v2.functional import gaussian_blur

from vg_utils.boxes import paired_iou
from vg_utils.config import ClipConfig, HRNetConfig
from vg_utils.data.expressions import ADJECTIVES, NOUNS
from vg_utils.data.raycast import SHAPES
from vg_utils.data.sampling import COLORS, MATERIALS, SIZES
from vg_utils.data.scenes import make_scenes
from vg_utils.data.text import tokenize
from vg_utils.models.backbones import ClipBackbone, HRNetBackbone, normalise, resized_positions
from vg_utils.models.shipped import Statistics, pack

SEED = 1_000_003
DRAWN = 224  # side of a drawn picture in pixels
SIDES = (224, 128)  # of the model's square input in pixels, in turn; the preset `scenes` has the second
STATISTICS_BATCHES = 100  # from which BatchNorm's running statistics are taken for each side
ATTRIBUTES = {"shape": list(SHAPES), "color": list(COLORS), "material": list(MATERIALS), "size": list(SIZES)}


@dataclass
class Corpus:
    """Scenes on the device with everything the two tasks need.

    Attributes:
        images: uint8 (M, 3, S, S).
        boxes_xyxy: float32 (K, 4), of all solids, in pixels.
        scene: int64 (K,), the picture of each.
        labels: int64 (K, 4), its shape, colour, material and size.
        refs: of each picture, the row of each referred solid with its phrases.
    """

    images: Tensor
    boxes_xyxy: Tensor
    scene: Tensor
    labels: Tensor
    refs: list[list[tuple[int, list[str]]]]


def draw_corpus(split: str, count: int, size: int, device: str, at_once: int = 500) -> Corpus:
    """`count` scenes of a split, held on the device."""
    images, boxes, scene, labels, refs = [], [], [], [], []
    for start in range(0, count, at_once):
        pictures, scenes = make_scenes(split, start, min(at_once, count - start), size, SEED, device)
        images.append(pictures)
        for number, made in enumerate(scenes, start):
            first = len(boxes)
            for item in made["objects"]:
                x, y, w, h = item["box_xywh"]
                boxes.append((x, y, x + w, y + h))
                scene.append(number)
                labels.append([names.index(item[name]) for name, names in ATTRIBUTES.items()])
            refs.append([(first + r["object"], [s["text"] for s in r["sentences"]]) for r in made["refs"]])
    tensors = (torch.tensor(values, device=device) for values in (boxes, scene, labels))
    return Corpus(torch.cat(images), *tensors, refs)


def pretrain_clip(
    corpus: Corpus, steps: int, batch: int, lr: float, random: Random
) -> tuple[ClipBackbone, Statistics]:
    """Contrastive learning (Radford et al. 2021, section 2.3) on crops and on pictures with a solid marked.

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
        images, texts = _clip_batch(corpus, batch, SIDES[step % len(SIDES)], random)
        tokens, number = words(texts)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
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
    batches = {side: [_clip_batch(corpus, batch, side, random)[0] for _ in range(4)] for side in SIDES}
    return model, statistics_by_side(visual, lambda images: _embed(model, images), batches, "visual.")


def _embed(model: ClipBackbone, images: Tensor) -> Tensor:
    """Vectors of pictures of any side, the attention pooling's positions interpolated to it."""
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


class Tokens:
    """Tokenises each text once, and numbers the different ones."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number: dict[str, int] = {}
        self.rows: list[Tensor] = []

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """N texts -> tokens (N, L) and numbers (N,), equal for equal texts."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.number]:
            self.number |= {text: len(self.number) + i for i, text in enumerate(new)}
            self.rows += list(tokenize(new))
        numbers = [self.number[text] for text in texts]
        tokens = torch.stack([self.rows[i] for i in numbers])
        longest = int((tokens != 0).sum(1).max())
        return tokens[:, :longest].to(self.device), torch.tensor(numbers, device=self.device)


def _clip_batch(corpus: Corpus, batch: int, side: int, random: Random) -> tuple[Tensor, list[str]]:
    """Half crops of solids with a description, half pictures that are blurred around a solid with its phrase.

    The second half is visual prompting as in CPT and its successors: the only way to tell the phrases of one
    picture apart is to read their relations, and the refs of a picture are in the batch together.
    """
    rows = torch.randint(0, len(corpus.boxes_xyxy), (batch // 2,), device=corpus.images.device)
    texts = [_describe(labels, random) for labels in corpus.labels[rows].tolist()]
    scenes = random.sample(range(len(corpus.refs)), batch // 2)
    chosen = [ref for scene in scenes for ref in corpus.refs[scene]][: batch // 2]
    texts += [random.choice(sentences) for _, sentences in chosen]
    marked = torch.tensor([row for row, _ in chosen], device=rows.device)
    return torch.cat([_crop(corpus, rows, side), _prompt(corpus, marked, side, random)]), texts


def _crop(corpus: Corpus, rows: Tensor, side: int) -> Tensor:
    """The solids of (K,) rows with some room around them, float (K, 3, side, side) in [0, 1]."""
    boxes, drawn = corpus.boxes_xyxy[rows], corpus.images.shape[-1]
    room = torch.rand(len(rows), 4, device=rows.device) * 0.35 * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = (boxes + torch.tensor([-1, -1, 1, 1], device=rows.device) * room).clamp(0, drawn)
    rois = torch.cat([torch.arange(len(rows), device=rows.device)[:, None], boxes], dim=1)
    images = corpus.images[corpus.scene[rows]].float() / 255
    return roi_align(images, rois, side, sampling_ratio=2, aligned=True).clamp(0, 1)


def _prompt(corpus: Corpus, rows: Tensor, side: int, random: Random) -> Tensor:
    """The pictures of (K,) solids, sharp in the solid's box and blurred elsewhere, (K, 3, side, side)."""
    images = _resized(corpus.images[corpus.scene[rows]], side)
    sigma = random.choice((1 / 64, 1 / 32, 1 / 16, 1 / 10)) * side
    radius = int(3 * sigma)
    soft = images
    for kernel in ([2 * radius + 1, 1], [1, 2 * radius + 1]):  # a Gaussian is one across after one down
        soft = gaussian_blur(soft, kernel, [sigma, sigma])
    boxes = corpus.boxes_xyxy[rows] * (side / corpus.images.shape[-1])
    place = torch.arange(side, device=rows.device) + 0.5
    across = (place >= boxes[:, :1]) & (place < boxes[:, 2:3])  # (K, side)
    down = (place >= boxes[:, 1:2]) & (place < boxes[:, 3:])
    return torch.where((down[:, :, None] & across[:, None])[:, None], images, soft)


def _resized(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, S, S) -> float (B, 3, side, side) in [0, 1]."""
    return F.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)


def _describe(labels: list[int], random: Random) -> str:
    """A description of one solid; a crop does not show its size, so that is rarely named."""
    shape, color, material, size = (
        names[label] for names, label in zip(ATTRIBUTES.values(), labels, strict=True)
    )
    words = ["the"] if random.random() < 0.7 else ["a", "photo", "of", "a"]
    words += [random.choice(ADJECTIVES[size])] if random.random() < 0.1 else []
    words += [random.choice(ADJECTIVES[material])] if random.random() < 0.6 else []
    words += [color] if random.random() < 0.85 else []
    noun, _ = random.choice(NOUNS[shape if random.random() < 0.9 else None])
    words.append(noun)
    return " ".join(words)


def vocabulary(corpus: Corpus) -> set[int]:
    """Every token of a RefScenes phrase, of a description, and of a category's name in a prompt."""
    nouns = {word for forms in NOUNS.values() for form in forms for word in form}
    words = nouns | {word for names in ADJECTIVES.values() for word in names} | set(COLORS)
    prompts = ["a photo of a thing", "the thing", *words]
    phrases = {text for refs in corpus.refs for _, texts in refs for text in texts} | set(prompts)
    return {token for batch in [tokenize(sorted(phrases))] for token in batch.unique().tolist()}


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
) -> tuple[HRNetBackbone, DenseHead, Statistics]:
    """Dense naming and boxing of solids; returns the model, its head and the running statistics."""
    device = corpus.images.device
    config = HRNetConfig(name="scenes-hrnet", weights="random", tuning="full")
    model = HRNetBackbone(config, SIDES[0]).to(device, memory_format=torch.channels_last)
    head = DenseHead(model.channels).to(device)
    optimizer, schedule = _optimizer(nn.ModuleList([model, head]), lr, steps)
    of_scene = _rows_by_scene(corpus)
    model.train()

    def pictures(scenes: Tensor, side: int) -> Tensor:
        return _resized(corpus.images[scenes], side).to(memory_format=torch.channels_last)

    for step in range(steps):
        scenes = torch.randint(0, len(corpus.images), (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = model(pictures(scenes, SIDES[step % len(SIDES)]))
        losses = dense_losses(head(features), corpus, of_scene[scenes])
        loss = sum(losses.values())
        _step(loss, optimizer, schedule, model)
        if step % 200 == 0:
            print(f"hrnet {step}/{steps}:", {k: round(v.item(), 3) for k, v in losses.items()}, flush=True)
    some = torch.arange(min(STATISTICS_BATCHES * 16, len(corpus.images)), device=device).split(batch)
    batches = {side: [pictures(scenes, side) for scenes in some] for side in SIDES}
    return model, head, statistics_by_side(model.net, model, batches)


def dense_losses(outputs: list[Tensor], corpus: Corpus, rows: Tensor) -> dict[str, Tensor]:
    """Losses of the dense task.

    A cell belongs to the solid whose box holds it and whose centre is nearest in units of the box (after
    FCOS, Tian et al. 2019, section 3.2).

    Args:
        outputs: of `DenseHead`.
        rows: int64 (B, K), rows of the corpus' solids of each picture, -1 where there are fewer.
    """
    presence, distances, *attributes = outputs
    grid = presence.shape[-1]
    boxes = corpus.boxes_xyxy[rows.clamp(min=0)] / corpus.images.shape[-1]  # (B, K, 4) in [0, 1]
    axis = (torch.arange(grid, device=rows.device) + 0.5) / grid
    cell = torch.stack([axis.repeat(grid), axis.repeat_interleave(grid)], dim=1)  # (G*G, 2) x, y
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    offset = ((cell[None, None] - centre[:, :, None]) / size[:, :, None] * 2).abs().amax(-1)  # (B, K, G*G)
    offset = offset.masked_fill((rows < 0)[..., None], torch.inf)
    nearest, owner = offset.min(dim=1)  # (B, G*G)
    inside = nearest < 1
    losses = {"presence": F.binary_cross_entropy_with_logits(presence.flatten(1), inside.float())}
    row = rows.gather(1, owner)[inside]  # (P,) the solid under each cell that has one
    own, at = (
        boxes.gather(1, owner[..., None].expand(-1, -1, 4))[inside],
        cell.expand(len(rows), -1, 2)[inside],
    )
    sides = F.softplus(distances.flatten(2).transpose(1, 2)[inside])  # (P, 4) left, top, right, bottom
    predicted = torch.cat([at - sides[:, :2], at + sides[:, 2:]], dim=1)
    losses["box"] = F.l1_loss(predicted, own) * 5 + 1 - paired_iou(predicted, own).mean()
    for number, (name, logits) in enumerate(zip(ATTRIBUTES, attributes, strict=True)):
        logits = logits.flatten(2).transpose(1, 2)[inside]  # (P, classes)
        losses[name] = F.cross_entropy(logits, corpus.labels[row, number])
    return losses


def _rows_by_scene(corpus: Corpus) -> Tensor:
    """int64 (M, K): which rows are the solids of each picture, filled up with -1."""
    counts = torch.bincount(corpus.scene, minlength=len(corpus.images))
    slot = torch.arange(len(corpus.scene), device=counts.device) - (counts.cumsum(0) - counts)[corpus.scene]
    rows = torch.full((len(counts), int(counts.max())), -1, device=counts.device)
    rows[corpus.scene, slot] = torch.arange(len(corpus.scene), device=counts.device)
    return rows


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


@torch.no_grad()
def zero_shot_accuracy(model: ClipBackbone, corpus: Corpus) -> dict[str, float]:
    """Share of crops whose shape, colour and material the CLIP names rightly among all of them."""
    model.eval()
    device, hits = corpus.images.device, {}
    rois = torch.cat([corpus.scene[:, None].float(), corpus.boxes_xyxy], dim=1)
    pictures = corpus.images.float() / 255
    parts = [roi_align(pictures, part, SIDES[0], sampling_ratio=2) for part in rois.split(256)]
    images = torch.cat([F.normalize(model.encode_images(part), dim=1) for part in parts])
    templates = {"shape": "the {}", "color": "the {} thing", "material": "the {} thing"}
    for number, (name, template) in enumerate(templates.items()):
        tokens = tokenize([template.format(word) for word in ATTRIBUTES[name]]).to(device)
        texts = F.normalize(model.encode_texts(tokens).pooled, dim=1)
        hits[name] = ((images @ texts.T).argmax(1) == corpus.labels[:, number]).float().mean().item()
    return hits


@torch.no_grad()
def marked_accuracy(model: ClipBackbone, corpus: Corpus) -> float:
    """Share of phrases for which CLIP prefers the right solid to all others of the picture being marked."""
    model.eval()
    rows_of, hits = _rows_by_scene(corpus), []
    for scene, refs in enumerate(corpus.refs):
        rows = rows_of[scene][rows_of[scene] >= 0]
        images = F.normalize(model.encode_images(_prompt(corpus, rows, SIDES[0], Random(0))), dim=1)
        texts = [text for _, sentences in refs for text in sentences]
        truth = torch.tensor([row for row, sentences in refs for _ in sentences], device=rows.device)
        vectors = F.normalize(model.encode_texts(tokenize(texts, trim=True).to(rows.device)).pooled, dim=1)
        hits.append(rows[(vectors @ images.T).argmax(1)] == truth)
    return torch.cat(hits).float().mean().item()


@torch.no_grad()
def dense_accuracy(model: HRNetBackbone, head: DenseHead, corpus: Corpus) -> dict[str, float]:
    """Losses of the dense task."""
    model.eval()
    images = _resized(corpus.images, SIDES[0])
    features = torch.cat([model(part) for part in images.split(64)])
    return {k: v.item() for k, v in dense_losses(head(features), corpus, _rows_by_scene(corpus)).items()}


def main() -> None:
    """Pretrain both and write them with a report of what they learned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
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
    held_out = draw_corpus("val", max(8, options.scenes // 80), DRAWN, device)
    report = {"scenes": options.scenes, "seed": SEED}
    hrnet, head, statistics = pretrain_hrnet(corpus, options.hrnet_steps, options.batch // 2, 2e-3, random)
    save_file(pack(hrnet.net, statistics=statistics), options.out / "scenes-hrnet.safetensors")
    report["hrnet_val"] = dense_accuracy(hrnet, head, held_out)
    clip, statistics = pretrain_clip(corpus, options.clip_steps, options.batch, 1e-3, random)
    save_file(pack(clip.clip, vocabulary(corpus), statistics), options.out / "scenes-rn.safetensors")
    report["clip_val_zero_shot"] = zero_shot_accuracy(clip, held_out)
    report["clip_val_marked_solid"] = marked_accuracy(clip, held_out)
    report["seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps(report, indent=2)
    (options.out / "pretraining.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
