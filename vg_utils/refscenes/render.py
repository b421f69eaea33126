"""Draws batches of RefScenes: visible solids, light and shadow, smooth edges, in plain torch.

Each image is cast once with a ray per pixel; only the pixels at an edge are then cast again with four. The
lamp is a small disc of points, so shadows are soft; what a solid can shade lies in the hull of the solid
and its shadow on the ground, whose rectangle on the screen lists the candidates, as for solids themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vg_utils.refscenes.raycast import (
    HALF_WIDTH,
    HEIGHT,
    SHAPES,
    SUBPIXELS,
    Hits,
    Rays,
    SceneBatch,
    candidates,
    cast,
    columns,
    corners,
    crossing,
    pick,
    pixel_rays,
    screen_rectangles,
    to_local,
)
from vg_utils.refscenes.surfaces import shade_ground, shade_solids, to_srgb

LAMP_RADIUS = 0.11  # the lamp is a disc this wide at distance one: the width of the penumbra
LAMP_DISC = tuple(  # points of the lamp, spread like the seeds of a sunflower
    (
        LAMP_RADIUS * (seed / 10) ** 0.5 * math.cos(2.39996 * seed),
        LAMP_RADIUS * (seed / 10) ** 0.5 * math.sin(2.39996 * seed),
    )
    for seed in (step + 0.5 for step in range(10))
)
CONTACT_REACH = 1.7  # the dark rim where a solid meets the ground, in units of its half width


def render(batch: SceneBatch, size: int) -> tuple[Tensor, Tensor]:
    """Draw the scenes.

    Args:
        batch: B scenes.
        size: side of the square images in pixels.

    Returns:
        images: uint8 (B, 3, size, size), sRGB.
        ids: int64 (B, size, size), index of the visible solid within its scene, -1 for ground and backdrop.
    """
    scenes = len(batch.first)
    rays = pixel_rays(batch, size)
    hits = cast(batch, rays, size)
    color = to_srgb(shade(batch, rays, hits, size))  # (P, 3)

    # Pixels next to another surface are drawn again with four rays each: cheap smooth edges.
    surface = (hits.owner * 8 + hits.face).view(scenes, size, size)
    edge = torch.zeros_like(surface, dtype=torch.bool)
    across, down = surface[:, :, 1:] != surface[:, :, :-1], surface[:, 1:] != surface[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge_pixels = edge.flatten().nonzero().squeeze(1)
    if len(edge_pixels):
        rank = torch.full_like(hits.owner, -1)
        rank[edge_pixels] = torch.arange(len(edge_pixels), device=rank.device)
        fine = pixel_rays(batch, size, edge_pixels)
        fine_color = to_srgb(shade(batch, fine, cast(batch, fine, size, rank), size, rank))
        color[edge_pixels] = fine_color.view(-1, len(SUBPIXELS), 3).mean(1)

    images = (color * 255 + 0.5).to(torch.uint8).view(scenes, size, size, 3).permute(0, 3, 1, 2).contiguous()
    return images, local_ids(batch, rays, hits).view(scenes, size, size)


def look(batch: SceneBatch, size: int) -> tuple[Tensor, Tensor]:
    """What is seen, without drawing: `ids` as in `render`, int64 (M,) pixels of every whole silhouette."""
    rays = pixel_rays(batch, size)
    hits = cast(batch, rays, size)
    return local_ids(batch, rays, hits).view(-1, size, size), hits.silhouette


def visible_boxes(batch: SceneBatch, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Extent of each solid's visible pixels, int64 (M, 4) x1, y1, x2, y2 (outer edges), and their (M,) count.

    A solid of which nothing is visible has the box (0, 0, 0, 0).
    """
    scene, row, column = (ids >= 0).nonzero().unbind(1)
    owner = batch.first[scene] + ids[scene, row, column]
    size = ids.shape[-1]
    low = torch.full((2, len(batch.shape)), size, device=ids.device)
    high = torch.zeros_like(low)
    for axis, position in enumerate((column, row)):
        low[axis].scatter_reduce_(0, owner, position, "amin")
        high[axis].scatter_reduce_(0, owner, position + 1, "amax")
    return torch.cat([torch.minimum(low, high), high]).T, torch.bincount(owner, minlength=len(batch.shape))


def local_ids(batch: SceneBatch, rays: Rays, hits: Hits) -> Tensor:
    """(P,) index of the solid within its own scene, -1 where there is none."""
    return torch.where(hits.owner < 0, hits.owner, hits.owner - batch.first.index_select(0, rays.scene))


def shade(batch: SceneBatch, rays: Rays, hits: Hits, size: int, rank: Tensor | None = None) -> Tensor:
    """(P, 3) linear RGB of the rays; `rank` as in `cast`."""
    camera_y, camera_z, _, _, tangent, _ = columns(batch.camera, rays.scene)
    is_solid = hits.owner >= 0
    depth = torch.where(
        is_solid, hits.depth, camera_z / (-rays.dz).clamp(min=1e-3)
    )  # the ground, or beyond sight
    x, y = rays.dx * depth, camera_y + rays.dy * depth
    z = torch.where(is_solid, camera_z + rays.dz * depth, 0.0)
    light, contact = shadows(batch, hits.owner, (x, y, z), rays.grain, size, rank)

    length = (rays.dx * rays.dx + rays.dy * rays.dy + rays.dz * rays.dz).sqrt()
    way = (rays.dx / length, rays.dy / length, rays.dz / length)
    pixel = depth * (2 / size) * tangent  # width of a pixel out there
    color = torch.empty(len(depth), 3, device=depth.device)
    here = (~is_solid).nonzero().squeeze(1)
    parts = [pick(vector, here) for vector in ((x, y), way)]
    color[here] = shade_ground(batch, rays.scene[here], *parts, *pick((light, contact, pixel), here))
    here = is_solid.nonzero().squeeze(1)
    parts = [pick(vector, here) for vector in ((x, y, z), way, hits.normal)]
    color[here] = shade_solids(batch, hits.owner[here], *parts, light[here])
    return color


def shadows(
    batch: SceneBatch,
    owner: Tensor,
    points: tuple[Tensor, Tensor, Tensor],
    grain: Tensor,
    size: int,
    rank: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """How much of the lamp each of P points sees, and how open the ground is there: (P,) each, in [0, 1]."""
    box = corners(batch)  # (M, 8, 3)
    lamp = batch.lamp[batch.solid_scene]  # (M, 3)
    thrown = box - lamp[:, None] * (box[..., 2:] / lamp[:, None, 2:])  # the corners' shadows on the ground
    middle = box[:, :4].mean(1, keepdim=True)
    rim = (box[:, :4] - middle) * CONTACT_REACH + middle
    rectangles = screen_rectangles(batch, torch.cat([box, thrown, rim], dim=1), size, margin=0.04)
    axis, *disc = lamp_frame(batch)  # (M, 3) each, in the frames of the solids
    angles = torch.arange(4, device=owner.device) * 0.6
    turns = torch.stack([angles.cos(), angles.sin()], dim=1)
    light, contact = torch.ones_like(points[0]), torch.ones_like(points[0])
    for shape in range(len(SHAPES)):
        width, height = HALF_WIDTH[shape], HEIGHT[shape]
        solid, point = candidates(batch, rectangles, batch.shape == shape, size, rank)
        # Solids are convex: their own dark sides are a matter of shading.
        other = (owner.index_select(0, point) != solid).nonzero().squeeze(1)
        solid, point = pick((solid, point), other)
        start = sx, sy, sz = to_local(batch, solid, *pick(points, point))
        beside = sx * sx + sy * sy
        rim_open = 1 - 0.55 * (1 - beside / (width * CONTACT_REACH) ** 2).clamp(min=0) ** 2 * (sz <= 0)
        contact.scatter_reduce_(0, point, rim_open, "amin")

        # Most candidates lie clear of the shadow: their ray to the lamp misses a ball around the solid.
        way = ax, ay, az = columns(axis, solid)
        up = sz - height / 2
        ahead = -(ax * sx + ay * sy + az * up) / (ax * ax + ay * ay + az * az)  # in lengths of the local axis
        miss = (sx + ax * ahead) ** 2 + (sy + ay * ahead) ** 2 + (up + az * ahead) ** 2
        ball = (width**2 * (2 if shape == 1 else 1) + height**2 / 4) ** 0.5 if shape else 1.0
        spread = LAMP_RADIUS * ahead / batch.radius.index_select(0, solid)
        close = ((ahead > 0) & (miss < (ball + spread) ** 2)).nonzero().squeeze(1)
        solid, point = pick((solid, point), close)
        start, way = pick(start, close), pick(way, close)
        side, rise = (columns(table, solid) for table in disc)
        # Neighbouring pixels turn the lamp's points differently: fine grain in the penumbra instead of rings.
        cosine, sine = columns(turns, grain.index_select(0, point))
        side, rise = (
            [cosine * s + sine * r for s, r in zip(side, rise, strict=True)],
            [cosine * r - sine * s for s, r in zip(side, rise, strict=True)],
        )
        hidden = torch.zeros_like(start[0])
        for across, along in LAMP_DISC:
            near, far = crossing(
                shape, *start, *(w + across * s + along * r for w, s, r in zip(way, side, rise, strict=True))
            )
            hidden += (near < far) & (far > 0)
        light.scatter_reduce_(0, point, 1 - hidden / len(LAMP_DISC), "amin")
    return light, contact


def lamp_frame(batch: SceneBatch) -> list[Tensor]:
    """Direction to the lamp and two directions across it, in the frames of the M solids: (M, 3) each."""
    lamp = batch.lamp[batch.solid_scene]
    side = torch.stack([lamp[:, 1], -lamp[:, 0], torch.zeros_like(lamp[:, 0])], dim=1)
    side = side / (side * side).sum(1, keepdim=True).sqrt()
    frame = (lamp, side, torch.linalg.cross(side, lamp))
    return [torch.stack(to_local(batch, None, *way.unbind(1), is_direction=True), dim=1) for way in frame]
