"""Which solid does a ray meet first? Ray casting of batches of scenes in plain torch, on a CPU or a GPU.

The work goes where the solids are. A solid's corners give a rectangle on the screen, the pixels of all the
rectangles of a batch form one flat list of candidates, and each candidate meets one solid only; the nearest
hit of a ray wins by a scattered minimum. Loops run over the four shapes, not over images, solids or pixels.

World: x to the right, y away from the camera, z up, the ground is z = 0. The camera looks along +y, so that
mirroring the image mirrors x alone. A solid of radius s is its unit solid, standing on the ground, times s.
Sums are written out by component: a matrix product may round differently when the batch has another size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SHAPES = ("sphere", "cube", "cylinder", "cone")
HALF_WIDTH = (1.0, 0.82, 0.8, 0.98)  # of the unit solids, in x and y
HEIGHT = (2.0, 1.64, 1.75, 2.0)
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))  # the usual rotated grid


@dataclass(frozen=True, slots=True)
class Solid:
    """One solid: names as in `SHAPES`, `COLORS` and so on; rgb is linear, in [0, 1];
    position and radius are in world units, yaw in radians.
    """

    shape: str
    color: str
    material: str
    size: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float
    yaw: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that an image shows.

    `camera` is (elevation, distance, aim_y, tangent of half the field of view): the camera looks down by
    `elevation` radians at (0, aim_y, 0). `lamp` is the direction to the lamp, of length one. `ground` is
    (kind, scale, angle, offset_x, offset_y), its colours are linear RGB, as is the backdrop behind it.
    """

    solids: tuple[Solid, ...]
    camera: tuple[float, float, float, float]
    lamp: tuple[float, float, float]
    ground: tuple[float, float, float, float, float]
    ground_colors: tuple[tuple[float, float, float], tuple[float, float, float]]
    backdrop: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """B scenes with M solids in all, as tensors on one device (float32, int64 for indices)."""

    solid_scene: Tensor  # (M,) which scene the solid is in
    shape: Tensor  # (M,) index into SHAPES
    place: Tensor  # (M, 2) x, y
    radius: Tensor  # (M,)
    turn: Tensor  # (M, 2) cosine and sine of the yaw
    color: Tensor  # (M, 3) linear RGB
    metal: Tensor  # (M,) 1.0 or 0.0
    first: Tensor  # (B,) index of a scene's first solid
    camera: (
        Tensor  # (B, 6) position y and z, cosine and sine of the elevation, tangent of half the view, aim y
    )
    lamp: Tensor  # (B, 3)
    ground: Tensor  # (B, 5)
    ground_colors: Tensor  # (B, 2, 3)
    backdrop: Tensor  # (B, 3)


@dataclass(frozen=True, slots=True)
class Rays:
    """P rays from the cameras of their scenes; `depth` counts in lengths of (dx, dy, dz)."""

    scene: Tensor  # (P,) int64
    dx: Tensor  # (P,) float32, as the others
    dy: Tensor
    dz: Tensor
    grain: Tensor  # (P,) int64, 0 to 3 in a fixed pattern over neighbouring rays


@dataclass(frozen=True, slots=True)
class Hits:
    """What each of P rays meets first: `owner` is the solid or -1, `face` tells its smooth parts apart."""

    owner: Tensor  # (P,) int64
    face: Tensor  # (P,) int64
    depth: Tensor  # (P,) float32, inf where there is no solid
    normal: Tensor  # (3, P) float32, of length one, zero where there is no solid
    silhouette: Tensor  # (M,) int64, rays that would meet the solid if it stood alone


def stack_scenes(scenes: list[Scene], device: str | torch.device = "cpu") -> SceneBatch:
    """The scenes as tensors on `device`."""
    solids = [solid for scene in scenes for solid in scene.solids]
    counts = torch.tensor([len(scene.solids) for scene in scenes])

    def tensor(rows):
        return torch.tensor(rows, dtype=torch.float64)

    yaw = tensor([s.yaw for s in solids])
    elevation, distance, aim, tangent = tensor([scene.camera for scene in scenes]).unbind(1)
    cosine, sine = elevation.cos(), elevation.sin()
    camera = torch.stack([aim - distance * cosine, distance * sine, cosine, sine, tangent, aim], dim=1)
    parts = dict(
        solid_scene=torch.repeat_interleave(counts),
        shape=torch.tensor([SHAPES.index(s.shape) for s in solids]),
        place=tensor([(s.x, s.y) for s in solids]),
        radius=tensor([s.radius for s in solids]),
        turn=torch.stack([yaw.cos(), yaw.sin()], dim=1),
        color=tensor([s.rgb for s in solids]),
        metal=tensor([float(s.material == "metal") for s in solids]),
        first=counts.cumsum(0) - counts,
        camera=camera,
        lamp=tensor([scene.lamp for scene in scenes]),
        ground=tensor([scene.ground for scene in scenes]),
        ground_colors=tensor([scene.ground_colors for scene in scenes]),
        backdrop=tensor([scene.backdrop for scene in scenes]),
    )
    assert parts.keys() == {field.name for field in fields(SceneBatch)}
    return SceneBatch(**{k: (v.float() if v.is_floating_point() else v).to(device) for k, v in parts.items()})


def pick(vectors: Iterable[Tensor], index: Tensor) -> list[Tensor]:
    """The chosen entries of (P,) tensors. On a CPU this takes a quarter of the time of `vector[index]`."""
    return [vector.index_select(0, index) for vector in vectors]


def columns(table: Tensor, index: Tensor) -> list[Tensor]:
    """The columns of the chosen rows of a (P, K) tensor, each as a vector."""
    return pick(table.unbind(1), index)


def pixel_rays(batch: SceneBatch, size: int, pixels: Tensor | None = None) -> Rays:
    """Rays through all pixel centres of all scenes, row by row, or through `SUBPIXELS` of given pixels."""
    scenes, device = len(batch.first), batch.first.device
    if pixels is None:
        centres = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
        u, v = centres.repeat(size), -centres.repeat_interleave(size)  # (size * size,)
        scene = torch.arange(scenes, device=device).repeat_interleave(size * size)
        _, _, cosine, sine, tangent, _ = batch.camera.T[..., None]  # (B, 1) each
        number = torch.arange(size, device=device)
        grain = ((number + 2 * number[:, None]) % 4).flatten().repeat(scenes)
    else:
        scene = (pixels // (size * size)).repeat_interleave(len(SUBPIXELS))
        row, column = pixels // size % size, pixels % size
        grain = torch.arange(len(SUBPIXELS), device=device).repeat(len(pixels))
        shift_x, shift_y = torch.tensor(SUBPIXELS, device=device).unbind(1)
        u = ((column[:, None] + (0.5 + shift_x)) * (2 / size) - 1).flatten()
        v = (1 - (row[:, None] + (0.5 + shift_y)) * (2 / size)).flatten()
        _, _, cosine, sine, tangent, _ = columns(batch.camera, scene)
    rise = v * tangent
    way = (u * tangent, cosine + rise * sine, rise * cosine - sine)
    return Rays(scene, *(part.flatten() for part in way), grain)


def cast(batch: SceneBatch, rays: Rays, size: int, rank: Tensor | None = None) -> Hits:
    """The first solid that each ray meets.

    Args:
        batch: the scenes.
        rays: P rays, from `pixel_rays`.
        size: side of the images in pixels.
        rank: None for whole images; else (B * size * size,), which four of the rays are a pixel's, or -1.
    """
    rectangles = screen_rectangles(batch, corners(batch), size)
    depth = torch.full_like(rays.dx, torch.inf)
    silhouette = torch.zeros_like(batch.shape)
    found = []
    for shape in range(len(SHAPES)):
        owner, ray = candidates(batch, rectangles, batch.shape == shape, size, rank)
        here = batch.camera[batch.solid_scene]
        origin = to_local(batch, None, torch.zeros_like(batch.radius), here[:, 0], here[:, 1])  # (M,) each
        start = pick(origin, owner)
        way = to_local(batch, owner, *pick((rays.dx, rays.dy, rays.dz), ray), is_direction=True)
        near, far = crossing(shape, *start, *way)
        hit = (near < far).nonzero().squeeze(1)
        owner, ray, near = pick((owner, ray, near), hit)
        silhouette += torch.bincount(owner, minlength=len(silhouette))
        depth.scatter_reduce_(0, ray, near, "amin")
        point = [s + near * w for s, w in zip(pick(start, hit), pick(way, hit), strict=True)]
        found.append((shape, owner, ray, near, point))

    owners, faces = torch.full_like(rays.scene, -1), torch.zeros_like(rays.scene)
    normals = torch.zeros(3, len(depth), device=depth.device)
    for shape, owner, ray, near, point in found:
        win = (near == depth.index_select(0, ray)).nonzero().squeeze(1)
        owner, ray = pick((owner, ray), win)
        (nx, ny, nz), face = unit_normal(shape, *pick(point, win))
        cosine, sine = columns(batch.turn, owner)
        owners.scatter_(0, ray, owner)
        faces.scatter_(0, ray, face)
        for axis, part in enumerate((cosine * nx - sine * ny, sine * nx + cosine * ny, nz)):
            normals[axis].scatter_(0, ray, part)
    return Hits(owners, faces, depth, normals, silhouette)


def corners(batch: SceneBatch) -> Tensor:
    """(M, 8, 3) corners of the upright boxes around the solids; the first four are on the ground."""
    signs = torch.tensor([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)] * 2, device=batch.radius.device)
    half = batch.radius * torch.tensor(HALF_WIDTH, device=batch.radius.device)[batch.shape]
    height = batch.radius * torch.tensor(HEIGHT, device=batch.radius.device)[batch.shape]
    cosine, sine = batch.turn[:, :1], batch.turn[:, 1:]
    dx, dy = half[:, None] * signs[:, 0], half[:, None] * signs[:, 1]  # (M, 8)
    x = batch.place[:, :1] + cosine * dx - sine * dy
    y = batch.place[:, 1:] + sine * dx + cosine * dy
    z = torch.cat([torch.zeros_like(dx[:, :4]), height[:, None].expand(-1, 4)], dim=1)
    return torch.stack([x, y, z], dim=-1)


def screen_rectangles(batch: SceneBatch, points: Tensor, size: int, margin: float = 0.0) -> Tensor:
    """Pixels that the hulls of (M, K, 3) points can cover, `margin` (a share of the image) wider.

    Returns:
        int64 (M, 4): first column, the one past the last, first row, the one past the last.
    """
    y, z, cosine, sine, tangent, _ = batch.camera[batch.solid_scene].T[..., None]  # (M, 1) each
    ahead, above = points[..., 1] - y, points[..., 2] - z
    deep = ((ahead * cosine - above * sine).clamp(min=0.1) * tangent).reciprocal()
    column = (points[..., 0] * deep + 1) * (size / 2)
    row = (1 - (ahead * sine + above * cosine) * deep) * (size / 2)
    grow = 1 + margin * size  # one pixel for rounding and for the subpixels
    sides = [column.amin(1) - grow, column.amax(1) + grow, row.amin(1) - grow, row.amax(1) + grow]
    return torch.stack(sides, dim=1).floor().clamp(0, size).long()


def candidates(
    batch: SceneBatch, rectangles: Tensor, chosen: Tensor, size: int, rank: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All pairs of a chosen solid and a ray through its rectangle: int64 (C,) solids and (C,) rays.

    Args:
        batch: the scenes.
        rectangles: (M, 4), from `screen_rectangles`.
        chosen: bool (M,), the solids to list.
        size: side of the images in pixels.
        rank: as in `cast`.
    """
    solids = chosen.nonzero().squeeze(1)
    left, right, top, bottom = rectangles[solids].unbind(1)
    width = right - left
    count = width * (bottom - top)
    which = torch.repeat_interleave(count)  # (C,) index into solids
    offset = torch.arange(len(which), device=which.device) - (count.cumsum(0) - count).index_select(0, which)
    corner = (batch.solid_scene[solids] * size + top) * size + left
    owner, width, corner = pick((solids, width, corner), which)
    row = offset // width
    ray = corner + row * size + (offset - row * width)
    if rank is None:
        return owner, ray
    group = rank.index_select(0, ray)
    keep = (group >= 0).nonzero().squeeze(1)
    number = torch.arange(len(SUBPIXELS), device=ray.device)
    owner, group = pick((owner, group), keep)
    return owner.repeat_interleave(len(number)), (group[:, None] * len(number) + number).flatten()


def to_local(
    batch: SceneBatch, owner: Tensor | None, x: Tensor, y: Tensor, z: Tensor, is_direction: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Points or directions in the frames of the unit solids `owner` (None: of all M solids in turn)."""
    scale = batch.radius.reciprocal()
    frame = (*batch.place.unbind(1), *(batch.turn * scale[:, None]).unbind(1), scale)
    place_x, place_y, cosine, sine, scale = frame if owner is None else pick(frame, owner)
    if not is_direction:
        x, y = x - place_x, y - place_y
    return cosine * x + sine * y, cosine * y - sine * x, z * scale


def crossing(shape: int, x: Tensor, y: Tensor, z: Tensor, dx: Tensor, dy: Tensor, dz: Tensor):
    """Where rays enter and leave a unit solid, in lengths of their direction; a miss where near >= far."""
    width, height = HALF_WIDTH[shape], HEIGHT[shape]
    if shape == 0:
        return roots(
            dx * dx + dy * dy + dz * dz, x * dx + y * dy + (z - 1) * dz, x * x + y * y + (z - 1) ** 2 - 1
        )
    near, far = slab(z, dz, 0.0, height)
    if shape == 1:
        for position, way in ((x, dx), (y, dy)):
            enter, leave = slab(position, way, -width, width)
            near, far = torch.maximum(near, enter), torch.minimum(far, leave)
        return near, far
    if shape == 2:
        enter, leave = roots(dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - width**2)
    else:
        # A cone is where x^2 + y^2 < (slope * (height - z))^2. Rays steeper than its side also meet the
        # mirrored cone above the tip; the slab cuts that off once the right one of two half-lines is taken.
        slope, below = (width / height) ** 2, height - z
        a = dx * dx + dy * dy - slope * dz * dz
        b = x * dx + y * dy + slope * below * dz
        enter, leave = roots(a, b, x * x + y * y - slope * below * below)
        steep, down = a < 0, dz < 0
        low, high = torch.minimum(enter, leave), torch.maximum(enter, leave)
        enter = torch.where(steep, torch.where(down, high, -torch.inf), enter)
        leave = torch.where(steep, torch.where(down, torch.inf, low), leave)
    return torch.maximum(near, enter), torch.minimum(far, leave)


def slab(position: Tensor, way: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the space between two parallel planes."""
    inverse = way.reciprocal()
    one, two = (low - position) * inverse, (high - position) * inverse
    return torch.minimum(one, two), torch.maximum(one, two)


def roots(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Both solutions t of a t^2 + 2 b t + c = 0, (inf, -inf) where there is none."""
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    inverse = torch.where(a.abs() < 1e-9, 1e-9, a).reciprocal()
    missed = discriminant <= 0
    enter, leave = (-b - root) * inverse, (root - b) * inverse
    return enter.masked_fill(missed, torch.inf), leave.masked_fill(missed, -torch.inf)


def unit_normal(shape: int, x: Tensor, y: Tensor, z: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Normals at points of a unit solid, and int64 numbers that differ between the parts a crease divides."""
    width, height = HALF_WIDTH[shape], HEIGHT[shape]
    zero = torch.zeros_like(x)
    if shape == 0:
        return (x, y, z - 1), zero.long()
    top = z > height - 1e-3
    if shape == 1:
        by_x = ~top & (x.abs() > y.abs())
        by_y = ~top & ~by_x
        nx, ny = torch.where(by_x, x.sign(), zero), torch.where(by_y, y.sign(), zero)
        return (nx, ny, top.float()), (nx + 3 * ny).long() + 3
    if shape == 2:
        return (
            torch.where(top, zero, x / width),
            torch.where(top, zero, y / width),
            top.float(),
        ), top.long()
    across = (x * x + y * y).sqrt().clamp(min=1e-6) * (1 + (width / height) ** 2) ** 0.5
    flat = width / height / (1 + (width / height) ** 2) ** 0.5
    return (x / across, y / across, torch.full_like(x, flat)), zero.long()
