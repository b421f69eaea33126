from dataclasses import replace

import pytest
import torch

from vg_utils.figures.architecture import COLORS, LAYOUTS, draw_architecture, draw_hrnet, shapes_of
from vg_utils.models import MODELS, build_model
from vg_utils.models.clip import tokenize
from vg_utils.presets import preset

PHRASES = ["the red cube", "the ball left of it", "the small one"]


def small(name):
    config = replace(preset("scenes", name).model, image_size=64)
    return build_model(name, config)


def run(model):
    images = torch.zeros(2, 3, 64, 64)
    return shapes_of(model, images, tokenize(PHRASES, trim=True), torch.tensor([0, 0, 1]))


def test_every_model_that_sees_has_a_figure():
    assert set(LAYOUTS) == (set(MODELS) - {"text-only"}) | {"detector-clip"}


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"detector-clip"}))
def test_every_shape_in_a_figure_is_one_that_the_model_has(name):
    blocks, _ = LAYOUTS[name]
    shapes = run(small(name))
    for _, _, kind, _, key in blocks.values():
        assert kind in COLORS
        assert not key or key in shapes, f"{name}: no shape of {key!r}"


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_arrows_join_blocks_from_left_to_right(name):
    blocks, arrows = LAYOUTS[name]
    joined = {block for chain in arrows for block in chain.split()}
    assert joined == set(blocks)
    for chain in arrows:
        columns = [blocks[block][0] for block in chain.split()]
        assert columns == sorted(set(columns))


def test_shapes_are_named():
    model = small("clip-hrnet")
    shapes = run(model)
    assert shapes["images"] == ("B", 3, 64, 64)
    assert shapes["tokens"] == ("N", "L")
    assert shapes["out.boxes_cxcywh"] == ("N", 4)
    assert not model.reduce._forward_hooks, "nothing is left behind"


def test_figures_are_written(tmp_path):
    figure = draw_architecture("clip-hrnet", run(small("clip-hrnet")), "a title", tmp_path / "a.png")
    assert figure.get_suptitle() == "a title"
    draw_architecture("detector-clip", path=tmp_path / "b.png")
    draw_hrnet([16, 32, 64, 128], 128, path=tmp_path / "c.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5_000 for name in "abc")
