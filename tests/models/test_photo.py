"""The backbone for photographs: its shapes, its reading of texts, what trains, and its weights in 8 bits."""

from __future__ import annotations

import pickle
from functools import cache

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.photo_weights import bert_weights, image_weights
from tests.models.test_clip import pictures, trainable, under, wake
from vg_utils.config import ClipConfig, ConfigError
from vg_utils.models.backbones import WeightsError
from vg_utils.models.finetuning import parameters_of
from vg_utils.models.minilm import MiniLM, mean_of_tokens
from vg_utils.models.photo import IMAGE_NET, KEPT_WHOLE, PHOTOS, PhotoBackbone
from vg_utils.models.shipped import pack

SIZE = 64
PHRASES = ["the dog", "the giraffe that looks over the fence, left of the two smaller ones in the shade"]
TUNINGS = ("frozen", "norms", "last", "lora", "full")


def photo_backbone(image: str = "frozen", text: str = "frozen", weights: str = "random") -> PhotoBackbone:
    torch.manual_seed(0)
    return wake(PhotoBackbone(ClipConfig(PHOTOS, weights, image, text), SIZE)).eval()


@cache
def frozen() -> PhotoBackbone:
    return photo_backbone()


# features


@torch.no_grad()
def test_maps_and_vectors_have_their_shapes():
    backbone = frozen()
    for size in (SIZE, 96):
        maps = backbone.encode_maps(pictures(2, size), (1, 2, 3, 4))
        for level_map, (channels, stride) in zip(maps, backbone.levels.values(), strict=True):
            assert level_map.shape == (2, channels, size // stride, size // stride)
    assert [stride for _, stride in backbone.levels.values()] == [4, 8, 16, 32]
    assert (backbone.map_channels, backbone.stride) == backbone.levels[4]
    high, low = backbone.encode_maps(pictures(2, 96), (3, 1))  # in the order that is asked for
    assert torch.equal(high, maps[2])
    assert torch.equal(low, maps[0])
    assert backbone.encode_images(pictures()).shape == (2, backbone.embed_dim)
    text = backbone.encode_texts(backbone.tokenizer(PHRASES))
    assert text.pooled.shape == (2, backbone.embed_dim)
    assert text.tokens.shape == (2, 21, backbone.text_width)
    assert text.mask.sum(1).tolist() == [4, 21]


@torch.no_grad()
def test_images_are_timms_own_on_normalised_input_of_bytes_or_floats():
    net, backbone = wake(timm.create_model(IMAGE_NET)).eval(), photo_backbone()
    mapped = image_weights(net.state_dict())
    classifier = {name: mapped.pop(name) for name in [name for name in mapped if "classifier" in name]}
    backbone.load_state_dict(backbone.state_dict() | mapped)
    images = pictures(2, 96)
    expected = net((images.float() - 127) / 128)
    for same in (images, images.float() / 255):
        (last,) = backbone.encode_maps(same)
        features = backbone.image_head(last)
        logits = nn.functional.linear(features, *classifier.values())
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_texts_are_berts_own():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=16,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in bert.parameters():  # as if it had learned something
        parameter.add_(torch.randn_like(parameter) * 0.1)
    pieces = [0, *range(49, 9, -1)]
    ours = MiniLM(len(pieces), 12, 24, 4, 2)
    ours.load_state_dict(bert_weights(bert.state_dict(), pieces, [0, 2], 12))
    bert.encoder.layer = nn.ModuleList([bert.encoder.layer[0], bert.encoder.layer[2]])
    tokens = torch.randint(1, len(pieces), (3, 9))
    tokens[0, 4:], tokens[1, 7:] = 0, 0
    mask = tokens != 0
    expected = bert(torch.tensor(pieces)[tokens], attention_mask=mask.long()).last_hidden_state
    found = ours(tokens, mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-4, atol=1e-5)
    mean = torch.stack([row[real].mean(0) for row, real in zip(expected, mask, strict=True)])
    torch.testing.assert_close(mean_of_tokens(found, mask), mean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_changes_no_answer():
    backbone = frozen()
    alone = backbone.encode_texts(backbone.tokenizer(PHRASES[:1]))
    among = backbone.encode_texts(backbone.tokenizer(PHRASES))
    torch.testing.assert_close(among.pooled[:1], alone.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(among.tokens[:1, :4], alone.tokens, rtol=0, atol=1e-5)
    assert not torch.allclose(among.pooled[0], among.pooled[1], atol=1e-2)
    empty = backbone.encode_texts(backbone.tokenizer([""]))
    assert empty.pooled.isfinite().all()


# what trains


@pytest.mark.parametrize("tuning", TUNINGS)
def test_what_the_tuning_says_trains_and_has_a_gradient(tuning):
    """DistributedDataParallel waits for the gradient of every weight that wants one."""
    backbone = photo_backbone(tuning, tuning).train()
    loss = backbone.encode_images(pictures()).square().sum()
    loss = loss + backbone.encode_texts(backbone.tokenizer(PHRASES)).pooled.square().sum()
    if loss.requires_grad:
        loss.backward()
    trained = trainable(backbone)
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trained
    everything = set(dict(backbone.named_parameters()))
    if tuning == "frozen":
        assert not trained
    elif tuning == "full":
        assert trained == everything - {"logit_scale"}
    elif tuning == "last":
        of_text = (f"text.layers.{len(backbone.text.layers) - 1}.", "text_projection.")
        assert trained == under(backbone, "image.blocks.5.", "image.blocks.6.", "image_", *of_text)
    elif tuning == "norms":
        shares = ("bn", "norm", "image_head.1.", "text.positional_embedding")
        assert trained == {name for name in everything if any(share in name for share in shares)}
    else:
        assert all("lora_" in name for name in trained)
        assert sum(name.startswith("text.layers.") for name in trained) == 2 * 5 * len(backbone.text.layers)


def test_towers_hold_every_weight_once():
    backbone = frozen()
    found = [p for tower in backbone.towers() for block in tower for p in parameters_of(block)]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in backbone.parameters()} - {id(backbone.logit_scale)}


@pytest.mark.parametrize("levels", [(1,), (2, 3), (4,)])
def test_only_what_the_levels_pass_through_trains(levels):
    backbone = photo_backbone("full").train()
    backbone.freeze_unread(levels, pooled_images=False, pooled_texts=True)
    sum(level.square().sum() for level in backbone.encode_maps(pictures(), levels)).backward()
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trainable(backbone)
    assert trainable(backbone)


# weights


def test_weights_come_back_from_a_file_and_from_8_bits(tmp_path):
    backbone = photo_backbone()
    plain, packed = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    save_file(backbone.state_dict(), plain)
    save_file(pack(backbone, smallest=KEPT_WHOLE), packed)
    assert packed.stat().st_size < plain.stat().st_size * 0.28
    assert load_file(packed)["text.words.weight"].shape == backbone.text.words.weight.shape
    tokens, images = backbone.tokenizer(PHRASES), pictures()
    same, rounded = (photo_weights(path) for path in (plain, packed))
    with torch.no_grad():
        assert torch.equal(same.encode_images(images), backbone.encode_images(images))
        for encode in (lambda m: m.encode_images(images), lambda m: m.encode_texts(tokens).pooled):
            assert torch.cosine_similarity(encode(rounded), encode(backbone)).min() > 0.99


def photo_weights(path) -> PhotoBackbone:
    return PhotoBackbone(ClipConfig(PHOTOS, str(path)), SIZE).eval()


def test_weights_that_are_not_there_or_do_not_fit_are_an_error_with_theways_out(tmp_path):
    state = frozen().state_dict()
    del state["text.norm.weight"]
    save_file(state, tmp_path / "less.safetensors")
    for path, reason in (
        (tmp_path / "none.safetensors", "none"),
        (tmp_path / "less.safetensors", "text.norm"),
    ):
        with pytest.raises(WeightsError, match=rf"{reason}.*--model.clip.weights FILE"):
            photo_weights(path)
    with pytest.raises(ConfigError, match="got 'openai'"):
        PhotoBackbone(ClipConfig(PHOTOS), SIZE)


def test_a_backbone_can_be_copied_to_another_process():
    again = pickle.loads(pickle.dumps(frozen()))
    assert again.tokenizer == frozen().tokenizer
    assert len(pickle.dumps(frozen().tokenizer)) < 1000
