"""Where `detector-clip` gets its proposals: a torchvision detector, YOLO, or the annotations themselves.

Every source has `propose(images, examples)`: boxes_xyxy (n, 4) in original pixels for each image, the
surest first. Classes are dropped: CLIP says what is in a box.

Three things to know when reading results. A detector trained on COCO has seen RefCOCOg's test images with
all their boxes, so its proposals are better there than on new images. `oracle` proposes the true boxes, and
measures CLIP's choice alone. And `ultralytics` (YOLO) is AGPL-3.0, unlike this project and torchvision's
detectors: whoever installs it and serves results with it takes on that licence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_area, clip_boxes_to_image, nms
from torchvision.transforms.v2 import functional as F

from vg_utils.config import ConfigError, DetectorClipConfig, nearest
from vg_utils.data.examples import GroundingExample
from vg_utils.models.backbones import WeightsError
from vg_utils.models.shipped import load_shipped
from vg_utils.models.weight_files import read_weights

PICTURES_AT_ONCE = 8  # of one size, through a detector
LONGEST_SIDE = 1600  # pixels that a detector is shown; most shrink an image to 1333 or fewer themselves
MOST_ELONGATED = (
    16  # an image longer than this is stretched, or detectors would shrink its short side to nothing
)
SEEN = "a detector trained on COCO has seen RefCOCOg's test images"


class ProposalSource(Protocol):
    """Anything that proposes boxes.

    Attributes:
        name: what results call it.
    """

    name: str

    def propose(
        self, pictures: Sequence[Image.Image], examples: Sequence[GroundingExample] | None = None
    ) -> list[Tensor]:
        """float32 boxes_xyxy (n, 4) in original pixels for each image, on the CPU, the surest first."""
        ...


class TorchvisionDetector:
    """Any of torchvision's detectors: `torchvision.models.list_models(module=detection)`.

    Raises:
        ConfigError: no such detector, or a number of classes that its public weights do not have.
        WeightsError: weights that cannot be had or do not fit.
    """

    def __init__(self, config: DetectorClipConfig, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        self.name = f"{config.detector} ({config.weights})"
        self.model = load_detector(config).eval().to(self.device)
        # What the detector itself leaves out must not be more than what the config asks to leave out.
        head = getattr(self.model, "roi_heads", self.model)
        head.score_thresh = min(head.score_thresh, config.score_threshold)

    @torch.inference_mode()
    def propose(
        self, pictures: Sequence[Image.Image], examples: Sequence[GroundingExample] | None = None
    ) -> list[Tensor]:
        """See `ProposalSource`. Images of one size go together: padding would change what is found."""
        fitted = [fit_picture(picture) for picture in pictures]
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, picture in enumerate(fitted):
            by_size[picture.size].append(i)
        found: list[Tensor] = [torch.zeros(0, 4)] * len(pictures)
        for rows in by_size.values():
            for start in range(0, len(rows), PICTURES_AT_ONCE):
                part = rows[start : start + PICTURES_AT_ONCE]
                images = [F.pil_to_tensor(fitted[i]).to(self.device).float() / 255 for i in part]
                for i, output in zip(part, self.model(images), strict=True):
                    boxes, scores = output["boxes"].float().cpu(), output["scores"].float().cpu()
                    boxes = _scale_back(boxes, fitted[i].size, pictures[i].size)
                    found[i] = select_proposals(boxes, scores, pictures[i].size, self.config)
        return found


class YoloDetector:
    """YOLO through the optional package `ultralytics`, which is AGPL-3.0.

    Its weight files are full pickles, and reading one runs whatever code it holds: use files that you trust.
    Only a local file is taken; nothing is fetched.

    Raises:
        ConfigError: ultralytics is not installed, or `weights` is no file.
    """

    def __init__(self, config: DetectorClipConfig, device: torch.device | str) -> None:
        path = Path(config.weights).expanduser()
        if not path.is_file():
            raise ConfigError(
                "model.detector_clip.weights: yolo expects a local weights file that you trust (.pt; it is "
                f"a pickle, and reading it runs its code), got {config.weights!r}"
            )
        try:
            from ultralytics import YOLO  # late: AGPL-3.0, and only for whoever asks for it
        except ImportError as error:
            raise ConfigError(
                "model.detector_clip.detector: yolo needs the package ultralytics, which is not installed. "
                "It is AGPL-3.0: if that suits you, pip install ultralytics; torchvision's detectors are BSD"
            ) from error
        self.config, self.device = config, torch.device(device)
        self.name = f"yolo ({path.name})"
        self.model = YOLO(str(path))

    def propose(
        self, pictures: Sequence[Image.Image], examples: Sequence[GroundingExample] | None = None
    ) -> list[Tensor]:
        """See `ProposalSource`."""
        found = []
        for picture in pictures:  # ultralytics pads a batch to one shape: alone, each is as it would be alone
            fitted = fit_picture(picture)
            options = {
                "conf": max(self.config.score_threshold, 1e-3),
                "verbose": False,
                "device": self.device,
            }
            result = self.model.predict(fitted, **options)[0].boxes
            boxes, scores = result.xyxy.float().cpu(), result.conf.float().cpu()
            boxes = _scale_back(boxes, fitted.size, picture.size)
            found.append(select_proposals(boxes, scores, picture.size, self.config))
        return found


class Oracle:
    """All annotated boxes of an image; where there are none, those that its expressions mean."""

    name = "oracle"

    def propose(
        self, pictures: Sequence[Image.Image], examples: Sequence[GroundingExample] | None = None
    ) -> list[Tensor]:
        """See `ProposalSource`; in the order of the annotations, all of them, each box once."""
        if examples is None:
            raise ConfigError(
                "model.detector_clip.detector: oracle proposes annotated boxes, and this image has none: "
                "choose a detector, or give set_image the boxes to choose from"
            )
        boxes = [e.object_boxes_xyxy or tuple(x.box_xyxy for x in e.expressions) for e in examples]
        return [torch.tensor(list(dict.fromkeys(b)), dtype=torch.float32).view(-1, 4) for b in boxes]


def build_source(config: DetectorClipConfig, device: torch.device | str) -> ProposalSource:
    """The proposal source that the config names.

    Raises:
        ConfigError: no such detector, or one that needs what is not there.
        WeightsError: its weights cannot be had or do not fit.
    """
    if config.detector == "oracle":
        return Oracle()
    if config.detector == "yolo":
        return YoloDetector(config, device)
    return TorchvisionDetector(config, device)


def load_detector(config: DetectorClipConfig) -> nn.Module:
    """A torchvision detector with the weights that the config asks for, on the CPU."""
    name, weights = config.detector, config.weights
    known = torchvision.models.list_models(module=detection)
    if name not in known:
        valid = [*known, "yolo", "oracle"]
        raise ConfigError(f"model.detector_clip.detector: no detector {name!r}{nearest(name, valid)}")
    if weights == "coco":
        public = torchvision.models.get_model_weights(name).DEFAULT
        classes = len(public.meta["categories"])
        if config.num_classes != classes:
            raise ConfigError(
                f"model.detector_clip.num_classes: torchvision's weights have {classes}, "
                f"got {config.num_classes}"
            )
        try:
            return torchvision.models.get_model(name, weights=public, weights_backbone=None)
        except Exception as error:  # the network, the file system and torch each raise their own
            raise WeightsError(_ways_out(name, weights, error, public.url)) from error
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=config.num_classes
    )
    if weights != "random":
        try:
            if weights == "shipped":
                return load_shipped(model, name, model.transform.min_size[0])
            _load_strictly(model, Path(weights).expanduser())
        except Exception as error:
            raise WeightsError(_ways_out(name, weights, error)) from error
    return model


def select_proposals(
    boxes_xyxy: Tensor, scores: Tensor, size_wh: tuple[int, int], config: DetectorClipConfig
) -> Tensor:
    """The best few of detections (n, 4), (n,) that are sure enough, clipped, doubles of any class removed."""
    boxes_xyxy = clip_boxes_to_image(boxes_xyxy, (size_wh[1], size_wh[0]))
    kept = (scores >= config.score_threshold) & (box_area(boxes_xyxy) > 0)
    boxes_xyxy, scores = boxes_xyxy[kept], scores[kept]
    return boxes_xyxy[nms(boxes_xyxy, scores, config.nms_iou)[: config.max_proposals]]


def fit_picture(picture: Image.Image) -> Image.Image:
    """An image that any detector can take: RGB, not too large, not thinner than `MOST_ELONGATED`."""
    width, height = picture.size
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    least = -(-max(width, height) // MOST_ELONGATED)
    size = (max(width, least), max(height, least))
    picture = picture.convert("RGB")
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _scale_back(boxes_xyxy: Tensor, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> Tensor:
    return boxes_xyxy * (torch.tensor(to_wh) / torch.tensor(from_wh)).repeat(2)


def _load_strictly(model: nn.Module, path: Path) -> None:
    """Load a local file of weights: every name has to be there and fit."""
    state = read_weights(path)
    # Detectors trained with frozen BatchNorm have no such counters; in evaluation nothing reads them.
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    model.load_state_dict(state)


def _ways_out(name: str, weights: str, error: Exception, url: str = "") -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(line.strip() for line in lines[:2])[:300]
    hub = f"put {url} into torch's hub cache ({torch.hub.get_dir()}/checkpoints) by hand; " if url else ""
    return (
        f"detector {name!r}: the weights {weights!r} could not be loaded ({reason}). Ways out: connect to "
        f"the internet and try again; {hub}name a local .pth or .safetensors file with "
        "--model.detector-clip.weights FILE and its number of classes with --model.detector-clip.num-classes "
        "N; or choose among the annotated boxes with --model.detector-clip.detector oracle"
    )
