"""Models written for places without this package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.models.maps import tiny_rn
from vg_utils.cli import main
from vg_utils.config import Config, set_fields
from vg_utils.export import ImageEncoder, PhraseHead, export_onnx, export_programs, export_torch
from vg_utils.models import build_model
from vg_utils.models.wordpiece import WordPiece
from vg_utils.predictor import Grounder

PHRASES = ["the red cube", "the small metal sphere left of the cone", "it", "the cube on the left"]
ROOT = Path(__file__).parents[1]


def untrained(config: Config, name: str = "dense-grounder") -> Grounder:
    """A model; `dense-grounder` as the one for photographs: no HRNet, cells that agree, a closer look."""
    torch.manual_seed(0)
    head = {"agreement": 0.3, "blocks": 1, "refinements": 1}
    head = {f"model__dense_grounder__{name}": value for name, value in head.items()}
    config = set_fields(config, model__name=name, model__pyramid__hrnet=False, **head)
    return Grounder(build_model(name, config.model), config, "cpu")


@torch.no_grad()
def assert_answers_any_number(head: nn.Module, grounder: Grounder) -> None:
    """The exported head says of one phrase and of several what the model does."""
    features = ImageEncoder(grounder.model)(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    for count in (1, 2, 4):
        tokens = grounder.model.tokenizer(PHRASES[:count])
        torch.testing.assert_close(head(features, tokens), PhraseHead(grounder.model)(features, tokens))


@pytest.fixture
def tiny_config(tiny_config, monkeypatch) -> Config:
    """With a CLIP of few layers: the time of an export is that of their number."""
    return set_fields(tiny_config, model__clip__name=tiny_rn(monkeypatch), model__clip__weights="random")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip-hrnet", "clip-rpn-attention"])
def test_torch_programs_answer_any_number_of_phrases(tiny_config, name):
    grounder = untrained(tiny_config, name)
    _, head = export_programs(grounder)
    assert_answers_any_number(head.module(), grounder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_torch_programs_of_the_files_answer_any_number_of_phrases(tiny_config, tmp_path):
    grounder = untrained(tiny_config)
    export_torch(grounder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.pt2", "phrases.pt2"]
    assert_answers_any_number(torch.export.load(tmp_path / "phrases.pt2").module(), grounder)


def test_what_cannot_be_exported_is_a_line(tiny_config, monkeypatch):
    class Counts(nn.Module):
        def forward(self, features, tokens):
            return {"score": torch.ones(int(tokens.sum()))}

    monkeypatch.setattr("vg_utils.export.PhraseHead", lambda model: Counts())
    with pytest.raises(ValueError, match="dense-grounder: torch cannot export") as raised:
        export_programs(untrained(tiny_config))
    assert len(str(raised.value).splitlines()) == 1


def test_the_command_wants_to_know_what_and_says_what_is_missing(capsys, monkeypatch, tmp_path):
    assert main(["export", "scenes/dense-grounder"]) == 2
    assert "--onnx DIR or --torch DIR" in capsys.readouterr().err
    monkeypatch.setattr("vg_utils.export.find_spec", lambda name: None)
    assert main(["export", "scenes/dense-grounder", "--onnx", str(tmp_path / "new")]) == 2
    assert "onnx and onnxscript: pip install" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_tokens_are_those_of_the_file():
    from tokenizers import Tokenizer

    tokenizer, texts = WordPiece(), [*PHRASES, "a café at 5 o'clock", "giraffes " * 90]
    rows = [encoded.ids for encoded in Tokenizer.from_str(tokenizer.as_json()).encode_batch(texts)]
    assert rows == tokenizer(texts).tolist()


@pytest.mark.slow
def test_onnxruntime_answers_as_torch_and_the_example_as_the_package(tiny_config, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="of the extra `export`")
    config = set_fields(tiny_config, model__clip__name="photos", model__clip__weights="random")
    grounder = untrained(config)
    assert export_onnx(grounder, tmp_path) < 1e-4  # and it would raise
    assert json.loads((tmp_path / "model.json").read_text())["image_size"] == 64

    spec = importlib.util.spec_from_file_location("ground_onnx", ROOT / "examples" / "ground_onnx.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    image = Image.effect_noise((150, 70), 80).convert("RGB")
    own = grounder.ground(PHRASES, grounder.encode(image))
    for found, expected in zip(example.Grounder(tmp_path).ground(image, PHRASES), own, strict=True):
        assert found["box_xyxy"] == pytest.approx(expected.box_xyxy, abs=0.02)
        assert (found["score"], found["presence"]) == pytest.approx(
            (expected.score, expected.presence), abs=1e-3
        )
