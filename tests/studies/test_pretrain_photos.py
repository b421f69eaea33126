"""The pretraining of the backbone for photographs, on noise: what is cut, what fits what, what it learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments import photo_distil, photo_scores, pretrain_photos
from experiments.photo_corpus import (
    captioned_batch,
    crops,
    held_out,
    jitter,
    read_photos,
    resized,
    sample_boxes,
)
from experiments.photo_distil import Phrases, distil, take_layers
from experiments.photo_weights import choose_pieces
from experiments.photo_words import PROMPTS, SYNONYMS
from vg_utils.config import ClipConfig
from vg_utils.models.minilm import MiniLM
from vg_utils.models.photo import PHOTOS, PhotoBackbone
from vg_utils.models.shipped import pack_tensors
from vg_utils.models.wordpiece import SPECIAL, WordPiece

CLASSES = ("dog", "cat", "zebra")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve images of 40 x 30 pixels with two boxes each, one of them too small; eight have captions."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    names = [f"picture{number:03d}.jpg" for number in range(200)]
    names = [n for n in names if held_out(n)][:4] + [n for n in names if not held_out(n)][:8]
    images, annotations, captions = [], [], []
    for number, name in enumerate(names):
        Image.effect_noise((40, 30), 90).convert("RGB").save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        for box in ([4, 6, 20, 16], [30, 2, 8, 20]):
            annotations.append({"image_id": number, "category_id": number % 3 + 1, "bbox": box, "iscrowd": 0})
        if number % 3:
            captions += [{"image_id": number, "caption": f"the {word} {number}"} for word in ("left", "red")]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))
    return folder


def test_a_tenth_of_the_pictures_is_held_out_by_name():
    names = [f"coco_val2017_{number:012d}.jpg" for number in range(5000)]
    assert sum(map(held_out, names)) == pytest.approx(500, rel=0.15)
    assert held_out(names[0]) == held_out(names[0])


def test_pictures_are_read_with_what_belongs_to_them(data):
    learn, test = (read_photos(data, 64, CPU, part) for part in (False, True))
    assert (len(learn.images), len(test.images)) == (8, 4)
    assert learn.images.shape == (8, 3, 64, 64)
    assert learn.picture.tolist() == list(range(8))  # the small boxes are left out
    assert learn.classes == list(CLASSES)
    # 40 x 30 in 64 x 64: 1.6 times as large, 8 pixels down
    torch.testing.assert_close(learn.boxes_xyxy[0], torch.tensor([6.4, 17.6, 38.4, 43.2]))
    assert all(len(learn.captions[number]) == 2 for number in learn.captioned())
    assert 0 < len(learn.captioned()) < 8
    assert len(read_photos(data, 64, CPU, False, limit=3).images) == 3


def test_crops_are_what_the_boxes_hold(data):
    photos = read_photos(data, 64, CPU, False)
    photos.boxes_xyxy[:] = torch.tensor([16.0, 8.0, 48.0, 40.0])
    rows = torch.tensor([5, 0, 5])
    cut = crops(photos, rows, 32)
    expected = photos.images[photos.picture[rows], :, 8:40, 16:48].float() / 255
    assert cut.shape == expected.shape
    assert torch.corrcoef(torch.stack([cut.flatten(), expected.flatten()]))[0, 1] > 0.9
    assert torch.equal(cut[0], cut[2])
    assert crops(photos, sample_boxes(photos, 6), 16, room=0.3).shape == (6, 3, 16, 16)


def test_mirrored_pictures_have_mirrored_captions(data):
    photos = read_photos(data, 64, CPU, False)
    photos.captions = [["the left dog"]] * len(photos.images)
    images, captions = captioned_batch(photos, 8, 64, Random(0))
    assert set(captions) == {"the left dog", "the right dog"}
    plain = {image.sum().item(): image for image in resized(photos.images, 64)}
    for image, caption in zip(images, captions, strict=True):
        original = min(plain.values(), key=lambda x, of=image: (x.sum() - of.sum()).abs())
        assert torch.equal(image, original.flip(2) if "right" in caption else original)
    changed = jitter(images)
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.equal(changed, images)


def test_another_crop_of_the_class_is_no_negative():
    same = torch.tensor([[1.0, 0], [1, 0], [0, 1]])  # two dogs and a cat
    texts, scale = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), torch.tensor(50.0)
    fits = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)  # of the third class is no crop
    right = pretrain_photos.contrast(scale, same, texts, fits)
    assert right == pytest.approx(
        torch.log(torch.tensor(2.0)).item() / 4, abs=1e-4
    )  # which dog, nobody knows
    assert pretrain_photos.contrast(scale, same, texts.flip(0), fits) > 10


def test_every_synonym_means_one_class():
    names = [name for names in SYNONYMS.values() for name in names]
    assert len(set(names)) == len(names)
    assert not set(names) & set(SYNONYMS)
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)


def test_pieces_are_kept_with_the_special_ones_first(tmp_path):
    pieces = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "é",
        "##a",
        "狗",
        "the",
        "zebra",
    ]
    rare = [f"rare{number}" for number in range(5000)]
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, *rare, "##s"]))
    kept = choose_pieces(tmp_path / "vocab.txt", ["the zebra zebras"])
    words = [[*pieces, *rare, "##s"][number] for number in kept]
    assert tuple(words[:4]) == SPECIAL
    assert words[4:8] == ["a", "##a", "the", "zebra"]
    assert words[-1] == "##s"
    assert not {"[MASK]", "[unused0]", "狗", "é", "rare4999"} & set(words)


def test_a_shortened_text_encoder_learns_from_the_whole_one(monkeypatch):
    monkeypatch.setattr(photo_distil, "imagenet_names", lambda subset: ["tench, Tinca tinca", "goldfish"])
    torch.manual_seed(0)
    whole, student = (MiniLM(len(WordPiece()), 77, 24, 4, layers) for layers in (3, 2))
    weights = take_layers(whole.state_dict(), (0, 2))
    student.load_state_dict(weights)
    assert torch.equal(student.layers[1].feed_forward[0].weight, whole.layers[2].feed_forward[0].weight)
    phrases = Phrases(["two dogs"], Random(0))
    assert {"two dogs", "the leftmost goldfish"} & set(phrases(4000)) == {"two dogs", "the leftmost goldfish"}
    first, last = (distil(student, whole, phrases, steps, batch=8) for steps in (1, 30))
    assert first < last <= 1


@pytest.mark.slow
def test_it_learns_and_writes_weights_that_load_and_a_card(data, tmp_path, monkeypatch):
    for module, name, value in (
        (pretrain_photos, "STORED", 64),
        (pretrain_photos, "SIDES", (32, 64)),
        (pretrain_photos, "CROP", 32),
        (pretrain_photos, "imagenet_names", lambda: ["tench, Tinca tinca", "goldfish"]),
        (photo_scores, "AT_ONCE", 3),
    ):
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(0)
    initial = PhotoBackbone(ClipConfig(PHOTOS, "random"), 64).state_dict()
    last = {name: value for name, value in initial.items() if "layers.3" in name}
    more = {name.replace("3", n, 1): value.clone() for n in "45" for name, value in last.items()}
    classifier = {"classifier.weight": torch.randn(2, 1280), "classifier.bias": torch.zeros(2)}
    save_file(pack_tensors(initial | more | classifier, None), tmp_path / "init.safetensors")
    argv = f"x --data {data} --init {tmp_path}/init.safetensors --out {tmp_path} --steps 3 --batch 4"
    argv += " --text-steps 2"
    monkeypatch.setattr(sys, "argv", argv.split())
    pretrain_photos.main()
    card = json.loads((tmp_path / "photos.json").read_text())
    assert card["steps"] == 3
    assert card["cosine_to_all_layers"] > 0.5
    assert card["learned_from"]["pictures"] == 8
    scores = {key: value for key, value in card["after_in_8_bits"].items() if "@" in key}
    assert len(scores) == 6
    assert all(0 <= value <= 1 for value in scores.values())
    learned = load_file(tmp_path / "photos-float.safetensors")
    moved = {name for name, value in initial.items() if not torch.equal(value, learned[name])}
    assert moved == {name for name in initial if "running" not in name and "num_batches" not in name}
    PhotoBackbone(ClipConfig(PHOTOS, str(tmp_path / "photos.safetensors")), 64)
