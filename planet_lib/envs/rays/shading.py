"""The colours of points that rays found: light, shadow, texture, mirror, sky and haze.

Source: MuJoCo 3.17, what its classic renderer does (render_gl3.c), in the order of its passes.
"""

from typing import NamedTuple

import mujoco
import numpy as np

from planet_lib.envs.rays.lighting import Surface, in_shadow_map, lit
from planet_lib.envs.rays.scene import Geoms, Light, Scene, View
from planet_lib.envs.rays.shapes import BOX, ENTER, PLANE, Array, faces
from planet_lib.envs.rays.textures import Texture, read_texture
from planet_lib.envs.rays.tracing import Tracer, may_meet

# GL draws the sky on a cylinder of this part of the far distance around the eye, over whatever lies behind it.
_SKY_RADIUS = 0.7


class Now(NamedTuple):
    """A scene at one moment."""

    geoms: Geoms
    lights: list[Light]
    view: View
    pixel: float  # width of a pixel at distance 1


class Shader:
    """Colours for the geoms of one model.

    Args:
        model: an MjModel.
        scene: its abstract scene.
        tracer: its rays.
    """

    def __init__(self, model: mujoco.MjModel, scene: Scene, tracer: Tracer) -> None:
        self._scene, self._tracer = scene, tracer
        self._textures: dict[int, Texture | None] = {}
        self._grids: dict[int, tuple[Array, Array]] = {}
        self._model = model
        skies = np.flatnonzero(model.tex_type == int(mujoco.mjtTexture.mjTEXTURE_SKYBOX))
        self._sky = self._texture(int(skies[0])) if len(skies) else None
        self._clip = float(model.stat.extent * model.vis.map.shadowclip)
        self._scale = float(model.vis.map.shadowscale)
        self._has_shadows = model.vis.quality.shadowsize > 0
        self._haze = np.array(model.vis.rgba.haze[:3], float), float(model.vis.map.haze)

    def horizon(self, view: View, direction: Array) -> Array:
        """Return how far one can see in each direction, [N]: to the sky, or to the far plane without a sky."""
        limit: Array = view.far / np.maximum(direction @ view.forward, 1e-12)
        if self._sky is not None:
            flat = np.hypot(direction[:, 0], direction[:, 1])
            limit = _SKY_RADIUS * view.far / np.maximum(flat, np.abs(direction[:, 2]))
        return limit

    def opaque(self, now: Now, points: Array, ids: Array) -> Array:
        """Return the colours [N, 3] of points on opaque geoms `ids` [N]; for -1 the sky in the points' direction."""
        colours = np.zeros_like(points)
        sky = np.flatnonzero(ids < 0)
        if self._sky is not None and len(sky):
            x, y, z = (points[sky] - now.view.pos).T
            texels = np.full(len(sky), now.pixel * self._sky.width / 2)
            colours[sky] = self._sky.cube(np.stack([x, z, -y], axis=1), texels)
        ground = np.flatnonzero(ids >= 0)
        colours[ground] = self._lit(now, points[ground], ids[ground])
        self._add_haze(now, points, ids, colours)
        return colours

    def unshadowed(self, now: Now, points: Array, ids: Array, *, eye: Array, dim: float = 1.0) -> Array:
        """Return the colours [N, 3] of points under all lights without shadow, the geoms' own times `dim`."""
        surface, texture = self._surface(now, points, ids, eye)
        light = lit(now.lights, surface._replace(rgb=surface.rgb * dim), is_base=True)
        unlit = now.geoms.unlit[ids]
        light[unlit] = surface.rgb[unlit] * dim
        return light * texture

    def _lit(self, now: Now, points: Array, ids: Array) -> Array:
        """Return the colours of points on opaque geoms."""
        geoms = now.geoms
        surface, texture = self._surface(now, points, ids, now.view.pos)
        shadows = [light for light in now.lights if light.casts and self._has_shadows]
        passes = [
            [light for light in now.lights if not (light.casts and self._has_shadows)],
            *([one] for one in shadows),
        ]
        light = self._passes(now, surface, ids, passes)
        for number, one in enumerate(shadows, start=1):
            light[number] *= self._visible(now, one, points, surface.normal, ids)[:, None]
        total = light.sum(axis=0)
        unlit = geoms.unlit[ids]
        total[unlit] = surface.rgb[unlit]
        total *= texture
        if geoms.mirror >= 0:
            self._add_mirror(now, points, surface.normal, ids, total)
        colours: Array = np.minimum(total, 1.0)
        return colours

    def _passes(self, now: Now, surface: Surface, ids: Array, passes: list[list[Light]]) -> Array:
        """Return the light of each pass, [P, N, 3]: reckoned at each point, on planes at their vertices, as in GL."""
        planes = now.geoms.kind[ids] == PLANE
        light = np.zeros((len(passes), *surface.point.shape))
        rest = np.flatnonzero(~planes)
        light[:, rest] = _lit_passes(passes, Surface(*(part[rest] for part in surface)))
        for index in np.unique(ids[planes]):
            on = np.flatnonzero(ids == index)
            light[:, on] = self._lit_plane(now, int(index), surface.point[on], passes)
        return light

    def _lit_plane(self, now: Now, index: int, points: Array, passes: list[list[Light]]) -> Array:
        """Return the light of each pass on a plane, [P, N, 3], mixed from that at the corners of its cells."""
        geoms, model_id = now.geoms, int(now.geoms.model_id[index])
        axes, place = geoms.mat[index], geoms.pos[index]
        if model_id not in self._grids:
            self._grids[model_id] = self._scene.plane_grid(model_id)
        columns, rows = self._grids[model_id]
        x, y, _ = ((points - place) @ axes).T
        column = np.clip(np.searchsorted(columns, x) - 1, 0, len(columns) - 2)
        row = np.clip(np.searchsorted(rows, y) - 1, 0, len(rows) - 2)
        cells, cell = np.unique(column * len(rows) + row, return_inverse=True)
        left, low = np.divmod(cells, len(rows))
        corner_x, corner_y = (
            np.concatenate([left, left + 1, left, left + 1]),
            np.concatenate([low, low, low + 1, low + 1]),
        )
        local = np.stack([columns[corner_x], rows[corner_y], np.zeros(len(corner_x))], axis=1)
        light = _lit_passes(passes, _plain(geoms, index, local @ axes.T + place, now.view.pos))
        corners = np.moveaxis(light.reshape(len(passes), 4, len(cells), 3), 0, 2).reshape(4, len(cells), -1)
        across = (x - columns[column]) / np.maximum(columns[column + 1] - columns[column], 1e-12)
        upwards = (y - rows[row]) / np.maximum(rows[row + 1] - rows[row], 1e-12)
        parts = [(1 - across) * (1 - upwards), across * (1 - upwards), (1 - across) * upwards, across * upwards]
        mixed = np.zeros((len(points), 3 * len(passes)))
        for part, corner in zip(parts, corners, strict=True):
            mixed += part[:, None] * corner[cell.ravel()]
        return np.moveaxis(mixed.reshape(len(points), len(passes), 3), 1, 0)

    def _surface(self, now: Now, points: Array, ids: Array, eye: Array) -> tuple[Surface, Array]:
        """Return what lies at the points, and the colours [N, 3] of its texture."""
        geoms = now.geoms
        to_eye = eye - points
        distance = np.maximum(np.sqrt(np.einsum("ni,ni->n", to_eye, to_eye)), 1e-12)
        to_eye = to_eye / distance[:, None]
        normal, texture = np.zeros_like(points), np.ones_like(points)
        for index in np.unique(ids):
            on = np.flatnonzero(ids == index)
            normal[on] = self._tracer.normal(geoms, int(index), points[on], eye)
            image = self._texture(int(geoms.texture[index])) if geoms.kind[index] in ENTER else None
            if image is not None:
                steps = _pixel_steps(now, points[on] - eye, normal[on])
                texture[on] = _textured(image, geoms, int(index), points[on], steps)
        return Surface(points, normal, to_eye, geoms.rgba[ids, :3], geoms.finish[ids]), texture

    def _visible(self, now: Now, light: Light, points: Array, normal: Array, ids: Array) -> Array:
        """Tell at which points, [N], no geom stands between them and the light."""
        geoms = now.geoms
        away = points - light.pos
        depth = away @ light.dir
        if light.directional:
            origin, length = points - depth[:, None] * light.dir, depth
            direction = np.broadcast_to(light.dir, points.shape)
        else:
            origin, length = light.pos, np.maximum(np.sqrt(np.einsum("ni,ni->n", away, away)), 1e-12)
            direction = away / length[:, None]
        covered = in_shadow_map(light, points, clip=self._clip, scale=self._scale)
        faces_away = np.einsum("ni,ni->n", normal, direction) >= 0
        visible: Array = ~(covered & faces_away & (geoms.kind[ids] != PLANE))
        asked = np.flatnonzero(covered & ~faces_away)
        starts = origin if origin.ndim == 1 else origin[asked]
        blockers = may_meet(geoms, starts, direction[asked]) & (ids[asked, None] != np.arange(len(geoms.kind)))
        for index in np.flatnonzero(geoms.casts):
            rows = np.flatnonzero(blockers[:, index])
            if len(rows):
                rays = asked[rows]
                starts = origin if origin.ndim == 1 else origin[rays]
                distance = self._tracer.enter(geoms, int(index), starts, direction[rays])
                visible[rays[distance < length[rays] * (1 - 1e-4)]] = False
        return visible

    def _add_mirror(self, now: Now, points: Array, normal: Array, ids: Array, colours: Array) -> None:
        """Add to the colours what the reflecting geom mirrors: solid geoms under all lights, dimmed."""
        geoms, index = now.geoms, now.geoms.mirror
        up, place = geoms.mat[index][:, 2], geoms.pos[index]
        if geoms.kind[index] == BOX:
            place = place + up * geoms.size[index, 2]
        on = np.flatnonzero((ids == index) & (normal @ up > 0.99))
        height = float((now.view.pos - place) @ up)
        if height <= 0 or not len(on) or now.view.orthographic:
            return
        eye = now.view.pos - 2 * height * up
        away = points[on] - eye
        length = np.sqrt(np.einsum("ni,ni->n", away, away))
        direction = away / length[:, None]
        which = [int(each) for each in np.flatnonzero(geoms.solid) if each != index]
        found, distance = self._tracer.first(
            geoms, which, eye, direction, may_meet(geoms, eye, direction), beyond=length
        )
        seen = np.flatnonzero(found >= 0)
        if len(seen):
            mirrored = eye + distance[seen, None] * direction[seen]
            dim = float(geoms.finish[index, 3])
            colours[on[seen]] += self.unshadowed(now, mirrored, found[seen], eye=eye, dim=dim)

    def _add_haze(self, now: Now, points: Array, ids: Array, colours: Array) -> None:
        """Mix in the haze around an endless plane: a cone from the plane, at part of the horizon, up to eye level."""
        geoms = now.geoms
        endless = np.flatnonzero((geoms.kind == PLANE) & (geoms.size[:, 0] == 0) & (geoms.size[:, 1] == 0))
        rgb, ring = self._haze
        if self._sky is None or not len(endless) or ring <= 0:
            return
        up, place = geoms.mat[endless[0]][:, 2], geoms.pos[endless[0]]
        radius = _SKY_RADIUS * now.view.far
        elevation = float((now.view.pos - place) @ up) / radius
        if elevation < 0:
            return
        away = points - now.view.pos
        drop = -(away @ up)
        flat = np.sqrt(np.maximum(np.einsum("ni,ni->n", away, away) - drop * drop, 1e-24))
        slope = drop / flat
        low = slope / np.maximum(elevation + slope * ring, 1e-12)
        alpha_angle = np.arctan2(1, ring)
        middle = np.sqrt(0.5) * ring * np.sin(alpha_angle) / np.sin(0.75 * np.pi - alpha_angle)
        level = 1 - low
        alpha = np.where(level < middle, level / max(middle, 1e-12), (1 - level) / max(1 - middle, 1e-12))
        nearer = (ids < 0) | (radius * (1 - ring * low) < flat)
        alpha = np.where((low >= 0) & (low <= 1) & nearer, np.clip(alpha, 0, 1), 0.0)[:, None]
        colours += alpha * (rgb - colours)

    def _texture(self, index: int) -> Texture | None:
        """Return a texture of the model, read at its first use; None for index -1."""
        if index < 0:
            return None
        if index not in self._textures:
            self._textures[index] = read_texture(self._model, index)
        return self._textures[index]


def _lit_passes(passes: list[list[Light]], surface: Surface) -> Array:
    """Return the light of each pass, [P, N, 3]; what shines by itself does so in the first."""
    return np.stack([lit(lights, surface, is_base=number == 0) for number, lights in enumerate(passes)])


def _plain(geoms: Geoms, index: int, points: Array, eye: Array) -> Surface:
    """Return a plane's surface at points of it."""
    to_eye = eye - points
    to_eye /= np.maximum(np.sqrt(np.square(to_eye).sum(axis=1)), 1e-12)[:, None]
    count = len(points)
    normal = np.broadcast_to(geoms.mat[index][:, 2], (count, 3))
    rgb, finish = geoms.rgba[index, :3], geoms.finish[index]
    return Surface(points, normal, to_eye, np.broadcast_to(rgb, (count, 3)), np.broadcast_to(finish, (count, 4)))


def _pixel_steps(now: Now, away: Array, normal: Array) -> Array:
    """Return how far points `away` [N, 3] from the eye move on their surface for one pixel right and up, [2, N, 3]."""
    view = now.view
    depth = np.maximum(np.abs(away @ view.forward), 1e-12)[:, None]
    ray = np.broadcast_to(view.forward, away.shape) if view.orthographic else away / depth
    facing = np.einsum("ni,ni->n", normal, ray)
    facing = np.where(np.abs(facing) < 1e-3, -1e-3, facing)[:, None]
    scale = now.pixel * (1.0 if view.orthographic else depth)
    return np.stack([scale * (side - ray * (normal @ side)[:, None] / facing) for side in (view.right, view.up)])


def _textured(image: Texture, geoms: Geoms, index: int, points: Array, steps: Array) -> Array:
    """Return a geom's texture at points of it, for pixels that reach as far as `steps` [2, N, 3].

    Images lie on planes and on each face of a box, and are projected along z onto other shapes; they start at a corner,
    and are repeated per unit of length where the material is uniform, else per geom. Cubes are looked at from the
    geom's centre.
    """
    kind, size = int(geoms.kind[index]), np.where(geoms.size[index] > 0, geoms.size[index], 1.0)
    local, steps = (points - geoms.pos[index]) @ geoms.mat[index], steps @ geoms.mat[index]
    if image.is_cube:
        stretch = np.ones(3) if geoms.uniform[index] else 1 / size
        width = np.sqrt(np.square(steps).sum(axis=2)).max(axis=0)
        return image.cube(local * stretch, width * image.width / 2 / size.min())
    axis = faces(kind, local, size) // 2 if kind == BOX else np.full(len(local), 2)
    rows, first, second = np.arange(len(local)), np.where(axis == 0, 1, 0), np.where(axis == 2, 1, 2)
    corner = geoms.size[index]
    # A plane without end is repeated per unit of length, from its middle.
    across = geoms.repeat[index, 0] / 2 / (1.0 if geoms.uniform[index] else size[first])
    down = geoms.repeat[index, 1] / 2 / (1.0 if geoms.uniform[index] else size[second])
    s, t = across * (local[rows, first] + corner[first]), down * (corner[second] - local[rows, second])
    texels = np.hypot(steps[:, rows, first] * across * image.width, steps[:, rows, second] * down * image.height)
    return image.image(s, t, texels.max(axis=0))
