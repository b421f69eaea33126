"""Proposals from local weights with random initialisation, their selection, and the refusals."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from tests.data.samples import small_set, write_set
from vg_utils.config import ConfigError, DetectorClipConfig
from vg_utils.data import load_examples
from vg_utils.models import shipped
from vg_utils.models.backbones import WeightsError
from vg_utils.models.detectors import (
    Oracle,
    YoloDetector,
    build_source,
    fit_picture,
    load_detector,
    select_proposals,
)

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = 5


def settings(**changes) -> DetectorClipConfig:
    return DetectorClipConfig(**{"detector": SMALL, "num_classes": CLASSES, "score_threshold": 0.0} | changes)


def noise(width, height, mode="RGB", seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).convert(mode)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random detector's weights, as .pth, .safetensors and as torchvision's training script wraps them."""
    torch.manual_seed(0)
    model = get_model(SMALL, weights=None, weights_backbone=None, num_classes=CLASSES)
    folder = tmp_path_factory.mktemp("detector")
    torch.save(model.state_dict(), folder / "plain.pth")
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "wrapped.pth")
    save_file(model.state_dict(), folder / "plain.safetensors")
    # A detector with frozen BatchNorm, as all those trained from public backbones, has no counters.
    frozen = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(frozen, folder / "frozen.pth")
    torch.save({**frozen, "roi_heads.box_predictor.cls_score.bias": torch.zeros(7)}, folder / "other.pth")
    return folder


@pytest.fixture(scope="module")
def detector(weights):
    """The random detector from its file, made quick: small input, few regions."""
    detector = build_source(settings(weights=str(weights / "plain.pth"), max_proposals=7), "cpu")
    detector.model.transform.min_size, detector.model.transform.max_size = (64,), 160
    detector.model.rpn._post_nms_top_n["testing"] = 30
    return detector


@pytest.mark.parametrize("name", ["plain.pth", "wrapped.pth", "plain.safetensors", "frozen.pth"])
def test_local_weights_of_every_form_are_the_same_detector(weights, name):
    expected = torch.load(weights / "plain.pth", weights_only=True)
    state = load_detector(settings(weights=str(weights / name))).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["other.pth", "missing.pth"])
def test_weights_that_do_not_fit_or_do_not_exist_name_the_ways_out(weights, name):
    with pytest.raises(WeightsError, match=r"num-classes N; or choose.*oracle"):
        load_detector(settings(weights=str(weights / name)))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"model": Image.new("RGB", (2, 2))}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_detector(settings(weights=str(tmp_path / "bad.pth")))


def test_public_weights_that_cannot_be_fetched_name_the_ways_out(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(WeightsError, match=r"not known\).*hub cache.*\.pth or \.safetensors.*oracle"):
        load_detector(settings(weights="coco", num_classes=91))


def test_wrong_names_and_numbers_are_configuration_errors():
    with pytest.raises(ConfigError, match="did you mean 'fasterrcnn_resnet50_fpn"):
        load_detector(settings(detector="fasterrcnn_resnet50"))
    with pytest.raises(ConfigError, match="have 91, got 5"):
        load_detector(settings(weights="coco"))
    with pytest.raises(ConfigError, match="crop\\+blur or global-local"):
        settings(mode="shade")


def test_proposals_do_not_depend_on_the_other_pictures(detector):
    pictures = [noise(64, 48), noise(48, 64, seed=1), noise(64, 48, seed=2)]
    together = detector.propose(pictures)
    for picture, boxes in zip(pictures, together, strict=True):
        assert 0 < len(boxes) <= 7
        width, height = picture.size
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        torch.testing.assert_close(detector.propose([picture])[0], boxes, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "picture",
    [noise(40, 30, "L"), noise(40, 30, "1"), noise(6000, 20), noise(200, 1), noise(1, 1)],
    ids=lambda p: f"{p.mode} {p.width}x{p.height}",
)
def test_strange_pictures(detector, picture):
    boxes = detector.propose([picture])[0]
    assert len(boxes) > 0
    assert (boxes <= torch.tensor([*picture.size] * 2)).all()


def test_one_stage_detectors_obey_the_score_threshold_too():
    config = settings(detector="ssdlite320_mobilenet_v3_large", weights="random", max_proposals=4)
    detector = build_source(config, "cpu")
    assert detector.model.score_thresh == 0.0
    detector.model.topk_candidates = 10
    assert 0 < len(detector.propose([noise(50, 40)])[0]) <= 4


def test_a_high_threshold_leaves_nothing(detector, monkeypatch):
    monkeypatch.setattr(detector, "config", settings(score_threshold=0.99))
    assert detector.propose([noise(50, 40)])[0].shape == (0, 4)


def test_selection_by_hand():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [5, 5, 5, 9], [25, 0, 99, 10]]
    ).float()
    scores = torch.tensor([0.8, 0.9, 0.4, 0.95, 0.2])
    kept = select_proposals(boxes, scores, (40, 20), settings(score_threshold=0.3))
    assert kept.tolist() == [[0, 0, 10, 9], [20, 0, 30, 10]]  # the double, the empty and the unsure are out
    kept = select_proposals(boxes, scores, (40, 20), settings(max_proposals=1, nms_iou=1.0))
    assert kept.tolist() == [[0, 0, 10, 9]]
    kept = select_proposals(boxes[4:], scores[4:], (40, 20), settings())
    assert kept.tolist() == [[25, 0, 40, 10]]  # clipped to the image


def test_fitted_pictures():
    assert fit_picture(noise(6000, 20)).size == (1600, 100)
    assert fit_picture(noise(1, 40)).size == (3, 40)
    assert fit_picture(noise(640, 480, "L")).size == (640, 480)
    assert fit_picture(noise(8, 8, "L")).mode == "RGB"


def test_the_oracle_proposes_the_annotated_boxes(tmp_path):
    examples = load_examples(write_set(tmp_path, *small_set()), "train")
    assert Oracle().propose([None], examples)[0].tolist() == [list(b) for b in examples[0].object_boxes_xyxy]
    with pytest.raises(ConfigError, match="oracle proposes annotated boxes"):
        Oracle().propose([noise(9, 9)])


def test_shipped_weights_are_found_by_the_detectors_name(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "WEIGHTS_DIR", tmp_path)
    trained = load_detector(settings(weights=str(weights / "plain.pth")))
    save_file(shipped.pack(trained), tmp_path / f"{SMALL}.safetensors")
    found = load_detector(settings(weights="shipped")).state_dict()
    for name, value in trained.state_dict().items():
        largest = value.abs().flatten(1).amax(1).max() if value.ndim > 1 else 0.0
        torch.testing.assert_close(found[name], value, atol=float(largest) / 127, rtol=0, msg=name)


def test_a_detector_that_is_not_shipped_says_so():
    """None is: RefScenes' solids are found by `oracle`, photographs by torchvision's weights."""
    with pytest.raises(WeightsError, match=rf"no weights are shipped for '{SMALL}'.*Ways out"):
        load_detector(settings(weights="shipped"))


def test_yolo_asks_for_a_file_that_is_trusted():
    with pytest.raises(ConfigError, match=r"a local weights file that you trust.*'coco'"):
        build_source(DetectorClipConfig(detector="yolo"), "cpu")


def test_yolo_without_its_package_says_what_to_install_and_its_licence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ultralytics", None)
    (tmp_path / "yolo.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"not installed.*AGPL-3\.0.*pip install ultralytics"):
        build_source(DetectorClipConfig(detector="yolo", weights=str(tmp_path / "yolo.pt")), "cpu")


def test_yolo_from_a_randomly_initialised_file(tmp_path):
    ultralytics = pytest.importorskip(
        "ultralytics", reason="the optional package ultralytics is not installed"
    )
    ultralytics.YOLO("yolov8n.yaml").save(tmp_path / "random.pt")
    config = DetectorClipConfig("yolo", str(tmp_path / "random.pt"), score_threshold=0.0, max_proposals=3)
    detector = YoloDetector(config, "cpu")
    for picture in (noise(64, 48), noise(40, 30, "L"), noise(200, 1)):
        boxes = detector.propose([picture])[0]
        assert boxes.shape[1] == 4
        assert len(boxes) <= 3
        assert (boxes <= torch.tensor([*picture.size] * 2)).all()
