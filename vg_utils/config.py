"""Every setting of every run: frozen dataclasses and their JSON form.

A run directory's `config.json` is a `Config` written out, and the command line's flags are its fields
(`--train.lr 1e-3`, `--model.clip.tuning last`), so there is one list of settings and it is this file. The
presets, which give the fields their values for a data set, are in `vg_utils/presets.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vg_utils.config_checks import (
    LARGEST,
    NO_LIMIT,
    ConfigError,
    check_choice,
    check_numbers,
    check_ranges,
    nearest,
    told,
    typed,
)
from vg_utils.data.examples import DataError
from vg_utils.data.records import LARGEST_SETTINGS, read_json
from vg_utils.files import write_atomically

Optimizer = Literal["adamw", "adam"]
Precision = Literal["auto", "no", "bf16", "fp16"]
Log = Literal["no", "tensorboard", "wandb"]  # see training/tracking.py
Tuning = Literal["frozen", "norms", "last", "lora", "full"]  # see models/finetuning.py
BoxLoss = Literal["huber", "l1", "giou", "diou", "ciou", "l1+giou"]  # see models/losses.py
MOST_PIXELS = 4096  # side of a model's square input
BOX_LOSSES: tuple[str, ...] = get_args(BoxLoss)


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is augmented."""

    root: str = "data/scenes"  # a folder in RefCOCOg's layout, of parquet files, or of JSON lines
    partition: str = ""  # empty: the one there is, or umd; `google` shares images between train and val
    strict: bool = False  # True: bad records are errors; False: they are skipped and counted
    workers: int = 2  # decoding processes
    max_expressions: int = 8  # of an image in a training batch (RefCOCOg has 3.7, some images 20)
    limit_images: int = 0  # take only the first so many images of each split; 0: all
    flip: float = 0.5  # probability of a mirrored image with left and right swapped in its phrases
    jitter: float = 0.2  # brightness, contrast and saturation; hue stays, phrases name colours
    recolor: float = 0.0  # share of images in quite other colours, then without phrases that name one
    scale: tuple[float, float] = (0.7, 1.4)  # random zoom about the letterbox, targets always kept
    absent: int = 1  # phrases an image that fit nothing in it, for models that learn to say so
    resident: bool = False  # decode all images once, keep them on the device, augment them there
    features: str = "data/features"  # where feature caches go

    def __post_init__(self) -> None:
        check_ranges(self, "data", workers=(0, NO_LIMIT), max_expressions=(1, NO_LIMIT), absent=(0, NO_LIMIT))
        check_ranges(self, "data", limit_images=(0, NO_LIMIT), flip=(0, 1), jitter=(0, 1), recolor=(0, 1))
        scale = self.scale
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < NO_LIMIT:
            raise ConfigError(f"data.scale: expected two numbers above 0, the smaller one first, got {scale}")


@dataclass(frozen=True)
class ClipConfig:
    """The CLIP that encodes images and phrases (Radford et al. 2021), an open_clip model."""

    # Of open_clip, or "photos", the package's own for photographs. OpenAI's weights were trained with
    # QuickGELU: plain "RN50" is silently wrong.
    name: str = "RN50-quickgelu"
    weights: str = "openai"  # "openai", "shipped", "random", a local .pt, .safetensors or folder
    tuning: Tuning = "frozen"  # of the image encoder
    text_tuning: Tuning = "frozen"  # of the text encoder
    lora_rank: int = 8  # of the update that `lora` learns

    def __post_init__(self) -> None:
        check_choice(self.tuning, "model.clip.tuning", Tuning)
        check_choice(self.text_tuning, "model.clip.text_tuning", Tuning)
        check_ranges(self, "model.clip", lora_rank=(1, NO_LIMIT))


@dataclass(frozen=True)
class HRNetConfig:
    """The high-resolution network (Wang et al. 2020) for fine position, a timm model."""

    name: str = "hrnet_w18"
    weights: str = "imagenet"  # "imagenet" (timm's), "shipped" (RefScenes), "random", or a local file
    tuning: Tuning = "frozen"

    def __post_init__(self) -> None:
        check_choice(self.tuning, "model.hrnet.tuning", Tuning)


@dataclass(frozen=True)
class ClipHRNetConfig:
    """Head of the CLIP + HRNet project's system."""

    clip_channels: int = 128  # CLIP image and text vectors, each, after their 1x1 convolution
    hrnet_channels: int = 64
    fused_channels: int = 256
    hidden: int = 512  # of the feed-forward box head
    dropout: float = 0.1
    box_loss: BoxLoss = "huber"
    huber_delta: float = 0.1  # in units of the image's side
    box_weight: float = 1.0
    score_weight: float = 0.1  # predicted IoU; its gradient stops at the head, the box is the project's own


@dataclass(frozen=True)
class ClipRPNConfig:
    """Head of the ClipRPN project's systems: text fused into CLIP's map, then a region proposal network."""

    attend_to: Literal["pooled", "tokens"] = "pooled"  # `clip-rpn-attention`: the text vector, or words
    channels: int = 0  # of the fused map; 0: as many as CLIP's map has, as in the project
    heads: int = 16
    feed_forward: int = 1024
    dropout: float = 0.1
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels of an image of 640, scaled to the input
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    foreground_iou: float = 0.7  # an anchor that overlaps the true box so much is an object
    background_iou: float = 0.2  # and one that overlaps it less than this is background
    sampled_anchors: int = 256  # of each phrase's map, for the losses
    positive_share: float = 0.5  # of them at most
    nms_iou: float = 0.7
    before_nms: int = 200  # best-scored proposals that enter the suppression
    kept: int = 100  # and that leave it at most
    objectness_weight: float = 1.0
    box_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("anchor_sizes", "anchor_ratios"):
            values = getattr(self, name)
            if not values or not all(0 < value <= LARGEST for value in values):
                expected = f"numbers above 0, at most {LARGEST}"
                raise ConfigError(f"model.clip_rpn.{name}: expected {expected}, got {told(values)}")
        if self.attend_to not in ("pooled", "tokens"):
            raise ConfigError(
                f"model.clip_rpn.attend_to: expected pooled or tokens, got {told(self.attend_to)}"
            )


@dataclass(frozen=True)
class DetectorClipConfig:
    """The ClipRPN project's system without training: a detector proposes boxes, CLIP picks one."""

    detector: str = "fasterrcnn_resnet50_fpn_v2"  # torchvision's; "yolo" (ultralytics, AGPL-3.0); "oracle"
    weights: str = "coco"  # torchvision's (saw RefCOCOg's test set), "shipped" (none yet), "random", a file
    num_classes: int = 91  # of the weights, background included
    score_threshold: float = 0.3  # less sure detections are no proposals
    nms_iou: float = 0.7  # of proposals that overlap more, whatever their classes, the surer stays
    max_proposals: int = 20
    mode: Literal["crop", "crop+blur", "global-local"] = "crop"
    blur: float = 0.1  # standard deviation, share of the image's longer side
    visual_global: float = 0.85  # `global-local`: share of the blurred image, the rest is the crop
    text_global: float = 0.5  # `global-local`: share of the whole phrase, the rest is its noun phrase
    spatial_prior: bool = True  # left, right, top, bottom, middle, largest, smallest
    spatial_weight: float = 1.0  # exponent of its factors
    spatial_floor: float = 0.05  # what is less probable than this many times the best cannot beat it by place

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "crop+blur", "global-local"):
            modes = "crop, crop+blur or global-local"
            raise ConfigError(f"model.detector_clip.mode: expected {modes}, got {told(self.mode)}")
        check_ranges(self, "model.detector_clip", max_proposals=(1, LARGEST))
        for name in ("blur", "spatial_floor"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"model.detector_clip.{name}: expected a number above 0, got {value}")


@dataclass(frozen=True)
class PyramidConfig:
    """The map that `dense-grounder` and `transvg` look at: levels of CLIP, and HRNet, merged."""

    levels: tuple[int, ...] = (2, 3, 4)  # of CLIP: strides 8, 16, 32 of a ResNet, or quarters of a ViT
    hrnet: bool = True  # the branch for fine position
    stride: int = 16  # of the merged map, in input pixels
    channels: int = 256
    blocks: int = 1  # residual blocks on the merged map, still the same for all phrases


@dataclass(frozen=True)
class DenseGrounderConfig:
    """Head of the flagship: text-conditioned layers on a dense map, and what they are trained for."""

    blocks: int = 3  # conditioned blocks: a convolution of what is near, attention to what is far and said
    words: bool = True  # read the phrase word by word; False: its pooled vector alone
    coordinates: bool = True  # tell each cell where it is
    heads: int = 8
    feed_forward: int = 512
    dropout: float = 0.1
    box_loss: BoxLoss = "l1+giou"
    box_weight: float = 1.0
    heatmap_weight: float = 1.0  # which cells lie in the box: focal + dice
    cell_weight: float = 0.5  # of the box that each cell in it says
    score_weight: float = 0.2
    presence_weight: float = 0.5  # does the phrase fit anything in the image
    agreement: float = 0.0  # answering, only cells whose box overlaps the surest one's by this IoU are asked
    refinements: int = 0  # closer looks at the box, each of which mends it, see models/refinement.py
    refined_weight: float = 1.0  # of the boxes that they give


@dataclass(frozen=True)
class TransVGConfig:
    """The transformer fusion of TransVG and CLIP-VG: a [REG] token among all image and text tokens."""

    layers: int = 6
    channels: int = 256
    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.1
    box_loss: BoxLoss = "l1+giou"
    box_weight: float = 1.0
    score_weight: float = 0.1  # predicted IoU; its gradient stops at the head, as in `clip-hrnet`


@dataclass(frozen=True)
class ModelConfig:
    """Which model, its input size and its parts. A model reads only its own, `GroundingModel.parts`."""

    name: str = "clip-hrnet"
    image_size: int = 224  # side of the square input in pixels, divisible by 32
    clip: ClipConfig = ClipConfig()
    hrnet: HRNetConfig = HRNetConfig()
    clip_hrnet: ClipHRNetConfig = ClipHRNetConfig()
    clip_rpn: ClipRPNConfig = ClipRPNConfig()
    detector_clip: DetectorClipConfig = DetectorClipConfig()
    pyramid: PyramidConfig = PyramidConfig()
    dense_grounder: DenseGrounderConfig = DenseGrounderConfig()
    transvg: TransVGConfig = TransVGConfig()

    def __post_init__(self) -> None:
        size = self.image_size
        if not isinstance(size, int) or not 32 <= size <= MOST_PIXELS or size % 32:
            expected = f"a multiple of 32 from 32 to {MOST_PIXELS}"
            raise ConfigError(f"model.image_size: expected {expected}, got {told(size)}")
        for name, part in vars(self).items():
            if dataclasses.is_dataclass(part):
                check_numbers(part, f"model.{name}")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, selection and bookkeeping."""

    init: str = ""  # a run or a shipped checkpoint whose weights to start from, as far as they fit
    epochs: int = 20
    epoch_images: int = 0  # images of an epoch, after which val is scored and a checkpoint saved; 0: all
    batch_images: int = 64
    accumulation: int = 1  # batches an optimizer step
    optimizer: Optimizer = "adamw"
    lr: float = 5e-4  # of everything but backbones
    backbone_lr: float = 1e-5  # of what `tuning` leaves trainable in the backbones
    text_lr: float = 0.0  # of the text encoder in place of `backbone_lr`; 0: the same
    layer_decay: float = 1.0  # the rate of each block of a backbone over that of the block after it
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of all steps, then cosine to zero
    grad_clip: float = 1.0  # norm; 0 switches it off
    ema: float = 0.0  # decay of an exponential moving average of the weights, which is scored; 0: none
    precision: Precision = "auto"  # of GPUs: see models/precision.py
    compile: bool = False  # torch.compile, worth its minutes on long GPU runs
    graphs: bool = False  # record the image encoder's step as a CUDA graph, see training/acceleration.py
    cached: bool = False  # train the head on a feature cache (frozen backbones only)
    cache_views: int = 1  # 1: the plain letterbox; K > 1: K augmented versions of each image in the cache
    similarity_images: int = 64  # validation images whose crops CLIP compares after each epoch; 0: none
    log: Log = "no"  # the numbers of each epoch also for TensorBoard or Weights & Biases
    save_every: int = 0  # checkpoint also every so many optimizer steps; 0: once an epoch
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_images", "accumulation", "cache_views")
        check_ranges(self, "train", **dict.fromkeys(counts, (1, NO_LIMIT)))
        counts = ("epoch_images", "similarity_images", "save_every")
        rates = ("lr", "backbone_lr", "text_lr", "weight_decay", "warmup", "grad_clip")
        check_ranges(self, "train", **dict.fromkeys((*counts, *rates), (0, NO_LIMIT)))
        check_ranges(self, "train", layer_decay=(0, 1), ema=(0, 1), seed=(0, 2**32 - 1))
        if self.ema == 1:
            raise ConfigError(f"train.ema: expected a number below 1 (1 never learns), got {self.ema!r}")
        for name, kinds in {"optimizer": Optimizer, "precision": Precision, "log": Log}.items():
            check_choice(getattr(self, name), f"train.{name}", kinds)


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    preset: str = "refcocog"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def save(self, path: Path) -> None:
        """Write the settings as JSON (to a temporary name, then renamed)."""
        write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, is not JSON, or holds a field that does not exist or cannot be.
        """
        try:
            values = read_json(Path(path), "a run's settings as JSON", LARGEST_SETTINGS)
        except DataError as error:
            raise ConfigError(str(error)) from None
        try:
            return _build(cls, values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _build(cls: type, values: Any, part: str = "") -> Any:
    """A dataclass from nested dicts, refusing what does not belong; `part` is where it lies, as "model."."""
    if not isinstance(values, dict):
        where = f"{part.rstrip('.')}: " if part else ""
        raise ConfigError(f"{where}expected an object with the fields of {cls.__name__}, got {told(values)}")
    usual, built = cls(), {}
    for key, value in values.items():
        if key not in vars(usual):
            raise ConfigError(f"unknown field {told(part + key)}{nearest(key, vars(usual))}")
        default = getattr(usual, key)
        if dataclasses.is_dataclass(default):
            built[key] = _build(type(default), value, f"{part}{key}.")
        else:
            built[key] = typed(value, default, part + key)
    return cls(**built)


def set_fields(config: Any, **changes: Any) -> Any:
    """The config with other values of dotted fields: `set_fields(config, train__lr=1e-3)`."""
    for name, value in changes.items():
        first, _, rest = name.partition("__")
        if rest:
            value = set_fields(getattr(config, first), **{rest: value})
        config = dataclasses.replace(config, **{first: value})
    return config


def first_difference(one: Any, other: Any, name: str = "") -> str | None:
    """What differs first between two nests of dicts: "train.epochs is 12 there, 20 here"; None if nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            found = first_difference(one.get(key), other.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if one == other else f"{name} is {one!r} there, {other!r} here"
