"""The map that `dense-grounder` and `transvg` look at: levels of CLIP and HRNet, merged into one.

The levels are what the backbones make of an image, so they can be cached where those are frozen. Merging
them is learned; it runs once for each image of a batch, however many phrases refer into it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.config import ConfigError, ModelConfig
from vg_utils.models.attention import GroupNorm
from vg_utils.models.backbones import Backbone, build_backbone
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.graphs import side_by_side
from vg_utils.models.hrnet import HRNetBackbone


class FeaturePyramid(nn.Module):
    """Levels of different strides to one map (B, channels, G, G).

    With the default configuration (RN50 at 224): 512x28x28, 1024x14x14 and 2048x7x7 of CLIP and 512x14x14 of
    HRNet-W18 become 256x14x14.

    Args:
        config: of the model; `config.pyramid` says which levels, and the stride and channels of the map.
        clip: whose levels they are.
        hrnet: the branch for fine position, or None.

    Attributes:
        levels, channels, grid: which of CLIP's, and the channels and side G of the map.
        finest, finest_channels: name of the level with the smallest stride, and its channels.
    """

    def __init__(self, config: ModelConfig, clip: Backbone, hrnet: HRNetBackbone | None) -> None:
        super().__init__()
        settings = config.pyramid
        self.levels, self.channels = settings.levels, settings.channels
        self.grid = config.image_size // settings.stride  # side G of the map
        sources = {f"clip{level}": clip.levels[level] for level in self.levels}
        if hrnet is not None:
            sources["hrnet"] = (hrnet.channels, hrnet.stride)
        self.finest = min(reversed(sources), key=lambda name: sources[name][1])  # HRNet, if as fine
        self.finest_channels = sources[self.finest][0]
        self.merge = nn.ModuleDict()
        for name, (channels, stride) in sources.items():
            fold = max(1, settings.stride // stride)  # cells of a finer level that share a cell of the map
            self.merge[name] = nn.Sequential(
                nn.PixelUnshuffle(fold),
                GroupNorm(1, channels * fold**2),  # levels differ in scale by orders of magnitude
                nn.Conv2d(channels * fold**2, self.channels, 1),
            )
        self.blocks = nn.Sequential(*(ResidualBlock(self.channels) for _ in range(settings.blocks)))

    def encode(self, images: Tensor, clip: Backbone, hrnet: HRNetBackbone | None) -> Features:
        """(B, 3, S, S) -> the levels, each (B, C, h, w)."""
        maps, finer = side_by_side(
            lambda: clip.encode_maps(images, self.levels),
            lambda: {} if hrnet is None else {"hrnet": hrnet(images)},
        )
        return {f"clip{level}": x for level, x in zip(self.levels, maps, strict=True)} | finer

    def forward(self, features: Features) -> Tensor:
        """What `encode` gave -> (B, channels, G, G)."""
        merged = 0
        for name, project in self.merge.items():
            level = project(features[name])
            if level.shape[-1] != self.grid:
                size = (self.grid, self.grid)
                # Autocast makes it float32, and with it all that is added to it from here on: move it back.
                level = F.interpolate(level, size=size, mode="bilinear", align_corners=False).to(level.dtype)
            merged = merged + level
        return self.blocks(merged)


class PyramidModel(GroundingModel):
    """A model that looks at the merged map; subclasses add the text and what happens to both.

    Attributes:
        clip, hrnet: the backbones; `hrnet` is None where the configuration does not want it.
        pyramid: makes the merged map of the features of images.
        reads_pooled: whether the pooled vector of a text is read.
    """

    reads_pooled = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.clip, self.hrnet = build_backbones(config, self.reads_pooled)
        self.pyramid = FeaturePyramid(config, self.clip, self.hrnet)

    def backbones(self) -> dict[str, nn.Module]:
        return {"clip": self.clip} | ({"hrnet": self.hrnet} if self.hrnet is not None else {})

    def encode_images(self, images: Tensor) -> Features:
        return self.pyramid.encode(images, self.clip, self.hrnet)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, normalised first (He et al. 2016, identity mappings)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [GroupNorm(8, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def build_backbones(config: ModelConfig, pooled_texts: bool) -> tuple[Backbone, HRNetBackbone | None]:
    """The CLIP without what is not read being trained, and HRNet if the configuration wants it.

    Raises:
        ConfigError: no level, one that does not exist, or a stride that does not divide the input.
    """
    levels, stride = config.pyramid.levels, config.pyramid.stride
    if not levels or not set(levels) <= {1, 2, 3, 4}:
        raise ConfigError(f"model.pyramid.levels: expected some of 1, 2, 3, 4, got {levels}")
    if stride < 1 or config.image_size % stride:
        raise ConfigError(
            f"model.pyramid.stride: expected a divisor of the input's {config.image_size} pixels, "
            f"got {stride}"
        )
    clip = build_backbone(config.clip, config.image_size)
    clip.freeze_unread(config.pyramid.levels, pooled_images=False, pooled_texts=pooled_texts)
    hrnet = HRNetBackbone(config.hrnet, config.image_size) if config.pyramid.hrnet else None
    return clip, hrnet
