"""The renderer of RefScenes: geometry, boxes, independence of the batch."""

from dataclasses import replace

import pytest
import torch

from vg_utils.refscenes.raycast import SHAPES, Scene, Solid, stack_scenes
from vg_utils.refscenes.render import look, render, visible_boxes
from vg_utils.refscenes.sampling import plan_scenes

SIZE = 64


def scene(*solids: Solid) -> Scene:
    """Solids on plain ground under a lamp from the left."""
    gray = (0.2, 0.2, 0.2)
    return Scene(solids, (0.5, 16.0, 0.0, 0.235), (-0.6, -0.3, 0.742), (4, 0.7, 0, 0, 0), (gray, gray), gray)


def solid(shape: str = "cube", x: float = 0.0, y: float = 0.0, material: str = "matte", **other) -> Solid:
    return Solid(shape, "red", material, "medium", (0.6, 0.02, 0.02), x, y, 1.1, **other)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [plan.scene for plan in plan_scenes("test of render", range(6), False, "cpu")]


def test_pictures_do_not_depend_on_the_batch(scenes):
    together, ids = render(stack_scenes(scenes), SIZE)
    for number, one in enumerate(scenes):
        alone, alone_ids = render(stack_scenes([one]), SIZE)
        assert torch.equal(alone[0], together[number])
        assert torch.equal(alone_ids[0], ids[number])


def test_look_sees_what_render_draws(scenes):
    batch = stack_scenes(scenes)
    ids, silhouette = look(batch, SIZE)
    assert torch.equal(ids, render(batch, SIZE)[1])
    boxes, pixels = visible_boxes(batch, ids)
    assert (pixels <= silhouette).all()
    for row, (owner, index) in enumerate(
        (s, i) for s, sc in enumerate(scenes) for i in range(len(sc.solids))
    ):
        rows, columns = (ids[owner] == index).nonzero().unbind(1)
        assert boxes[row].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert pixels[row] == len(rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_mirrored_scene_gives_the_mirrored_silhouette(shape):
    one = scene(solid(shape, x=1.3, y=0.4, yaw=0.3))
    other = scene(solid(shape, x=-1.3, y=0.4, yaw=-0.3))
    seen, _ = look(stack_scenes([one]), SIZE)
    mirrored, _ = look(stack_scenes([other]), SIZE)
    assert (seen != mirrored.flip(2)).sum() <= 2  # pixels whose centre lies on the outline


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouette_against_points_on_the_surface(shape):
    """Independent of the ray caster: project points that fill the unit solid and compare the extents."""
    from vg_utils.refscenes.raycast import HALF_WIDTH, HEIGHT

    width, height = HALF_WIDTH[SHAPES.index(shape)], HEIGHT[SHAPES.index(shape)]
    points = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, y, up = points[:, 0] * width, points[:, 1] * width, (points[:, 2] + 1) / 2 * height
    around = (x * x + y * y).sqrt()
    inside = {
        "sphere": around**2 + (up - 1) ** 2 <= 1,
        "cube": around < 9,
        "cylinder": around <= width,
        "cone": around <= width * (1 - up / height),
    }[shape]
    thing = solid(shape, x=-0.7, y=0.9)
    x, y, up = (thing.x + 1.1 * x[inside], thing.y + 1.1 * y[inside], 1.1 * up[inside])
    sine, cosine = torch.tensor(0.5).sin(), torch.tensor(0.5).cos()
    ahead, above = y + 16 * cosine, up - 16 * sine
    deep = (ahead * cosine - above * sine) * 0.235
    column = (x / deep + 1) / 2 * 224
    row = (1 - (ahead * sine + above * cosine) / deep) / 2 * 224
    batch = stack_scenes([scene(thing)])
    box = visible_boxes(batch, look(batch, 224)[0])[0][0]
    expected = torch.stack([column.min(), row.min(), column.max(), row.max()])
    assert (box - expected).abs().max() < 2.5


def test_a_nearer_solid_hides_a_farther_one():
    behind, front = solid("cylinder", y=2.5), solid("sphere", y=-0.5)
    ids, silhouette = look(stack_scenes([scene(behind, front)]), SIZE)
    assert (ids == 1).sum() == silhouette[1]
    assert 0 < (ids == 0).sum() < silhouette[0]


def test_solids_throw_shadows_away_from_the_lamp():
    lit = render(stack_scenes([scene(solid("cone"))]), SIZE)[0][0].float().mean(0)
    bare = render(stack_scenes([scene(replace(solid("cone"), x=30.0))]), SIZE)[0][0].float().mean(0)
    ids, _ = look(stack_scenes([scene(solid("cone"))]), SIZE)
    darker = (bare - lit > 8) & (ids[0] < 0)
    columns = darker.nonzero()[:, 1].float()
    assert darker.sum() > 20
    assert columns.mean() > SIZE / 2  # the lamp is on the left


@pytest.mark.parametrize("shape", SHAPES)
def test_metal_differs_from_matte(shape):
    matte, metal = (solid(shape, material=material) for material in ("matte", "metal"))
    pictures, ids = render(stack_scenes([scene(matte), scene(metal)]), 96)
    difference = (pictures[0].float() - pictures[1].float()).abs().mean(0)[ids[0] == 0]
    assert difference.mean() > 10


def test_edges_are_smooth():
    pictures, ids = render(stack_scenes([scene(solid("sphere"))]), SIZE)
    red = pictures[0, 0].float() - pictures[0, 1].float()
    inside = red[ids[0] == 0].median()
    assert ((red > 0.25 * inside) & (red < 0.75 * inside)).sum() > 10  # mixed pixels along the outline
