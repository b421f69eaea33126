"""The feature cache: the same numbers as without it, found again, never stale, never code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import TOKENIZER
from vg_utils.config import ConfigError, set_fields
from vg_utils.data.batches import GroundingDataset, make_loader
from vg_utils.data.examples import DataError
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.models import build_model
from vg_utils.training.features import cache_features, feature_loader
from vg_utils.training.loaders import load_split


@pytest.fixture(scope="module")
def images(tiny_scenes, tmp_path_factory) -> Path:
    """Images of the module's own, to be changed."""
    root = tmp_path_factory.mktemp("scenes_copy") / "scenes"
    shutil.copytree(tiny_scenes, root)
    return root


@pytest.fixture
def setting(tiny_config, images, untrained):
    """A config, eight images, and a model with shipped backbones."""
    config = set_fields(tiny_config, data__root=str(images))
    return config, load_split(config, "train"), deepcopy(untrained("clip-hrnet"))


def plain(examples) -> GroundingDataset:
    return GroundingDataset(examples, EvalTransform(64))


def count_calls(monkeypatch, model) -> Counter:
    """Images encoded from now on, not counting the single one that asks what is trained."""
    calls, encode = Counter(), model.encode_images

    def counted(pictures):
        calls["pictures"] += len(pictures) if len(pictures) > 1 else 0
        return encode(pictures)

    monkeypatch.setattr(model, "encode_images", counted)
    return calls


def cached(dataset, model, config, **options) -> list[Path]:
    return cache_features(dataset, model, config.data.features, progress=False, **options)


def test_cached_features_give_the_same_outputs(setting):
    config, examples, model = setting
    paths = cached(plain(examples), model, config)
    with_cache = list(feature_loader(paths, 3, shuffle=False))
    without = list(make_loader(plain(examples), TOKENIZER, 3, shuffle=False))
    assert len(with_cache) == len(without) == 3
    for kept, batch in zip(with_cache, without, strict=True):
        kept = kept.to("cpu")
        with torch.no_grad():
            expected = model.predict(batch.images, batch.tokens, batch.image_index)
            got = model(kept.images, kept.tokens, kept.image_index)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "attend_to"),
    [
        ("clip-rpn-concat", "pooled"),
        ("clip-rpn-attention", "pooled"),
        ("clip-rpn-attention", "tokens"),
        ("text-only", "pooled"),
    ],
)
def test_other_models_can_be_cached(setting, name, attend_to):
    config, examples, _ = setting
    settings = set_fields(config, model__name=name, model__clip_rpn__attend_to=attend_to).model
    model = build_model(name, settings)
    paths = cached(plain(examples[:4]), model, config, batch_images=2)
    (kept,) = feature_loader(paths, 4, shuffle=False)
    (batch,) = make_loader(plain(examples[:4]), TOKENIZER, 4, shuffle=False)
    kept = kept.to("cpu")
    with torch.no_grad():
        expected = model.eval().predict(batch.images, batch.tokens, batch.image_index)["boxes_cxcywh"]
        got = model(kept.images, kept.tokens, kept.image_index)["boxes_cxcywh"]
    close = ((got - expected).abs() < 5e-3).all(dim=1)  # two proposals with equal scores may change places
    assert close.float().mean() > 0.8


def test_batches_are_those_of_the_pictures_themselves(setting):
    config, examples, model = setting
    augmented = TrainTransform(64, flip=0.5, jitter=0.1)
    dataset = GroundingDataset(examples, augmented, seed=5, max_expressions=3)
    views = cached(dataset, model, config, views=2)
    kept, pictures = feature_loader(views, 3, True, seed=5), make_loader(dataset, TOKENIZER, 3, True, seed=5)
    for epoch in range(2):
        kept.set_epoch(epoch)
        pictures.set_epoch(epoch)
        for a, b in zip(kept, pictures, strict=True):
            assert (a.image_ids, a.sent_ids, a.texts) == (b.image_ids, b.sent_ids, b.texts)
            for field in (
                "image_index",
                "target_boxes_cxcywh",
                "target_boxes_xyxy",
                "letterboxes",
                "sizes_wh",
            ):
                assert torch.equal(getattr(a, field), getattr(b, field)), field


def test_views_take_turns(setting):
    config, examples, model = setting
    views = cached(GroundingDataset(examples[:4], TrainTransform(64)), model, config, views=2)
    loader = feature_loader(views, 4, shuffle=False)
    boxes = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        boxes.append(next(iter(loader)).target_boxes_cxcywh)
    assert torch.equal(boxes[0], boxes[2])
    assert torch.equal(boxes[1], boxes[3])
    assert not torch.equal(boxes[0], boxes[1])


def test_tokens_are_kept_where_the_text_encoder_learns(setting):
    config, examples, _ = setting
    model = build_model("clip-hrnet", set_fields(config, model__clip__text_tuning="last").model)
    (kept,) = feature_loader(cached(plain(examples), model, config, batch_images=2), 8, shuffle=False)
    (batch,) = make_loader(plain(examples), TOKENIZER, 8, shuffle=False)
    assert torch.equal(kept.tokens, batch.tokens)
    kept = kept.to("cpu")
    model(kept.images, model.encode_texts(kept.tokens), kept.image_index)["boxes_cxcywh"].sum().backward()
    assert model.clip.clip.text_projection.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", ["clip", "hrnet"])
def test_features_of_an_image_encoder_that_learns_are_refused(setting, backbone):
    config, examples, _ = setting
    model = build_model("clip-hrnet", set_fields(config, **{f"model__{backbone}__tuning": "last"}).model)
    with pytest.raises(ConfigError, match=r"train\.cached.*frozen"):
        cached(plain(examples), model, config)
    assert not Path(config.data.features).exists()


def test_a_cache_is_found_again(setting, monkeypatch):
    config, examples, model = setting
    first = cached(plain(examples), model, config)
    calls = count_calls(monkeypatch, model)
    assert cached(plain(examples), model, config) == first
    assert calls["pictures"] == 0
    again = build_model("clip-hrnet", set_fields(config, model__clip_hrnet__hidden=32).model)  # another head
    assert cached(plain(examples), again, config) == first


def test_a_stale_cache_is_not_used(setting, monkeypatch):
    config, examples, model = setting
    dataset = plain(examples)
    seen = set(cached(dataset, model, config))

    def is_new(dataset, model=model) -> bool:
        paths = set(cached(dataset, model, config))
        new = not paths & seen
        seen.update(paths)
        return new

    assert is_new(GroundingDataset(examples, TrainTransform(64)))
    assert is_new(GroundingDataset(examples, TrainTransform(64, flip=0.1)))
    assert is_new(GroundingDataset(examples, TrainTransform(64), seed=1))
    assert is_new(GroundingDataset(examples, EvalTransform(64), max_expressions=2))
    assert is_new(plain(examples[:7]))
    assert is_new(plain(examples[::-1]))
    assert is_new(
        GroundingDataset(examples, EvalTransform(96)), build_model("clip-hrnet", _sized(config, 96))
    )
    spoken = examples[0].expressions[0]._replace(text="something else")
    other_words = replace(examples[0], expressions=(spoken, *examples[0].expressions[1:]))
    assert is_new(plain([other_words, *examples[1:]]))
    moved = examples[0].expressions[0]._replace(box_xyxy=(1.0, 2.0, 30.0, 40.0))
    other_box = replace(examples[0], expressions=(moved, *examples[0].expressions[1:]))
    assert is_new(plain([other_box, *examples[1:]]))
    with torch.no_grad():  # one weight out of millions, and one buffer
        model.hrnet.net.conv1.weight[0, 0, 0, 0] += 0.1
    assert is_new(dataset)
    model.hrnet.net.bn1.running_mean[0] += 0.1
    assert is_new(dataset)
    shutil.copyfile(examples[1].image, examples[0].image)  # the same name, another image
    calls = count_calls(monkeypatch, model)
    assert is_new(dataset)
    assert calls["pictures"] == 8


def changed(monkeypatch, model, encode: str, change) -> None:
    """From now on what `encode` gives goes through `change(name, features, number of the call)`."""
    plain_encode, calls = getattr(model, encode), Counter()

    def encoded(inputs):
        calls["n"] += len(inputs) > 1  # the single one asks what is trained
        return {name: change(name, t, calls["n"]) for name, t in plain_encode(inputs).items()}

    monkeypatch.setattr(model, encode, encoded)


def test_features_beyond_float16_are_kept_whole(setting, monkeypatch):
    """One batch of three, of images and of phrases, holds values that float16 has no number for."""
    config, examples, model = setting
    (path,) = cached(plain(examples), model, config)
    small = next(iter(feature_loader([path], 8, shuffle=False)))

    def enlarge(name, value, call):
        return value * 1e6 if name in ("map", "vector") and call == 2 else value

    for encode in ("encode_images", "encode_texts"):
        changed(monkeypatch, model, encode, enlarge)
    Path(path).unlink()
    assert cached(plain(examples), model, config, batch_images=3) == [path]
    kept = next(iter(feature_loader([path], 8, shuffle=False)))
    second = slice(3, 6)
    for name, value in kept.images.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value[:3], small.images[name][:3].float(), rtol=2e-3, atol=1e-3)
        expected = 1e6 * small.images[name][second].float()
        torch.testing.assert_close(value[second], expected, rtol=2e-3, atol=1e3)
    (texts,) = kept.tokens.values()
    assert texts.dtype == torch.float32
    assert texts.abs().max() > 65504
    assert all(value.isfinite().all() for value in (*kept.images.values(), texts))
    assert {t.dtype for t in small.images.values()} == {torch.float16}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize(("encode", "named"), [("encode_images", "image"), ("encode_texts", "phrase")])
def test_features_that_are_not_finite_are_an_error_with_a_name(setting, monkeypatch, broken, encode, named):
    config, examples, model = setting

    def spoil(name, value, call):
        return torch.where(torch.arange(len(value)).view(-1, *[1] * (value.ndim - 1)) == 1, broken, value)

    changed(monkeypatch, model, encode, lambda *given: spoil(*given) if given[2] else given[1])
    second = examples[1].image_id if named == "image" else examples[0].expressions[1].text
    with pytest.raises(DataError, match=rf"expected finite features.*of {named} {re.escape(repr(second))}:"):
        cached(plain(examples), model, config)
    assert not list(Path(config.data.features).glob("*.pt"))


def _sized(config, size: int):
    return set_fields(config, model__image_size=size).model


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "empty", "checksum"])
def test_a_damaged_cache_is_noticed_and_made_again(setting, monkeypatch, damage):
    config, examples, model = setting
    (path,) = cached(plain(examples), model, config)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "truncate": content[:middle],
        "grow": content + b"x",
        "empty": b"",
    }
    if damage == "checksum":
        path.with_suffix(".json").write_text("[]")
    else:
        path.write_bytes(damaged[damage])
    calls = count_calls(monkeypatch, model)
    with pytest.warns(UserWarning, match="cache is damaged"):
        assert cached(plain(examples), model, config) == [path]
    assert calls["pictures"] == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(plain(examples), model, config)
    assert len(next(iter(feature_loader([path], 8, shuffle=False))).image_ids) == 8


def test_a_cache_that_was_killed_before_its_checksum_is_made_again(setting, monkeypatch):
    config, examples, model = setting
    (path,) = cached(plain(examples), model, config)
    path.with_suffix(".json").unlink()
    calls = count_calls(monkeypatch, model)
    cached(plain(examples), model, config)
    assert calls["pictures"] == 8


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_reading_a_cache_runs_no_code(setting, tmp_path, write):
    config, examples, model = setting
    (path,) = cached(plain(examples), model, config)
    trace = tmp_path / "executed"
    write({"image_features": Payload(trace)}, path)
    content = path.read_bytes()
    checksum = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.with_suffix(".json").write_text(json.dumps(checksum))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        feature_loader([path], 8, shuffle=False)
    with pytest.warns(UserWarning, match="cache is damaged"):
        cached(plain(examples), model, config)
    assert not trace.exists()
    assert len(next(iter(feature_loader([path], 8, shuffle=False))).image_ids) == 8
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # it would have
