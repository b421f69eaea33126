"""From a config to batches: the splits as examples, and loaders of pictures or of cached features."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from vg_utils.config import Config, ConfigError
from vg_utils.data import GroundingExample, Report, load_examples
from vg_utils.data.batches import GroundingDataset, GroundingLoader, make_loader
from vg_utils.data.resident import ResidentPictures
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.models.base import GroundingModel
from vg_utils.training.features import cache_features, feature_loader


def load_split(config: Config, split: str) -> list[GroundingExample]:
    """The examples of a split as the config wants them (partition, strictness, limit)."""
    data, report = config.data, Report()
    examples = load_examples(data.root, split, data.partition or None, data.strict, report)
    if report.total:
        print(f"{data.root}, {split}: {report}")
    return examples[: data.limit_images] if data.limit_images else examples


def make_loaders(
    config: Config,
    model: GroundingModel,
    train: Sequence[GroundingExample] | ResidentPictures,
    val: Sequence[GroundingExample] | ResidentPictures,
    accelerator: Accelerator,
    progress: bool,
) -> tuple[GroundingLoader, GroundingLoader]:
    """Batches to train on (augmented, shuffled) and to validate on (plain, in order).

    Raises:
        ConfigError: pictures that shall be both cached as features and resident.
    """
    data, settings = config.data, config.train
    absent = data.absent if model.learns_presence else 0
    plain = EvalTransform(config.model.image_size)
    views = {name: getattr(data, name) for name in ("flip", "jitter", "recolor", "scale")}
    augmented = TrainTransform(config.model.image_size, **views)
    transform = plain if settings.cached and settings.cache_views == 1 else augmented
    sizes = {"batch_images": settings.batch_images}
    pictures = settings.epoch_images or len(examples_of(train))
    alone = pictures % settings.batch_images == 1 and pictures > 1  # BatchNorm learns nothing from one
    shuffled = {"shuffle": True, "seed": settings.seed, "drop_last": alone}
    shuffled |= {"per_epoch": settings.epoch_images}
    every = None if absent else 0  # validation looks at all phrases that fit nothing, or at none
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    if data.resident or isinstance(train, ResidentPictures):
        if settings.cached:
            raise ConfigError("data.resident and train.cached: expected one of them, got both")
        hold = {"device": accelerator.device, "workers": data.workers, "progress": progress}
        if not isinstance(train, ResidentPictures):
            train = ResidentPictures(train, config.model.image_size, model.tokenizer, **hold)
        if not isinstance(val, ResidentPictures):
            val = ResidentPictures(val[mine], config.model.image_size, model.tokenizer, **hold)
        limits = {"max_expressions": data.max_expressions, "absent": absent}
        return (
            train.loader(transform=augmented, **shuffled, **sizes, **limits),
            val.loader(transform=plain, shuffle=False, **sizes, absent=every),
        )
    train_set = GroundingDataset(train, transform, settings.seed, data.max_expressions, absent)
    val_set = GroundingDataset(val[mine], plain, absent=every)
    if not settings.cached:
        workers = {"workers": data.workers}
        return (
            make_loader(train_set, model.tokenizer, **shuffled, **sizes, **workers),
            make_loader(val_set, model.tokenizer, shuffle=False, **sizes, **workers),
        )
    options = {"device": accelerator.device, "workers": data.workers, "progress": progress}
    with accelerator.main_process_first():  # the others find what the first has made
        views = cache_features(train_set, model, data.features, views=settings.cache_views, **options)
    val_views = cache_features(val_set, model, data.features, **options)
    return (
        feature_loader(views, **shuffled, **sizes),
        feature_loader(val_views, shuffle=False, **sizes),
    )


def examples_of(split: Sequence[GroundingExample] | ResidentPictures) -> Sequence[GroundingExample]:
    """The records of a split, whether or not its pictures are held on the device."""
    return split.examples if isinstance(split, ResidentPictures) else split
