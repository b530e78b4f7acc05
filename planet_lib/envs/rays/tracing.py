"""Which geom a ray meets first.

The closed forms of `shapes` serve all but meshes and height fields; for those MuJoCo is asked ray by ray
(`mj_rayMesh`, `mj_rayHfield`). MuJoCo's own batched `mj_multiRay` is not used: in 3.17 it silently misses geoms.
"""

import itertools
from collections.abc import Iterable

import mujoco
import numpy as np

from planet_lib.envs.rays.scene import Geoms, View
from planet_lib.envs.rays.shapes import CAPSULE, ENTER, HFIELD, MESH, PLANE, Array, normals


class Tracer:
    """Rays against the geoms of one model.

    Args:
        model: an MjModel.
        data: its MjData.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data = model, data

    def enter(self, geoms: Geoms, index: int, origin: Array, direction: Array) -> Array:
        """Return where rays enter one geom, [N], inf where they do not.

        Shapes: origin [3] or [N, 3], direction [N, 3] unit vectors.
        """
        kind = int(geoms.kind[index])
        if kind not in ENTER:
            return self._ask(kind, int(geoms.model_id[index]), origin, direction)[0]
        axes = geoms.mat[index]
        return ENTER[kind]((origin - geoms.pos[index]) @ axes, direction @ axes, geoms.size[index])

    def normal(self, geoms: Geoms, index: int, points: Array, eye: Array) -> Array:
        """Return the outward normals [N, 3] of one geom at points [N, 3] on it, seen from `eye`."""
        kind = int(geoms.kind[index])
        if kind not in ENTER:
            direction = points - eye
            direction /= np.maximum(np.sqrt(np.square(direction).sum(axis=1)), 1e-12)[:, None]
            return self._ask(kind, int(geoms.model_id[index]), eye, direction)[1]
        axes = geoms.mat[index]
        normal: Array = normals(kind, (points - geoms.pos[index]) @ axes, geoms.size[index]) @ axes.T
        return normal

    def first(
        self,
        geoms: Geoms,
        which: Iterable[int],
        origin: Array,
        direction: Array,
        candidate: Array,
        *,
        beyond: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return the geom that each ray meets first and where: ids [N], -1 for none, and distances [N].

        Args:
            geoms: the geoms.
            which: the indices that count.
            origin: [3] or [N, 3].
            direction: [N, 3] unit vectors.
            candidate: [N, G] bool: which rays may meet which geom (see `may_meet`).
            beyond: [N], from where on a meeting counts; None for everywhere.
        """
        nearest = np.full(len(direction), np.inf)
        ids = np.full(len(direction), -1)
        for index in which:
            rays = np.flatnonzero(candidate[:, index])
            if len(rays):
                starts = origin if origin.ndim == 1 else origin[rays]
                distance = self.enter(geoms, index, starts, direction[rays])
                better = distance < nearest[rays]
                if beyond is not None:
                    better &= distance >= beyond[rays]
                nearest[rays[better]] = distance[better]
                ids[rays[better]] = index
        return ids, nearest

    def _ask(self, kind: int, model_id: int, origin: Array, direction: Array) -> tuple[Array, Array]:
        """Ask MuJoCo for one height field or mesh, ray by ray: distances [N], inf for none, and normals [N, 3]."""
        cast = mujoco.mj_rayHfield if kind == HFIELD else mujoco.mj_rayMesh
        normal = np.zeros((len(direction), 3))
        starts = np.broadcast_to(origin, direction.shape)
        distance = np.array(
            [
                cast(self._model, self._data, model_id, start, way, row)
                for start, way, row in zip(starts, direction, normal, strict=True)
            ]
        )
        return np.where(distance < 0, np.inf, distance), normal


def may_show(geoms: Geoms, view: View, height: int, width: int) -> Array:
    """Tell which pixels may show which geom, [Y, X, G], by the rectangles that the geoms' boxes cover."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    boxes = geoms.size + np.where(geoms.kind == CAPSULE, geoms.size[:, 0], 0.0)[:, None] * (0.0, 0.0, 1.0)
    boxes[geoms.kind == PLANE, 2] = 0
    has_faces = (geoms.kind == HFIELD) | (geoms.kind == MESH)
    boxes[has_faces] = geoms.bound[has_faces, None]
    away = np.einsum("gck,gik->gci", corners * boxes[:, None], geoms.mat) + (geoms.pos - view.pos)[:, None]
    depth = away @ view.forward
    scale = np.ones_like(depth) if view.orthographic else np.maximum(depth, 1e-12)
    anywhere = ~np.isfinite(geoms.bound) | ((depth.min(axis=1) < 1e-6) & (not view.orthographic))
    masks = []
    for axis, first, last, count in (
        (view.right, view.centre - view.half_width, view.centre + view.half_width, width),
        (view.up, view.top, view.bottom, height),
    ):
        place = ((away @ axis) / scale - first) / (last - first) * count
        pixels = np.arange(count)[:, None]
        masks.append(((place.min(axis=1) <= pixels + 1) & (place.max(axis=1) >= pixels)) | anywhere)
    shown: Array = masks[1][:, None] & masks[0][None]
    return shown


def may_meet(geoms: Geoms, origin: Array, direction: Array) -> Array:
    """Tell which rays may meet which geom, [N, G], by the balls around the geoms.

    Args:
        geoms: the geoms.
        origin: [3] or [N, 3].
        direction: [N, 3] unit vectors.
    """
    if origin.ndim == 1:
        away = geoms.pos - origin
        distance = np.maximum(np.sqrt(np.square(away).sum(axis=1)), 1e-12)
        angle = np.where(geoms.bound < distance, np.arcsin(np.minimum(geoms.bound / distance, 1.0)), np.pi)
        limit = np.cos(np.minimum(angle + 1e-6, np.pi))
        near: Array = direction @ (away / distance[:, None]).T >= limit
        return near
    along = direction @ geoms.pos.T - np.einsum("ni,ni->n", direction, origin)[:, None]
    squared = np.square(origin).sum(axis=1)[:, None] - 2 * origin @ geoms.pos.T + np.square(geoms.pos).sum(axis=1)
    bound = np.minimum(geoms.bound * (1 + 1e-6), 1e15)
    close: Array = (squared - along * along <= bound**2) & (along > -bound)
    return close


def widen(geoms: Geoms, eye: Array, pixel: float, *, orthographic: bool) -> Geoms:
    """Return the geoms with capsules at least `pixel` wide as seen from `eye` (`pixel` is its width at distance 1)."""
    distance = np.sqrt(np.square(geoms.pos - eye).sum(axis=1))
    least = np.full(len(distance), pixel / 2) if orthographic else distance * pixel / 2
    thin = (geoms.kind == CAPSULE) & (geoms.size[:, 0] < least)
    if not thin.any():
        return geoms
    size, bound = geoms.size.copy(), geoms.bound.copy()
    size[thin, 0] = size[thin, 1] = least[thin]
    bound[thin] = size[thin, 0] + size[thin, 2]
    return geoms._replace(size=size, bound=bound)
