"""`RayRenderer`: pictures of MuJoCo scenes by casting rays on the CPU, with numpy and mujoco alone.

It follows MuJoCo's GL renderer pass by pass, so that its pictures look the same: a base pass of the lights without
shadow, one pass per shadow light, a mirrored scene added where something reflects, sky and haze, then what is
transparent. Each pixel is the mean of four rays, but shaded once where they all meet the same geom.

Differences from GL: shapes and the edges of shadows are exact; mirrors show no transparent geoms, and none are seen by
an orthographic camera; nothing is cut at the near plane. Skins and flexes are refused; meshes and height fields are
slow (MuJoCo is asked ray by ray), their faces are flat, and they have no texture.

Source: MuJoCo 3.17, what its classic renderer does (render_gl3.c).
"""

import mujoco
import numpy as np

from planet_lib._shapes import check_flag, is_number, is_whole, shown
from planet_lib.envs.rays.scene import Geoms, Scene, View
from planet_lib.envs.rays.shading import Now, Shader
from planet_lib.envs.rays.shapes import BOX, CYLINDER, PLANE, Array, faces
from planet_lib.envs.rays.tracing import Tracer, may_show, widen

# Where a pixel's rays pass it, from its left upper corner. No two of the four share a row or column, as in GL's
# multisampling, so that edges that are almost level or upright rise in four steps.
_ROTATED = ((0.375, 0.875), (0.875, 0.625), (0.125, 0.375), (0.625, 0.125))
_MIDDLE = ((0.5, 0.5),)
_WIDEST = 1e6  # pixels; far beyond any picture


class RayRenderer:
    """Draws what a MuJoCo simulation shows now, without OpenGL.

    Args:
        model: an MjModel of the mujoco package (`physics.model.ptr` of dm_control).
        data: its MjData (`physics.data.ptr`). It is read at each frame; kinematics must be up to date.
        height: Y of the pictures.
        width: X of the pictures.
        camera: a camera of the model by index or name, -1 for the free one, or an MjvCamera.
        antialias: four rays per pixel; without, one through its middle.
        min_width: capsules (limbs, tendons, lines) are drawn at least so many pixels wide, so that thin ones neither
            vanish nor flicker; 0 draws them as they are.

    Raises:
        ValueError: a size, camera or number that cannot be, or a model with skins or flexes.

    Example:
        >>> model = mujoco.MjModel.from_xml_string(
        ...     "<mujoco><worldbody><geom size='1' rgba='1 0 0 1'/>"
        ...     "<camera name='front' pos='0 -5 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"
        ... )
        >>> data = mujoco.MjData(model)
        >>> mujoco.mj_forward(model, data)
        >>> frame = RayRenderer(model, data, 48, 64, "front").render()
        >>> frame.shape, frame.dtype.name, frame[0, 0].tolist(), int(frame[24, 32, 0]) > 100
        ((48, 64, 3), 'uint8', [0, 0, 0], True)
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        height: int,
        width: int,
        camera: "int | str | mujoco.MjvCamera" = -1,
        *,
        antialias: bool = True,
        min_width: float = 0.5,
    ) -> None:
        _check_simulation(model, data)
        check_flag(antialias=antialias)
        if not (is_whole(height) and is_whole(width) and is_number(min_width) and 0 <= min_width <= _WIDEST):
            raise ValueError(
                f"height and width must be at least 1 and min_width at least 0, got {shown(height)}, {shown(width)} "
                f"and {shown(min_width)}; whole numbers, and a finite one"
            )
        height, width = int(height), int(width)
        if model.nskin or model.nflex:
            raise ValueError(
                f"the ray caster draws no skins and no flexes, and the model has {model.nskin} and {model.nflex}; "
                'draw it with OpenGL (renderer="gl")'
            )
        self._scene = Scene(model, data, _as_camera(model, camera))
        self._tracer = Tracer(model, data)
        self._shader = Shader(model, self._scene, self._tracer)
        self._shape, self._min_width = (height, width), min_width
        pattern = _ROTATED if antialias else _MIDDLE
        self._samples, self._grid = len(pattern), _sample_grid(height, width, pattern)
        self._cast: tuple[Array, Array, Array] | None = None

    def render(self) -> Array:
        """Return the present picture, uint8 [Y, X, 3]."""
        now = self._now()
        geoms, samples = self._widened(now), self._samples
        origin, direction = self._rays(now.view)
        candidate = self._candidates(geoms, now.view)
        ids, distance = self._tracer.first(geoms, np.flatnonzero(geoms.solid), origin, direction, candidate)
        horizon = self._shader.horizon(now.view, direction)
        ids[distance > horizon] = -1
        distance = np.minimum(distance, horizon)
        # Front to back, as MuJoCo sorts what is transparent; planes are always last.
        glass = np.flatnonzero(~geoms.solid)
        far = np.sqrt(np.square(geoms.pos[glass] - now.view.pos).sum(axis=1)) - geoms.bound[glass]
        glass = glass[np.argsort(np.where(geoms.kind[glass] == PLANE, np.inf, far), kind="stable")]
        layers = [self._meets(geoms, index, origin, direction, distance, candidate) for index in glass.tolist()]
        points = origin + distance[:, None] * direction
        # Rays of one pixel that all meet the same faces are shaded once, at their middle.
        met = np.stack([ids, *layers]).reshape(1 + len(layers), samples, -1)
        face = self._faces(geoms, ids, points).reshape(samples, -1)
        is_edge = (met != met[:, :1]).any(axis=(0, 1)) | (face != face[0]).any(axis=0)
        points = points.reshape(samples, -1, 3)
        inner, edge = np.flatnonzero(~is_edge), np.flatnonzero(is_edge)
        chosen = np.concatenate([points[:, inner].mean(axis=0), points[:, edge].reshape(-1, 3)])
        chosen_met = np.concatenate([met[:, 0, inner], met[:, :, edge].reshape(len(met), -1)], axis=1)
        now = now._replace(geoms=geoms)
        colours = self._shader.opaque(now, chosen, chosen_met[0])
        self._blend(now, glass, chosen, chosen_met[1:], colours)
        picture = np.empty((len(is_edge), 3))
        picture[inner] = colours[: len(inner)]
        picture[edge] = colours[len(inner) :].reshape(samples, -1, 3).mean(axis=0)
        return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8).reshape(*self._shape, 3)

    def rays(self) -> tuple[Array, Array]:
        """Return the rays of the present picture: origins and unit directions, each [Y, X, S, 3]."""
        origin, direction = self._rays(self._now().view)
        shape = (self._samples, *self._shape, 3)
        origins = np.broadcast_to(origin, direction.shape)
        return np.moveaxis(origins.reshape(shape), 0, 2), np.moveaxis(direction.reshape(shape), 0, 2)

    def geom_ids(self) -> Array:
        """Return which geom of the model each ray of the present picture meets first, int [Y, X, S].

        Sites, tendons and decoration do not count, transparent geoms do; -1 is none.
        """
        now = self._now()
        geoms = self._widened(now)
        origin, direction = self._rays(now.view)
        candidate = self._candidates(geoms, now.view)
        ids, _ = self._tracer.first(geoms, np.flatnonzero(geoms.model_id >= 0), origin, direction, candidate)
        found = np.where(ids >= 0, np.append(geoms.model_id, -1)[ids], -1)
        return np.moveaxis(found.reshape(self._samples, *self._shape), 0, 2)

    def _now(self) -> Now:
        """Return the present scene."""
        height, width = self._shape
        geoms, lights, view = self._scene.update(width / height)
        if not view.forward.any():
            raise ValueError(
                "data must hold the present positions, got a camera that looks nowhere; call mujoco.mj_forward first"
            )
        return Now(geoms, lights, view, (view.top - view.bottom) / height)

    def _widened(self, now: Now) -> Geoms:
        """Return the geoms, the thin ones as wide as they are drawn."""
        least = now.pixel * self._min_width
        return widen(now.geoms, now.view.pos, least, orthographic=now.view.orthographic)

    def _rays(self, view: View) -> tuple[Array, Array]:
        """Return all rays, the first of every pixel first: origin [3] or [N, 3] and unit directions [N, 3]."""
        lens = (view.bottom, view.top, view.centre, view.half_width)
        aim = np.concatenate([view.forward, view.right, view.up, lens])
        if self._cast is None or not np.array_equal(self._cast[0], aim):
            # Most cameras never turn.
            self._cast = (aim, *self._aim(view))
        return view.pos + self._cast[1], self._cast[2]

    def _aim(self, view: View) -> tuple[Array, Array]:
        """Return where rays begin, seen from the camera, [3] or [N, 3], and their unit directions [N, 3]."""
        across = view.centre + view.half_width * self._grid[:, :1]
        upwards = view.bottom + (view.top - view.bottom) * self._grid[:, 1:]
        offset = across * view.right + upwards * view.up
        if view.orthographic:
            return offset, np.broadcast_to(view.forward, offset.shape)
        direction: Array = view.forward + offset
        direction /= np.sqrt(np.einsum("ni,ni->n", direction, direction))[:, None]
        return np.zeros(3), direction

    def _candidates(self, geoms: Geoms, view: View) -> Array:
        """Return which rays may meet which geom, [N, G]."""
        height, width = self._shape
        shown = may_show(geoms, view, height, width).reshape(height * width, len(geoms.kind))
        return np.tile(shown, (self._samples, 1))

    def _faces(self, geoms: Geoms, ids: Array, points: Array) -> Array:
        """Return which face of its geom each point belongs to, int [N]."""
        face = np.zeros(len(ids), int)
        for index in np.flatnonzero((geoms.kind == BOX) | (geoms.kind == CYLINDER)):
            on = np.flatnonzero(ids == index)
            if len(on):
                local = (points[on] - geoms.pos[index]) @ geoms.mat[index]
                face[on] = faces(int(geoms.kind[index]), local, geoms.size[index])
        return face

    def _meets(
        self, geoms: Geoms, index: int, origin: Array, direction: Array, limit: Array, candidate: Array
    ) -> Array:
        """Return where each ray meets one geom before `limit`, as whole numbers: 1 yes, 0 no."""
        _, distance = self._tracer.first(geoms, [index], origin, direction, candidate)
        return (distance < limit).astype(int)

    def _blend(self, now: Now, glass: Array, behind: Array, met: Array, colours: Array) -> None:
        """Draw the transparent geoms over the colours, as MuJoCo does: front to back, then back to front."""
        layers = []
        for index, meets in zip(glass, met, strict=True):
            rays = np.flatnonzero(meets)
            away = behind[rays] - now.view.pos
            origin = now.view.pos
            if now.view.orthographic:
                depth = away @ now.view.forward
                origin = behind[rays] - depth[:, None] * now.view.forward
                away = behind[rays] - origin
            away /= np.maximum(np.sqrt(np.einsum("ni,ni->n", away, away)), 1e-12)[:, None]
            distance = self._tracer.enter(now.geoms, int(index), origin, away)
            hit = np.isfinite(distance)
            rays, points = rays[hit], (origin + distance[:, None] * away)[hit]
            ids = np.full(len(rays), index)
            layers.append((rays, self._shader.unshadowed(now, points, ids, eye=now.view.pos), now.geoms.rgba[index, 3]))
        for rays, layer, alpha in [*layers, *reversed(layers)]:
            colours[rays] += alpha * (layer - colours[rays])


def _sample_grid(height: int, width: int, pattern: tuple[tuple[float, float], ...]) -> Array:
    """Return where rays pass the picture, [S Y X, 2]: across -1 to 1, upwards 0 to 1, rows from the top."""
    blocks = []
    for right, down in pattern:
        rows, columns = np.meshgrid(np.arange(height) + down, np.arange(width) + right, indexing="ij")
        blocks.append(np.stack([2 * columns.ravel() / width - 1, 1 - rows.ravel() / height], axis=1))
    return np.concatenate(blocks)


def _as_camera(model: mujoco.MjModel, camera: "int | str | mujoco.MjvCamera") -> mujoco.MjvCamera:
    """Return the camera by index or name, or raise with those there are."""
    if isinstance(camera, mujoco.MjvCamera):
        return camera
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, index) for index in range(model.ncam)]
    index = names.index(camera) if isinstance(camera, str) and camera in names else camera
    if isinstance(index, str) or not is_whole(index, -1, len(names) - 1):
        known = ", ".join(str(name) for name in names)
        raise ValueError(f"camera must be -1 to {len(names) - 1}, one of {known or 'no names'}, got {shown(camera)}")
    made = mujoco.MjvCamera()
    if index == -1:
        mujoco.mjv_defaultFreeCamera(model, made)
    else:
        made.type, made.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, int(index)
    return made


def _check_simulation(model: object, data: object) -> None:
    """Raise unless these are a model and its data: MuJoCo reads one by the other's sizes, and does not look."""
    for name, given, kind in (("model", model, mujoco.MjModel), ("data", data, mujoco.MjData)):
        if not isinstance(given, kind):
            raise TypeError(f"{name} must be a mujoco.{kind.__name__}, got {shown(given)}")
    if not (isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData)):
        return
    sizes = {
        "qpos": model.nq, "qvel": model.nv, "xpos": model.nbody, "geom_xpos": model.ngeom, "site_xpos": model.nsite,
        "cam_xpos": model.ncam, "light_xpos": model.nlight, "ten_length": model.ntendon,
    }  # fmt: skip
    for name, size in sizes.items():
        got = len(getattr(data, name))
        if got != size:
            raise ValueError(f"data must be of this model, with {size} rows of {name}, got {got}; give its own MjData")
