"""What a search may change: one function a model, every range in plain sight.

A choice is called by the dotted name of the setting that it sets, so a trial's parameters read as flags do
(`train.lr` is `--train.lr`), and the values that the run would have had anyway can be put in as the first
trial. A range that does not hold such a value is widened to it; where it counts orders of magnitude and the
value is zero, which has none, the setting is switched off and stays so in all trials.

What decides which features a frozen backbone gives (the data, the input size, the tuning of CLIP and HRNet,
which of their maps are read) is searched only where a run trains from images: in a cached study every trial
reads the same feature cache. To search something else, add a line to the model's function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from importlib.util import find_spec
from typing import Any

from optuna.trial import BaseTrial

from vg_utils.config import BOX_LOSSES, Config, ConfigError, nearest, set_fields


class Search:
    """The choices of one trial, kept by the names of the settings.

    Args:
        base: the run without a search.
        trial: who chooses; None: every setting stays as it is in `base`.
    """

    def __init__(self, base: Config, trial: BaseTrial | None) -> None:
        self.base, self.trial = base, trial
        self.values: dict[str, Any] = {}

    def real(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number in [low, high]; `log` where its order of magnitude matters, which zero has not."""
        own = float(get_setting(self.base, name))
        if log and own == 0:
            return own
        low, high = min(low, own), max(high, own)
        value = self.trial.suggest_float(name, low, high, log=log) if self.trial else own
        self.values[name] = value
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        own = get_setting(self.base, name)
        low, high = min(low, own), max(high, own)
        self.values[name] = self.trial.suggest_int(name, low, high) if self.trial else own
        return self.values[name]

    def one_of(self, name: str, options: Sequence[Any]) -> Any:
        """One of a few values: names, switches, or sizes of which only some make sense."""
        own = get_setting(self.base, name)
        options = [*options] if own in options else [own, *options]
        self.values[name] = self.trial.suggest_categorical(name, options) if self.trial else own
        return self.values[name]


def clip_hrnet(search: Search) -> None:
    """`clip-hrnet`: how wide its branches and its head are, and what the box is trained for."""
    part = "model.clip_hrnet"
    optimisation(search)
    search.one_of(f"{part}.clip_channels", (32, 64, 128))
    search.one_of(f"{part}.hrnet_channels", (32, 64, 128))
    search.one_of(f"{part}.fused_channels", (128, 192, 256))
    search.one_of(f"{part}.hidden", (128, 256, 512))
    search.real(f"{part}.dropout", 0.0, 0.5)
    box_loss(search, part)
    fine_tuning(search, hrnet=True)


def clip_rpn_concat(search: Search) -> None:
    """`clip-rpn-concat`: the fused map, and which anchors are trained on."""
    part = "model.clip_rpn"
    optimisation(search)
    search.one_of(f"{part}.channels", (128, 256, 512))
    search.real(f"{part}.foreground_iou", 0.5, 0.8)
    search.real(f"{part}.background_iou", 0.1, 0.4)  # below every foreground_iou
    search.one_of(f"{part}.sampled_anchors", (64, 128, 256))
    search.real(f"{part}.positive_share", 0.25, 0.75)
    search.real(f"{part}.objectness_weight", 0.3, 3.0, log=True)
    search.real(f"{part}.box_weight", 0.3, 10.0, log=True)
    fine_tuning(search, hrnet=False)


def clip_rpn_attention(search: Search) -> None:
    """The same with attention: also its size, and whether it looks at words."""
    part = "model.clip_rpn"
    clip_rpn_concat(search)
    search.one_of(f"{part}.heads", (4, 8, 16))  # they divide every number of channels above
    search.one_of(f"{part}.feed_forward", (256, 512, 1024))
    search.real(f"{part}.dropout", 0.0, 0.5)
    if not search.base.train.cached:  # pooled or by word: other text features, another cache
        search.one_of(f"{part}.attend_to", ("pooled", "tokens"))


def dense_grounder(search: Search) -> None:
    """The flagship: depth and width of the fusion, and the weights of what it is trained for."""
    part = "model.dense_grounder"
    optimisation(search)
    search.one_of("train.ema", (0.0, 0.99, 0.999))
    pyramid(search)
    search.whole(f"{part}.blocks", 1, 6)  # fusion depth
    search.one_of(f"{part}.heads", (4, 8))
    search.one_of(f"{part}.feed_forward", (256, 512, 1024))
    search.real(f"{part}.dropout", 0.0, 0.4)
    search.one_of(f"{part}.coordinates", (True, False))
    box_loss(search, part, delta=False)
    search.real(f"{part}.heatmap_weight", 0.1, 3.0, log=True)
    search.real(f"{part}.cell_weight", 0.1, 2.0, log=True)
    search.real(f"{part}.score_weight", 0.03, 1.0, log=True)
    if search.base.data.absent:  # without phrases that fit nothing there is nothing to weigh
        search.real(f"{part}.presence_weight", 0.1, 2.0, log=True)
    if not search.base.train.cached:
        search.one_of(f"{part}.words", (True, False))
    fine_tuning(search, hrnet=search.base.model.pyramid.hrnet)


def transvg(search: Search) -> None:
    """The transformer fusion: its depth, width and regularisation."""
    part = "model.transvg"
    optimisation(search)
    search.one_of("train.ema", (0.0, 0.99, 0.999))
    pyramid(search)
    search.whole(f"{part}.layers", 1, 8)  # fusion depth
    search.one_of(f"{part}.channels", (128, 192, 256, 384))
    search.one_of(f"{part}.heads", (4, 8))
    search.one_of(f"{part}.feed_forward", (256, 512, 1024, 2048))
    search.real(f"{part}.dropout", 0.0, 0.4)
    box_loss(search, part, delta=False)
    fine_tuning(search, hrnet=search.base.model.pyramid.hrnet)


SPACES: dict[str, Callable[[Search], None]] = {
    "clip-hrnet": clip_hrnet,
    "clip-rpn-concat": clip_rpn_concat,
    "clip-rpn-attention": clip_rpn_attention,
    "dense-grounder": dense_grounder,
    "transvg": transvg,
}


def optimisation(search: Search) -> None:
    """What all models have: rate of the head, its warm-up, weight decay."""
    search.real("train.lr", 1e-4, 1e-2, log=True)
    search.real("train.warmup", 0.0, 0.3)
    if search.base.train.optimizer == "adamw":  # in plain Adam it is another thing
        search.real("train.weight_decay", 1e-4, 0.2, log=True)


def box_loss(search: Search, part: str, delta: bool = True) -> None:
    """Which loss of boxes and its weight; where it is Huber's, also where that turns linear."""
    kind = search.one_of(f"{part}.box_loss", BOX_LOSSES)
    if delta and kind == "huber":
        search.real(f"{part}.huber_delta", 0.02, 0.5, log=True)
    search.real(f"{part}.box_weight", 0.3, 3.0, log=True)


def pyramid(search: Search) -> None:
    """The merged map; which levels it merges stays, because they are in the feature cache."""
    search.one_of("model.pyramid.channels", (128, 192, 256, 384))
    search.whole("model.pyramid.blocks", 0, 3)


def fine_tuning(search: Search, hrnet: bool) -> None:
    """How much of the backbones trains, and how fast; frozen ones of a cached run stay as they are."""
    train, clip = search.base.train, search.base.model.clip
    if train.cached or clip.weights == "random":  # random backbones have to be trained in full
        return
    lora = ("lora",) if find_spec("peft") else ()
    modes = [search.one_of("model.clip.tuning", ("frozen", "norms", "last", *lora, "full"))]
    modes.append(search.one_of("model.clip.text_tuning", ("frozen", "norms", "last", *lora, "full")))
    if hrnet:
        modes.append(search.one_of("model.hrnet.tuning", ("frozen", "norms", "last", "full")))
    if set(modes) != {"frozen"}:
        search.real("train.backbone_lr", 1e-6, 1e-3, log=True)
        search.real("train.layer_decay", 0.6, 1.0)
    if "lora" in modes:
        search.one_of("model.clip.lora_rank", (4, 8, 16))


def suggest(base: Config, trial: BaseTrial) -> Config:
    """`base` with what the trial chose of its model's space.

    Args:
        base: the run without a search.
        trial: of Optuna; a `FixedTrial` of a trial's parameters gives that trial's config again.

    Raises:
        ConfigError: the model has no space, or the choices do not go together.
    """
    search = Search(base, trial)
    _space(base)(search)
    return set_fields(base, **{name.replace(".", "__"): value for name, value in search.values.items()})


def own_parameters(base: Config) -> dict[str, Any]:
    """The parameters that a trial would have to choose to be the run without a search."""
    search = Search(base, None)
    _space(base)(search)
    return search.values


def get_setting(config: Config, name: str) -> Any:
    """The value of a dotted name: `get_setting(config, "train.lr")`."""
    return reduce(getattr, name.split("."), config)


def _space(base: Config) -> Callable[[Search], None]:
    if base.model.name not in SPACES:
        raise ConfigError(f"no search space for model {base.model.name!r}{nearest(base.model.name, SPACES)}")
    return SPACES[base.model.name]
