"""What the surfaces of RefScenes look like: six kinds of ground, the backdrop, matte and metal.

Everything is plain torch on flat lists of points and returns linear RGB; `to_srgb` comes last.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from vg_utils.refscenes.raycast import SceneBatch, columns, pick

Vector = tuple[Tensor, Tensor, Tensor]  # x, y and z of P points or directions, (P,) each
GROUNDS = ("checker", "planks", "tiles", "terrazzo", "plaster", "stripes")
NOISE_SIDE = 512  # pixels of the noise image, which repeats every `NOISE_PERIOD` units of its own coordinates
NOISE_PERIOD = 16.0
FOG_START, FOG_END = 6.0, 19.0  # how far behind the middle of the scene the ground fades into the backdrop


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light (any range from 0) to sRGB in [0, 1]; highlights roll off instead of clipping hard."""
    bright = linear.clamp(min=0)
    over = (bright - 0.7).clamp(min=0) / 0.3
    bright = bright.clamp(max=0.7) + 0.3 * over / (1 + over)
    return bright.clamp(1e-5, 1) ** (1 / 2.2)


def mix(one: Tensor, two: Tensor, share: Tensor) -> Tensor:
    """`one` where share is 0, `two` where it is 1."""
    return one + (two - one) * share


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """0 below low, 1 above high, smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=4)
def noise_picture(device: torch.device) -> Tensor:
    """(3, NOISE_SIDE ** 2): soft clouds, fine grain and white noise, each about [-1, 1] and without seams."""
    generator = torch.Generator().manual_seed(7)

    def clouds(cells: int, octaves: int) -> Tensor:
        total = torch.zeros(NOISE_SIDE, NOISE_SIDE)
        for octave in range(octaves):
            side = cells * 2**octave
            grid = torch.rand(1, 1, side, side, generator=generator) * 2 - 1
            scale = NOISE_SIDE // side
            fine = interpolate(pad(grid, (2, 2, 2, 2), mode="circular"), scale_factor=scale, mode="bicubic")
            total += fine[0, 0, 2 * scale : -2 * scale, 2 * scale : -2 * scale] / 1.6**octave
        return total / total.abs().quantile(0.99)

    white = torch.rand(NOISE_SIDE, NOISE_SIDE, generator=generator) * 2 - 1
    return torch.stack([clouds(16, 4), clouds(128, 2), white], dim=0).view(3, -1).to(device)


def noise(channel: int, x: Tensor, y: Tensor) -> Tensor:
    """Channel of `noise_picture` at points, between its pixels by straight lines."""
    picture = noise_picture(x.device)[channel]
    x, y = x * (NOISE_SIDE / NOISE_PERIOD), y * (NOISE_SIDE / NOISE_PERIOD)
    column, row = x.floor(), y.floor()
    along, down = x - column, y - row
    column, row = column.long() & NOISE_SIDE - 1, row.long() & NOISE_SIDE - 1
    right, below = (column + 1) & NOISE_SIDE - 1, (row + 1) & NOISE_SIDE - 1
    row, below = row * NOISE_SIDE, below * NOISE_SIDE
    upper = mix(*(picture.index_select(0, row + c) for c in (column, right)), along)
    lower = mix(*(picture.index_select(0, below + c) for c in (column, right)), along)
    return mix(upper, lower, down)


def cell_noise(x: Tensor, y: Tensor) -> Tensor:
    """One number in [-1, 1] for each cell of the integer grid."""
    place = (y.floor().long() * 37 & NOISE_SIDE - 1) * NOISE_SIDE + (x.floor().long() * 91 & NOISE_SIDE - 1)
    return noise_picture(x.device)[2].index_select(0, place)


def line_distance(x: Tensor) -> Tensor:
    """Distance to the nearest integer."""
    return (x - x.round()).abs()


def ground_albedo(batch: SceneBatch, scene: Tensor, x: Tensor, y: Tensor, blur: Tensor) -> Tensor:
    """(P, 3) colour of the ground at points; `blur` is the width in world units that one pixel averages."""
    kind, scale, angle, shift_x, shift_y = columns(batch.ground, scene)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    u = (cosine * x + sine * y + shift_x) * scale
    v = (cosine * y - sine * x + shift_y) * scale
    blur = (blur * scale).clamp(min=1e-3)
    pattern = torch.zeros_like(x)  # -1 is the first of the scene's two colours, +1 the second
    tint = torch.zeros_like(x)  # lighter or darker
    for number, name in enumerate(GROUNDS):
        here = (kind == number).nonzero().squeeze(1)
        if len(here):
            pattern[here], tint[here] = PATTERNS[name](*pick((u, v, blur), here))
    # What is finer than a pixel fades to its mean: no flicker in the distance.
    keep = 1 / (1 + (blur * 1.2) ** 2)
    first, second = (batch.ground_colors[:, i].index_select(0, scene) for i in range(2))
    color = mix(first, second, (0.5 + 0.5 * pattern * keep)[:, None].clamp(0, 1))
    return color * (1 + tint * keep)[:, None].clamp(0.3, 1.7)


def checker(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Squares in two colours."""
    sharp = 1 / (torch.pi * blur)
    a, b = (torch.sin(torch.pi * u) * sharp).clamp(-1, 1), (torch.sin(torch.pi * v) * sharp).clamp(-1, 1)
    return a * b, 0.07 * noise(0, u * 0.7, v * 0.7) + 0.04 * noise(1, u, v)


def planks(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Long boards, each of its own shade, with grain along them and dark gaps."""
    board = v.floor()
    along = u * 0.22 + cell_noise(board, board * 0) * 3
    own = cell_noise(along, board)
    gap = torch.minimum(line_distance(v), line_distance(along) / 0.22)
    grain = noise(0, u * 0.25 + own * 5, v * 3) + 0.5 * noise(1, u * 0.3, v * 4)
    dark = (1 - (gap - 0.02) / (blur + 0.02)).clamp(0, 1)
    return 0.75 * own + 0.35 * grain, 0.10 * grain - 0.5 * dark * (0.05 / blur).clamp(max=1)


def tiles(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Square tiles, each of its own shade, with pale joints."""
    gap = torch.minimum(line_distance(u), line_distance(v))
    joint = (1 - (gap - 0.03) / (blur + 0.01)).clamp(0, 1) * (0.06 / blur).clamp(max=1)
    own = cell_noise(u, v)
    cloud = noise(0, u * 0.8 + own * 7, v * 0.8)
    return mix(-0.65 + 0.25 * own, torch.ones_like(u), joint), (0.09 * own + 0.07 * cloud) * (1 - joint)


def terrazzo(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Chips of stone in plaster."""
    chips = noise(1, u * 0.55, v * 0.55)
    light = smoothstep(0.38, 0.52, chips) - 0.6 * smoothstep(0.40, 0.54, -chips)
    return -0.45 + 1.2 * light, 0.06 * noise(0, u * 0.5, v * 0.5)


def plaster(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Soft clouds, as on trowelled plaster."""
    cloud = noise(0, u * 0.45, v * 0.45)
    return 0.9 * cloud, 0.05 * noise(1, u, v) + 0.04 * cloud


def stripes(u: Tensor, v: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """A woven rug: broad and narrow stripes with a fine thread."""
    wide = ((torch.sin(torch.pi * v) - 0.25) / (torch.pi * blur)).clamp(-1, 1)
    narrow = ((torch.sin(torch.pi * v + 2.6) - 0.985) * 30).clamp(0, 1)
    thread = noise(1, u * 0.4, v * 2.5)
    return torch.maximum(wide * 0.8, narrow * 2 - 1), 0.09 * thread + 0.05 * noise(0, u, v)


PATTERNS = {
    "checker": checker,
    "planks": planks,
    "tiles": tiles,
    "terrazzo": terrazzo,
    "plaster": plaster,
    "stripes": stripes,
}


def backdrop(batch: SceneBatch, scene: Tensor, rise: Tensor) -> Tensor:
    """(P, 3) colour behind the ground; `rise` is the sine of the ray's angle above the horizon."""
    color = batch.backdrop.index_select(0, scene)
    return color * (1.02 - 0.55 * smoothstep(-0.05, 0.75, rise))[:, None]


def lit_ground(
    batch: SceneBatch, scene: Tensor, x: Tensor, y: Tensor, blur: Tensor, light: Tensor, rise: Tensor
) -> Tensor:
    """(P, 3) colour of the ground under lamp and sky, fading into the backdrop far away."""
    (up,), (aim,) = columns(batch.lamp[:, 2:], scene), columns(batch.camera[:, 5:], scene)
    pool = 1.06 - 0.34 * smoothstep(
        2.0, 11.0, (x * x + (y - aim) ** 2).sqrt()
    )  # the lamp is near: a pool of light
    energy = (0.34 + 0.98 * light * up) * pool
    color = ground_albedo(batch, scene, x, y, blur) * energy[:, None]
    return mix(color, backdrop(batch, scene, rise), smoothstep(FOG_START, FOG_END, y - aim)[:, None])


def shade_ground(
    batch: SceneBatch,
    scene: Tensor,
    point: tuple[Tensor, Tensor],
    way: Vector,
    light: Tensor,
    contact: Tensor,
    pixel: Tensor,
) -> Tensor:
    """(P, 3) colour of rays that meet no solid.

    Args:
        batch: the scenes.
        scene: (P,) which scene.
        point: x and y of where the ray meets the ground; far away for rays above the horizon.
        way: the direction of the ray, of length one.
        light: (P,) share of the lamp that is not hidden.
        contact: (P,) how open the ground is, 1 away from solids.
        pixel: (P,) width of a pixel at that distance in world units.
    """
    blur = (
        pixel / (-way[2]).clamp(min=0.02).sqrt()
    )  # between its width and its length: the ground lies slanted
    return lit_ground(batch, scene, *point, blur, light, way[2]) * contact[:, None]


def shade_solids(
    batch: SceneBatch, owner: Tensor, point: Vector, way: Vector, normal: Vector, light: Tensor
) -> Tensor:
    """(P, 3) colour of rays that meet the solids `owner` at `point`, coming along `way` (of length one)."""
    metal = batch.metal.index_select(0, owner) > 0
    color = torch.empty(len(owner), 3, device=light.device)
    for shade, chosen in ((matte, ~metal), (mirror, metal)):
        here = chosen.nonzero().squeeze(1)
        parts = [pick(vector, here) for vector in (point, way, normal)]
        color[here] = shade(batch, owner[here], *parts, light[here])
    return color


def reflect(way: Vector, normal: Vector) -> Vector:
    """The direction in which a mirror throws light that comes along `way`."""
    twice = 2 * dot(way, normal)
    return tuple(w - twice * n for w, n in zip(way, normal, strict=True))


def dot(one: Vector, two: Vector) -> Tensor:
    """Inner products, written out so that rounding does not depend on how many there are."""
    return one[0] * two[0] + one[1] * two[1] + one[2] * two[2]


def matte(
    batch: SceneBatch, owner: Tensor, point: Vector, way: Vector, normal: Vector, light: Tensor
) -> Tensor:
    """(P, 3) colour of rubber: the lamp, light from sky and ground all around, a faint sheen."""
    scene = batch.solid_scene.index_select(0, owner)
    lamp = columns(batch.lamp, scene)
    facing = dot(normal, lamp).clamp(0, 1) * light
    around = mix(
        batch.ground_colors.mean(1).index_select(0, scene) * 0.40,
        batch.backdrop.index_select(0, scene) * 0.33 + 0.20,
        (0.5 + 0.5 * normal[2])[:, None],
    )
    near_ground = 0.55 + 0.45 * smoothstep(
        0.0, 0.9, point[2] / batch.radius.index_select(0, owner)
    )  # less sky is seen there
    gleam = dot(reflect(way, normal), lamp).clamp(0, 1) ** 12 * light
    fresnel = (1 + dot(way, normal)).clamp(0, 1) ** 5
    sheen = 0.045 * gleam + 0.10 * fresnel * (0.5 + 0.5 * normal[2])
    return (
        batch.color.index_select(0, owner) * (around * near_ground[:, None] + 1.02 * facing[:, None])
        + sheen[:, None]
    )


def mirror(
    batch: SceneBatch, owner: Tensor, point: Vector, way: Vector, normal: Vector, light: Tensor
) -> Tensor:
    """(P, 3) colour of polished metal: it shows the ground and a studio with lamp and soft boxes."""
    scene = batch.solid_scene.index_select(0, owner)
    lamp = columns(batch.lamp, scene)
    rx, ry, rz = mirrored = reflect(way, normal)
    far = (point[2] / (-rz).clamp(min=0.03)).clamp(max=40)
    lit = torch.ones_like(far)
    floor = lit_ground(batch, scene, point[0] + rx * far, point[1] + ry * far, 0.10 + 0.02 * far, lit, rz)
    floor = (
        floor * (0.35 + 0.65 * smoothstep(0.0, 0.9, far))[:, None]
    )  # the solid darkens the ground next to it

    # Two upright soft boxes, left and right of the lamp, make the gleams along cones and cylinders.
    level = ((lamp[0] ** 2 + lamp[1] ** 2) * (rx * rx + ry * ry).clamp(min=1e-8)).sqrt()
    aside = ((ry * lamp[0] - rx * lamp[1]) / level).abs()
    box = smoothstep(0.55, 0.72, aside) * (1 - smoothstep(0.80, 0.93, aside))
    above = box * smoothstep(0.04, 0.14, rz) * (1 - smoothstep(0.72, 0.82, rz))
    sky = (
        batch.backdrop.index_select(0, scene)
        * (0.45 + 0.85 * smoothstep(0.1, 0.95, rz) + 1.7 * above)[:, None]
    )
    floor = (
        floor + batch.backdrop.index_select(0, scene) * (0.55 * box * smoothstep(-0.9, -0.2, rz))[:, None]
    )  # a waxed floor
    seen = mix(floor, sky, smoothstep(-0.03, 0.03, rz)[:, None])

    facing = dot(normal, lamp).clamp(0, 1) * light
    fresnel = (1 + dot(way, normal)).clamp(0, 1) ** 5
    glaze = seen * (0.05 + 0.45 * fresnel)[:, None]
    lamp_seen = 2.5 * smoothstep(0.93, 0.975, dot(mirrored, lamp)) * light
    return (
        batch.color.index_select(0, owner) * (seen * 1.55 + 0.22 * facing[:, None])
        + glaze
        + lamp_seen[:, None]
    )
