"""The copy that answers: the same function as the model, whatever was folded, padded and cast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models.maps import batch_of, small_config
from vg_utils.config import HRNetConfig
from vg_utils.data import load_examples
from vg_utils.models import MODELS, build_model
from vg_utils.models.answering import COUNTS, LENGTHS, Answerer, padded
from vg_utils.models.base import GroundingModel
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.models.inference import cast_weights, fold_batch_norms, inference_copy, pad_channels

CPU = torch.device("cpu")
PHOTOS = {"model__clip__name": "photos", "model__clip__weights": "random", "model__pyramid__hrnet": False}


def built(name: str, **changes) -> GroundingModel:
    """In evaluation, with running statistics and scales of BatchNorm that are no identity."""
    torch.manual_seed(0)
    model = build_model(name, small_config(name, **changes).model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


@torch.inference_mode()
def answers(model: GroundingModel, batch) -> dict[str, torch.Tensor]:
    return model.predict(batch.images, batch.tokens, batch.image_index)


@pytest.fixture
def batch(tiny_scenes):
    return batch_of(load_examples(tiny_scenes, "train", strict=False)[:2])


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_answers_as_the_model(name, batch):
    model = built(name)
    made = inference_copy(model, CPU)
    assert not [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]  # each found its convolution
    torch.testing.assert_close(answers(made, batch), answers(model, batch), atol=2e-4, rtol=1e-3)
    assert not any(p.requires_grad for p in made.parameters())


def test_the_backbone_for_photographs_folds_as_well(batch):
    model = built("dense-grounder", **PHOTOS)
    batch = replace(batch, tokens=model.tokenizer(batch.texts))
    made = inference_copy(model, CPU)
    assert not [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(answers(made, batch), answers(model, batch), atol=2e-4, rtol=1e-3)


def test_channels_of_an_hrnet_are_made_multiples_of_eight():
    torch.manual_seed(0)
    net = HRNetBackbone(HRNetConfig("hrnet_w18_small", "random")).eval()  # branches of 18, 36, 72, 144
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = net(image)
        fold_batch_norms(net)
        pad_channels(net)
        torch.testing.assert_close(net(image), before, atol=1e-4, rtol=1e-3)
    assert not any(p.shape[0] % 8 for p in net.net.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_casting_once_gives_what_autocast_gives(name, batch):
    """To the bit: each operation sees the numbers that it saw before."""
    model = inference_copy(built(name), CPU)
    with torch.autocast("cpu", torch.bfloat16):
        expected = answers(model, batch)
        cast_weights(model, torch.bfloat16)
        assert {m.weight.dtype for m in model.modules() if isinstance(m, nn.Linear)} == {torch.bfloat16}
        torch.testing.assert_close(answers(model, batch), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", [*MODELS, "photos"])
def test_padded_phrases_have_the_same_answers(name, batch):
    model = built("dense-grounder", **PHOTOS) if name == "photos" else built(name)
    texts = ["the red cube", "the large sphere left of the green cylinder", "a cone"]
    tokens = model.tokenizer(texts)
    filled = padded(tokens, COUNTS, LENGTHS)
    assert filled.shape == (4, 16)
    answerer = Answerer(model, CPU)
    features = answerer.encode(batch.images[:1])
    plain, more = answerer.answer(features, tokens), answerer.answer(features, filled)
    assert plain.keys() == more.keys() >= {"boxes_cxcywh", "score"}
    torch.testing.assert_close({k: v[:3] for k, v in more.items()}, plain, atol=1e-5, rtol=1e-4)
    if name != "text-only":
        assert not torch.allclose(plain["boxes_cxcywh"][0], plain["boxes_cxcywh"][1])


@pytest.mark.parametrize("shape", [(1, 3), (3, 16), (5, 17), (32, 32), (33, 40)])
def test_padding_adds_and_never_takes(shape):
    tokens = torch.randint(1, 9, shape)
    filled = padded(tokens, COUNTS, LENGTHS)
    assert torch.equal(filled[: shape[0], : shape[1]], tokens)
    assert not filled[:, shape[1] :].any()
    assert filled.shape[0] in (*COUNTS, shape[0])
    assert filled.shape[1] in (*LENGTHS, shape[1])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_prepared_once_is_what_a_phrase_would_prepare(name, batch):
    model = built(name)
    with torch.inference_mode():
        images = model.encode_images(batch.images)
        texts = model.encode_texts(batch.tokens)
        prepared = model.prepare_images(images)
        torch.testing.assert_close(
            model(prepared, texts, batch.image_index), model(images, texts, batch.image_index)
        )


def test_answers_are_those_of_the_steps_for_several_images(batch):
    model = built("dense-grounder")
    answerer = Answerer(model, CPU)
    found = answerer.answer(answerer.encode(batch.images), batch.tokens, batch.image_index)
    steps = answers(model, batch)
    torch.testing.assert_close(found, {name: steps[name] for name in found})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_graphs_on_a_gpu_answer_as_the_steps_do(name, batch):
    model = built(name).cuda()
    device = torch.device("cuda")
    fast, plain = Answerer(model, device), Answerer(model, device, fast=False)
    one = batch.images[:1]
    expected = plain.answer(plain.encode(one), batch.tokens)
    for _ in range(4):  # launched, recorded, replayed
        found = fast.answer(fast.encode(one), batch.tokens)
        torch.testing.assert_close(found["boxes_cxcywh"], expected["boxes_cxcywh"], atol=0.02, rtol=0.02)
    assert fast._encode.works
    assert fast._ask.works
    assert fast._ask.recorded
