"""From a config to batches: the splits as examples, and loaders of images or of cached features."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from accelerate import Accelerator

from vg_utils.config import Config, ConfigError
from vg_utils.data import DataError, GroundingExample, Report, load_examples
from vg_utils.data.batches import Batch, GroundingDataset, GroundingLoader, make_loader
from vg_utils.data.examples import one_line
from vg_utils.data.resident import ResidentPictures
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.models.base import GroundingModel
from vg_utils.training.features import cache_features, feature_loader

# Words that the text encoder may not know: beyond these, phrases differ in what is the same to it.
UNKNOWN_SHARE, UNKNOWN_WORDS = 0.01, 20
A_FEW = 3  # different ones are never too many
NEVER_CUT = 75  # bytes: text encoders read so many tokens or more, and a token is a byte at least

Examples = Sequence[GroundingExample]
Loaders = tuple[GroundingLoader, GroundingLoader | Sequence[Batch]]  # to train on, to validate on


def load_split(config: Config, split: str) -> list[GroundingExample]:
    """The examples of a split as the config wants them (partition, strictness, limit).

    Raises:
        DataError: no image of the split can be used, or as `load_examples` says.
    """
    data, report = config.data, Report()
    examples = load_examples(data.root, split, data.partition or None, data.strict, report, check_images=True)
    if not examples:
        raise DataError(f"{data.root}: no usable expression in split {split!r} ({report})")
    if report.worth_saying and os.environ.get("RANK", "0") == "0":  # once, whatever the number of processes
        print(f"{data.root}, {split}: {report}")
    return examples[: data.limit_images] if data.limit_images else examples


def make_loaders(
    config: Config,
    model: GroundingModel,
    train: Examples | ResidentPictures,
    val: Examples | ResidentPictures,
    accelerator: Accelerator,
    progress: bool,
) -> Loaders:
    """Batches to train on (augmented, shuffled) and to validate on (plain, in order).

    Each process validates its own share of the images: none, where there are fewer of them than processes.

    Raises:
        ConfigError: images that shall be both cached as features and resident, batches too small for
            the model, or phrases in words that the text encoder does not know.
        DataError: a split without images.
    """
    check_splits(config, model, train, val)
    say_cut(config, model, examples_of(train))
    if isinstance(val, ResidentPictures):
        if accelerator.num_processes > 1:
            raise ConfigError("expected one process for images that are resident already, got several")
    else:
        val = val[accelerator.process_index :: accelerator.num_processes]
    if config.data.resident or isinstance(train, ResidentPictures):
        return _resident_loaders(config, model, train, val, accelerator, progress)
    if config.train.cached:
        return _cached_loaders(config, model, train, val, accelerator, progress)
    return _file_loaders(config, model, train, val)


def check_splits(
    config: Config,
    model: GroundingModel,
    train: Examples | ResidentPictures,
    val: Examples | ResidentPictures,
) -> None:
    """Raise, as `make_loaders` says, what can be told without reading an image."""
    settings, least = config.train, model.smallest_batch
    if settings.cached and (config.data.resident or isinstance(train, ResidentPictures)):
        raise ConfigError("data.resident and train.cached: expected one of them, got both")
    for name, split in (("train", train), ("val", val)):
        if not len(examples_of(split)):
            raise DataError(f"{config.data.root}: expected images in split {name!r}, found none")
    limits = {
        "train.batch_images": settings.batch_images,
        "train.epoch_images": settings.epoch_images or least,  # 0: all of them
        f"{config.data.root}, images of split 'train'": len(examples_of(train)),
    }
    for name, count in limits.items():
        if count < least:
            raise ConfigError(
                f"{name}: expected {least} or more for {config.model.name}, whose batch normalisation "
                f"learns nothing from one image, got {count}"
            )
    if config.model.clip.name != "photos":  # to which nearly every word means something
        check_words(config, model, examples_of(train))


def check_words(config: Config, model: GroundingModel, train: Examples) -> None:
    """Raise a ConfigError if the phrases have more than a few words that mean nothing to the text encoder.

    RefScenes' own knows some hundred words; "giraffe" and "zebra" are the same to it, so nothing is learned.
    """
    texts = [expression.text for example in train for expression in example.expressions]
    unknown = Counter(chain.from_iterable(model.unknown_words(texts)))
    share = unknown.total() / max(1, sum(len(text.split()) for text in texts))
    if len(unknown) <= A_FEW or (len(unknown) <= UNKNOWN_WORDS and share <= UNKNOWN_SHARE):
        return
    some = ", ".join(word for word, _ in unknown.most_common(5))
    raise ConfigError(
        f"{config.data.root}: expected phrases in words that the text encoder {config.model.clip.name} "
        f"knows, got {len(unknown):,} others, {share:.0%} of all ({some}, ...): train with --preset photos"
    )


def say_cut(config: Config, model: GroundingModel, train: Examples) -> None:
    """Print how many phrases are longer than the text encoder reads, and the first of them."""
    texts = [phrase.text for example in train for phrase in (*example.expressions, *example.absent)]
    cut = [text for text in texts if len(text.encode()) > NEVER_CUT and model.tokenizer.cuts(text)]
    if cut and os.environ.get("RANK", "0") == "0":
        print(
            f"{config.data.root}: {len(cut)} of {len(texts)} phrases are longer than the text encoder reads, "
            f"their ends are lost (first: {one_line(cut[0], 300)})"
        )


def _file_loaders(config: Config, model: GroundingModel, train: Examples, val: Examples) -> Loaders:
    """Images decoded anew in every epoch."""
    data, settings = config.data, config.train
    train_set, val_set = _datasets(config, model, train, val)
    to_train = make_loader(
        train_set,
        model.tokenizer,
        settings.batch_images,
        shuffle=True,
        workers=data.workers,
        seed=settings.seed,
        drop_last=_leaves_one(config, len(train)),
        per_epoch=settings.epoch_images,
    )
    if not val:
        return to_train, []
    return to_train, make_loader(
        val_set, model.tokenizer, settings.batch_images, shuffle=False, workers=data.workers
    )


def _cached_loaders(
    config: Config,
    model: GroundingModel,
    train: Examples,
    val: Examples,
    accelerator: Accelerator,
    progress: bool,
) -> Loaders:
    """What frozen backbones say of the images, computed where it is not on disk yet."""
    data, settings = config.data, config.train
    train_set, val_set = _datasets(config, model, train, val)

    def cached(dataset: GroundingDataset, views: int) -> list:
        return cache_features(
            dataset,
            model,
            data.features,
            accelerator.device,
            views,
            workers=data.workers,
            progress=progress,
        )

    with accelerator.main_process_first():  # the others find what the first has made
        views = cached(train_set, settings.cache_views)
    to_train = feature_loader(
        views,
        settings.batch_images,
        shuffle=True,
        seed=settings.seed,
        drop_last=_leaves_one(config, len(train)),
        per_epoch=settings.epoch_images,
    )
    return to_train, feature_loader(cached(val_set, 1), settings.batch_images, shuffle=False) if val else []


def _resident_loaders(
    config: Config,
    model: GroundingModel,
    train: Examples | ResidentPictures,
    val: Examples | ResidentPictures,
    accelerator: Accelerator,
    progress: bool,
) -> Loaders:
    """Images decoded once, held and augmented on the device."""
    data, settings = config.data, config.train
    absent, every = _absent(config, model)

    def held(split: Examples | ResidentPictures) -> ResidentPictures:
        if isinstance(split, ResidentPictures):
            return split
        size = config.model.image_size
        return ResidentPictures(split, size, model.tokenizer, accelerator.device, data.workers, progress)

    to_train = held(train).loader(
        settings.batch_images,
        _augmented(config),
        shuffle=True,
        seed=settings.seed,
        max_expressions=data.max_expressions,
        absent=absent,
        drop_last=_leaves_one(config, len(examples_of(train))),
        per_epoch=settings.epoch_images,
    )
    if not examples_of(val):
        return to_train, []
    plain = EvalTransform(config.model.image_size)
    return to_train, held(val).loader(settings.batch_images, plain, shuffle=False, absent=every)


def _datasets(
    config: Config, model: GroundingModel, train: Examples, val: Examples
) -> tuple[GroundingDataset, GroundingDataset]:
    """Both splits under their transforms; a cache of one view has the plain letterbox."""
    plain, (absent, every) = EvalTransform(config.model.image_size), _absent(config, model)
    one_view = config.train.cached and config.train.cache_views == 1
    transform = plain if one_view else _augmented(config)
    train_set = GroundingDataset(train, transform, config.train.seed, config.data.max_expressions, absent)
    return train_set, GroundingDataset(val, plain, absent=every)


def _augmented(config: Config) -> TrainTransform:
    data = config.data
    return TrainTransform(
        config.model.image_size, flip=data.flip, jitter=data.jitter, recolor=data.recolor, scale=data.scale
    )


def _absent(config: Config, model: GroundingModel) -> tuple[int, int | None]:
    """Phrases that fit nothing, of an image in training, and in validation: all of them (None), or none."""
    absent = config.data.absent if model.learns_presence else 0
    return absent, None if absent else 0


def _leaves_one(config: Config, images: int) -> bool:
    """Whether the last batch of an epoch would hold one image, from which BatchNorm learns nothing."""
    images = config.train.epoch_images or images
    return images > 1 and images % config.train.batch_images == 1


def examples_of(split: Examples | ResidentPictures) -> Examples:
    """The records of a split, whether or not its images are held on the device."""
    return split.examples if isinstance(split, ResidentPictures) else split
