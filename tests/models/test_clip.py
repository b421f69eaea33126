"""CLIP and HRNet: features against the libraries' own, freezing, and weights in every form they come in."""

from __future__ import annotations

import copy
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import nn

from vg_utils.config import ClipConfig, ConfigError, HRNetConfig, ModelConfig
from vg_utils.models import build_model
from vg_utils.models.backbones import WeightsError, normalise
from vg_utils.models.clip import ClipBackbone, _resize_positions, load_clip, tokenize
from vg_utils.models.hrnet import HRNetBackbone, load_hrnet

SMALL_CLIP = ClipConfig(name="scenes-rn", weights="random")
SMALL_HRNET = HRNetConfig(name="scenes-hrnet", weights="random")
PHRASES = ["the red cube", "the small metal cone behind the large green sphere on the left", "a dog"]


def pictures(count: int = 2, size: int = 128) -> torch.Tensor:
    """uint8 (count, 3, size, size) noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def wake(module: nn.Module) -> nn.Module:
    """Weights of a network that has learned something: in CLIP's random trunk each branch ends in zeros."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1, generator=generator)
            part.running_mean.uniform_(-0.1, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1, generator=generator)
    return module


def clip_backbone(size: int = 128, **settings) -> ClipBackbone:
    torch.manual_seed(0)
    backbone = ClipBackbone(ClipConfig(**{"name": "scenes-rn", "weights": "random"} | settings), size)
    return wake(backbone).eval()


def trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def under(module: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(prefixes)}


# features


@torch.no_grad()
def test_texts_are_open_clips_own_with_and_without_padding():
    backbone = clip_backbone()
    full, trimmed = tokenize(PHRASES), tokenize(PHRASES, trim=True)
    assert full.shape == (3, 77)
    assert trimmed.shape[1] < 20
    expected = backbone.clip.encode_text(full)  # (3, 256)
    of_full, of_trimmed = backbone.encode_texts(full), backbone.encode_texts(trimmed)
    torch.testing.assert_close(of_full.pooled, expected)
    torch.testing.assert_close(of_trimmed.pooled, expected)
    torch.testing.assert_close(of_trimmed.tokens, of_full.tokens[:, : trimmed.shape[1]])
    assert of_trimmed.tokens.shape == (3, trimmed.shape[1], backbone.text_width)
    assert of_trimmed.mask.sum(1).tolist() == (full != 0).sum(1).tolist()
    intermediate = backbone.clip.forward_intermediates(
        text=full, text_indices=1, normalize_intermediates=True
    )
    torch.testing.assert_close(of_full.tokens, intermediate["text_intermediates"][-1])


@torch.no_grad()
def test_images_are_open_clips_own_on_normalised_input():
    backbone, images = clip_backbone(), pictures()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    expected = backbone.clip.encode_image((images.float() / 255 - mean) / std)
    pooled = backbone.encode_images(images)
    torch.testing.assert_close(pooled, expected)
    assert pooled.shape == (2, backbone.embed_dim)
    assert not torch.allclose(pooled[0], pooled[1], rtol=1e-3)


@torch.no_grad()
def test_bytes_and_floats_are_the_same_picture():
    clip, hrnet, images = clip_backbone(), HRNetBackbone(SMALL_HRNET).eval(), pictures()
    torch.testing.assert_close(clip.encode_images(images), clip.encode_images(images.float() / 255))
    torch.testing.assert_close(hrnet(images), hrnet(images.float() / 255))


@torch.no_grad()
def test_maps_have_their_strides_and_channels():
    backbone = clip_backbone()
    maps = backbone.encode_maps(pictures(), levels=(1, 2, 3, 4))
    assert [tuple(m.shape) for m in maps] == [
        (2, 96, 32, 32),
        (2, 192, 16, 16),
        (2, 384, 8, 8),
        (2, 768, 4, 4),
    ]
    assert backbone.map_channels == 768
    (last,) = backbone.encode_maps(pictures())
    torch.testing.assert_close(last, maps[-1])
    hrnet = HRNetBackbone(SMALL_HRNET).eval()
    assert hrnet(pictures()).shape == (2, hrnet.channels, 8, 8)


@torch.no_grad()
def test_attention_pool_is_interpolated_for_another_size_and_left_alone_at_its_own():
    torch.manual_seed(0)
    plain = load_clip(SMALL_CLIP).visual.attnpool.positional_embedding
    native = clip_backbone(128).clip.visual.attnpool.positional_embedding
    assert torch.equal(plain, native)  # the same seed, so the same weights
    for size in (96, 160):
        larger = clip_backbone(size)
        positions = larger.clip.visual.attnpool.positional_embedding
        assert positions.shape == (1 + (size // 32) ** 2, 768)
        assert isinstance(positions, nn.Parameter)
        assert torch.equal(positions[0], native[0])  # of the pooled vector, which has no place
        assert larger.encode_images(pictures(size=size)).shape == (2, 256)


@torch.no_grad()
def test_interpolated_positions_keep_their_places():
    backbone = clip_backbone()
    pool = backbone.clip.visual.attnpool
    ramp = torch.arange(4.0).repeat(4, 1)  # from left to right
    pool.positional_embedding[1:] = ramp.reshape(16, 1)
    _resize_positions(pool, 8)
    grid = pool.positional_embedding[1:, 0].view(8, 8)
    assert torch.allclose(grid, grid[:1].expand(8, 8), atol=1e-5)  # nothing changes from top to bottom
    assert (grid[0].diff() > 0).all()


# freezing

LAST_OF_TEXT = (
    "clip.transformer.resblocks.2.",
    "clip.ln_final.",
    "clip.text_projection",
)
TEXT = (
    "clip.transformer.",
    "clip.ln_final.",
    "clip.text_projection",
    "clip.token_embedding.",
    "clip.positional_embedding",
)


@pytest.mark.parametrize("image", ["frozen", "last", "full"])
@pytest.mark.parametrize("text", ["frozen", "last", "full"])
def test_exactly_the_asked_for_parts_of_clip_train(image, text):
    backbone = clip_backbone(tuning=image, text_tuning=text)
    of_image = {
        "frozen": set(),
        "last": under(backbone, "clip.visual.layer4.", "clip.visual.attnpool."),
        "full": under(backbone, "clip.visual."),
    }
    of_text = {
        "frozen": set(),
        "last": under(backbone, *LAST_OF_TEXT),
        "full": under(backbone, *TEXT),
    }
    assert trainable(backbone) == of_image[image] | of_text[text]
    assert set(dict(backbone.named_parameters())) == under(backbone, "clip.visual.", *TEXT) | {
        "clip.logit_scale"
    }


def test_interpolated_positions_train_with_the_last_stage():
    positions = clip_backbone(96, tuning="last").clip.visual.attnpool.positional_embedding
    assert positions.requires_grad
    assert not clip_backbone(96).clip.visual.attnpool.positional_embedding.requires_grad


@torch.inference_mode()
def test_the_map_of_an_hrnet_is_timms_own_and_its_weights_have_timms_names():
    backbone = wake(HRNetBackbone(HRNetConfig("hrnet_w18_small", "random"))).eval()
    theirs = timm.create_model("hrnet_w18_small", features_only=True, out_indices=(3,)).eval()
    theirs.load_state_dict(backbone.net.state_dict())
    images = pictures(size=64)
    expected = theirs(normalise(images, backbone.mean, backbone.std))[0]
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("tuning", ["frozen", "last", "full"])
def test_exactly_the_asked_for_parts_of_hrnet_train(tuning):
    backbone = HRNetBackbone(HRNetConfig("scenes-hrnet", "random", tuning))
    unread = under(backbone, *(f"net.stage4.0.fuse_layers.{other}." for other in (0, 1, 3)))
    expected = {"frozen": set(), "last": under(backbone, "net.stage4."), "full": under(backbone, "net.")}
    assert len(unread) == 36
    assert trainable(backbone) == expected[tuning] - unread
    if tuning != "frozen":
        backbone(pictures()).sum().backward()
        assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trainable(backbone)


@pytest.mark.parametrize("tuning", ["norms", "last", "lora", "full"])
def test_all_that_trains_of_a_public_hrnet_has_a_gradient(tuning):
    """DistributedDataParallel waits for the gradient of every weight that wants one."""
    backbone = HRNetBackbone(HRNetConfig("hrnet_w18", "random", tuning))
    assert trainable(backbone)
    backbone(pictures()).sum().backward()
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trainable(backbone)


@pytest.mark.parametrize("tuning", ["frozen", "last", "full"])
def test_only_what_trains_updates_its_batch_normalisation(tuning):
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=64,
        clip=ClipConfig("scenes-rn", "random", tuning),
        hrnet=HRNetConfig("scenes-hrnet", "random", tuning),
    )
    model = build_model("clip-hrnet", config).eval().train()
    assert model.training
    parts = {"clip.clip.visual.layer4.", "hrnet.net.stage4."}  # and the last stages' names
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_images(pictures(size=64))
    changed = {
        name
        for name, value in model.named_buffers()
        if not torch.equal(value, before[name]) and name.startswith(("clip.", "hrnet."))
    }
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert norms
    for name, norm in norms.items():
        in_backbone = name.startswith(("clip.", "hrnet."))
        trains = any(p.requires_grad for p in norm.parameters())
        assert norm.training == trains
        assert trains or in_backbone
    if tuning == "frozen":
        assert not changed
    elif tuning == "last":
        assert changed
        assert all(name.startswith(tuple(parts)) for name in changed)
    else:
        assert any(name.startswith("clip.clip.visual.bn1") for name in changed)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_gradient_stops_at_frozen_parameters_and_reaches_trained_ones():
    backbone = clip_backbone(tuning="last", text_tuning="last").train()
    loss = backbone.encode_images(pictures()).sum()
    (loss + backbone.encode_texts(tokenize(PHRASES, trim=True)).pooled.sum()).backward()
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trainable(backbone)


# weights


@pytest.fixture(scope="module")
def small_clip() -> nn.Module:
    torch.manual_seed(3)
    return wake(load_clip(SMALL_CLIP)).eval()


@pytest.fixture(scope="module")
def rn50() -> nn.Module:
    """OpenAI's smallest CLIP, as large as it is, with random weights that half precision holds exactly."""
    torch.manual_seed(0)
    clip = wake(load_clip(ClipConfig(weights="random"))).eval()
    for value in clip.state_dict().values():
        value.copy_(value.half())
    return clip


@torch.no_grad()
def assert_same_clip(loaded: nn.Module, expected: nn.Module, rtol: float = 1e-4) -> None:
    """Equal features for images and phrases."""
    images, tokens = pictures(1, expected.visual.image_size).float() / 255, tokenize(PHRASES)
    for feature in (lambda clip: clip.encode_image(images), lambda clip: clip.encode_text(tokens)):
        torch.testing.assert_close(feature(loaded.eval()), feature(expected.eval()), rtol=rtol, atol=1e-4)


def openai_style(clip: nn.Module, path: Path) -> Path:
    """A state dict as in OpenAI's own files: half-precision matrices and three numbers beside the weights."""
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in clip.state_dict().items()
    }
    numbers = {"input_resolution": clip.visual.image_size, "context_length": 77, "vocab_size": 49408}
    torch.save(state | {name: torch.tensor(number) for name, number in numbers.items()}, path)
    return path


@pytest.mark.slow
def test_openais_file_of_rn50_loads(tmp_path, rn50):
    path = openai_style(rn50, tmp_path / "RN50.pt")
    backbone = ClipBackbone(ClipConfig(weights=str(path)), 224)
    assert_same_clip(backbone.clip, rn50)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert (backbone.embed_dim, backbone.text_width, backbone.map_channels) == (1024, 512, 2048)


def test_local_folder_of_open_clip_loads(tmp_path, small_clip):
    settings = {"model_cfg": open_clip.get_model_config("scenes-rn"), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    config = ClipConfig("scenes-rn", str(tmp_path))
    with pytest.raises(WeightsError, match="--random-init"):  # never silently random
        load_clip(config)
    save_file(small_clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    assert_same_clip(load_clip(config), small_clip)


@pytest.mark.parametrize("name", ["clip.safetensors", "clip.pth", "clip.bin"])
def test_single_file_of_open_clip_loads(tmp_path, small_clip, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(small_clip.state_dict(), path)
    else:
        torch.save({"state_dict": small_clip.state_dict(), "epoch": 3}, path)
    assert_same_clip(load_clip(ClipConfig("scenes-rn", str(path))), small_clip)


@pytest.fixture(scope="module")
def trained_clip(small_clip) -> tuple[dict, dict]:
    """Weights after a step, and the optimizer's state; most of them, the table of tokens, do not train."""
    clip = copy.deepcopy(small_clip)
    clip.token_embedding.requires_grad_(False)
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    sum(parameter.sum() for parameter in trained).backward()
    optimizer.step()
    return clip.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])  # one GPU, several, compiled
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ""])
def test_a_checkpoint_of_open_clips_trainer_loads_to_the_bit_whatever_its_suffix(
    tmp_path, trained_clip, prefix, suffix
):
    weights, optimizer = trained_clip
    path = tmp_path / f"epoch_1{suffix}"
    state = {"epoch": 1, "name": "a-run", "state_dict": {prefix + n: v for n, v in weights.items()}}
    torch.save(state | {"optimizer": optimizer, "scaler": {"scale": 65536.0}}, path)
    loaded = load_clip(ClipConfig("scenes-rn", str(path))).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_transformers_clip_is_an_error_that_says_what_to_take(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"text_config": small | {"vocab_size": 100}, "vision_config": small | {"image_size": 32}}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(WeightsError, match=r"transformers' CLIP.*open_clip_model\.safetensors.*hub"):
            load_clip(ClipConfig("ViT-B-32-quickgelu", str(place)))


def test_openai_style_file_is_read_as_the_model_that_is_named(tmp_path, small_clip):
    path = openai_style(small_clip, tmp_path / "clip.pt")
    rounded = copy.deepcopy(small_clip)
    for value in rounded.state_dict().values():
        value.copy_(value.half())
    assert_same_clip(load_clip(ClipConfig("scenes-rn", str(path))), rounded)  # heads of 32, not CLIP's 64
    with pytest.raises(WeightsError, match=r"Missing key\(s\) in state_dict: \"visual\.layer1\.1"):
        load_clip(ClipConfig("RN50-quickgelu", str(path)))


def test_clip_file_that_lacks_weights_or_does_not_fit_is_an_error(tmp_path, small_clip):
    state = small_clip.state_dict()
    del state["visual.layer4.0.conv1.weight"]
    path = tmp_path / "clip.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"visual\.layer4\.0\.conv1\.weight"):
        load_clip(ClipConfig("scenes-rn", str(path)))
    path.write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match="--random-init"):
        load_clip(ClipConfig("scenes-rn", str(path)))
    (tmp_path / "clip.pt").write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match="--random-init"):
        load_clip(ClipConfig("scenes-rn", str(tmp_path / "clip.pt")))


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """timm's HRNet-W18 as it comes from ImageNet: with a head for 1,000 classes."""
    torch.manual_seed(5)
    return wake(timm.create_model("hrnet_w18")).eval()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_imagenet_classifier_loads_without_its_head(tmp_path, classifier, suffix):
    path = tmp_path / f"hrnet{suffix}"
    if suffix == ".safetensors":
        save_file(classifier.state_dict(), path)
    else:
        torch.save(classifier.state_dict(), path)
    backbone = HRNetBackbone(HRNetConfig(weights=str(path))).eval()
    assert backbone.channels == 512
    images = pictures(1, 64)
    x = normalise(images, backbone.mean, backbone.std)
    for step in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "stages"):
        x = getattr(classifier, step)(x)
    torch.testing.assert_close(backbone(images), classifier.incre_modules[2](x[2]))  # stride 16


def test_hrnet_file_that_lacks_weights_or_does_not_fit_is_an_error(tmp_path):
    net = load_hrnet(SMALL_HRNET)
    state = net.state_dict()
    del state["conv1.weight"]
    save_file(state, tmp_path / "hrnet.safetensors")
    with pytest.raises(WeightsError, match=r"1 weights are missing, the first is 'conv1\.weight'"):
        load_hrnet(HRNetConfig("scenes-hrnet", str(tmp_path / "hrnet.safetensors")))
    state["conv1.weight"] = torch.zeros(7, 3, 3, 3)
    save_file(state, tmp_path / "hrnet.safetensors")
    with pytest.raises(WeightsError, match=r"size mismatch for conv1\.weight"):
        load_hrnet(HRNetConfig("scenes-hrnet", str(tmp_path / "hrnet.safetensors")))


@pytest.mark.parametrize(
    "load",
    [
        partial(load_clip, ClipConfig("scenes-rn", "nowhere/clip.pt")),
        partial(load_clip, ClipConfig("scenes-rn", "nowhere/clip.safetensors")),
        partial(load_hrnet, HRNetConfig("scenes-hrnet", "nowhere/hrnet.pth")),
        partial(load_hrnet, HRNetConfig("scenes-hrnet", "imagenet")),
        partial(load_hrnet, HRNetConfig("hrnet_w18", "shipped")),
    ],
)
def test_weights_that_are_not_there_are_an_error_with_the_ways_out(load):
    with pytest.raises(WeightsError, match=r"FILE; or train from nothing: --random-init") as raised:
        load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (partial(load_clip, ClipConfig("RN50")), "need QuickGELU, got 'RN50'; use 'RN50-quickgelu'"),
        (partial(load_clip, ClipConfig("RN51-quickgelu")), "no model 'RN51-quickgelu'"),
        (partial(load_hrnet, HRNetConfig("hrnet_w19")), "hrnet_w19"),
        (
            partial(ClipBackbone, ClipConfig("convnext_tiny", "random"), 224),
            "a CLIP with a ResNet or a ViT, got 'convnext_tiny'",
        ),
    ],
)
def test_models_that_do_not_exist_or_do_not_fit_are_wrong_settings(load, message):
    with pytest.raises(ConfigError, match=message):
        load()


@pytest.mark.parametrize(
    ("load", "kind", "flag"),
    [
        (partial(load_clip, ClipConfig()), "CLIP 'RN50-quickgelu'", "--model.clip.weights"),
        (partial(load_hrnet, HRNetConfig()), "HRNet 'hrnet_w18'", "--model.hrnet.weights"),
    ],
)
def test_public_weights_without_a_network_are_an_error_with_the_ways_out(
    monkeypatch, tmp_path, caplog, load, kind, flag
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # not what was downloaded before
    with pytest.raises(WeightsError) as raised:
        load()
    message = str(raised.value)
    assert message.startswith(kind)
    assert "\n" not in message
    for way_out in ("connect to the internet", f"{flag} FILE", "--random-init"):
        assert way_out in message
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class _Hub(http.server.SimpleHTTPRequestHandler):
    """A hub with the files of one folder: REPOSITORY/resolve/main/FILE, with the headers its client wants."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/resolve/main/", "/"))

    def end_headers(self) -> None:
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a hub on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_public_weights_come_from_the_hub_by_default(monkeypatch, tmp_path, hub, rn50, classifier):
    address, folder = hub
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in rn50.state_dict().items()
    }
    for repository, name, state in (
        ("timm/resnet50_clip.openai", "open_clip_model.safetensors", halves),
        ("timm/hrnet_w18.ms_aug_in1k", "model.safetensors", classifier.state_dict()),
    ):
        (folder / repository).mkdir(parents=True)
        save_file(state, folder / repository / name)
    clip, hrnet = load_clip(ClipConfig()), load_hrnet(HRNetConfig())
    torch.testing.assert_close(clip.state_dict(), rn50.state_dict())
    torch.testing.assert_close(hrnet.stage4.state_dict(), classifier.stage4.state_dict())


def test_random_weights_are_had_without_a_word_of_logging(caplog):
    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    load_clip(SMALL_CLIP)
    assert caplog.records == []
    assert (list(root.handlers), list(root.filters)) == (handlers, filters)
    logging.warning("as before")
    assert [record.message for record in caplog.records] == ["as before"]


@torch.no_grad()
def test_shipped_weights_load_and_are_the_same_every_time():
    clip, hrnet = ClipConfig("scenes-rn", "shipped"), HRNetConfig("scenes-hrnet", "shipped")
    tokens, images = tokenize(PHRASES[:2]), pictures()
    features = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = ClipBackbone(clip, 128).eval()
        net = HRNetBackbone(hrnet).eval()
        features.append((backbone.encode_images(images), backbone.encode_texts(tokens).pooled, net(images)))
    for first, second in zip(*features, strict=True):
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()
        assert first.std() > 0
    text = features[0][1]
    assert torch.cosine_similarity(text[0], text[1], dim=0) < 0.99  # they know the words


def test_words_without_a_row_in_the_table_are_unknown():
    shipped = ClipBackbone(ClipConfig("scenes-rn", "shipped"), 64)
    texts = ["The red cube, left of the sphere.", "a giraffe giraffe near 7 zebras", ""]
    assert shipped.unknown_words(texts) == [(), ("giraffe", "7", "zebras"), ()]
    whole = ClipBackbone(ClipConfig("scenes-rn", "random"), 64)
    assert whole.unknown_words(texts) == [(), (), ()]
