"""What MuJoCo would draw now, as numpy arrays: geoms, lights and camera of its abstract scene.

`mjv_updateScene` needs no GL. It places the camera (tracking ones too), the headlight, the sites and the segments of
tendons, and resolves materials; this module only reads the result.

Source: MuJoCo 3.17, mjvisualize.h.
"""

import math
from typing import NamedTuple

import mujoco
import numpy as np

from planet_lib.envs.rays.shapes import BOX, CAPSULE, HFIELD, MESH, PLANE, Array, bounding_radius

LINE = int(mujoco.mjtGeom.mjGEOM_LINE)
# The kinds that are drawn; of the rest, arrows, frames and labels, none appears with MuJoCo's default options.
_DRAWN = {*range(MESH + 1), LINE}
_SOLID = 0.995
_GRID = mujoco.mjMAXPLANEGRID


class Geoms(NamedTuple):
    """G geoms: place, shape and material. `mat` takes vectors from the geom's frame to the world's."""

    kind: Array  # [G] int
    model_id: Array  # [G] int: the model's geom, -1 for sites, tendons and decoration
    pos: Array  # [G, 3]
    mat: Array  # [G, 3, 3]
    size: Array  # [G, 3]
    bound: Array  # [G] radius of a ball around pos that holds it
    rgba: Array  # [G, 4]
    finish: Array  # [G, 4]: emission, specular, shininess (0 to 1), reflectance
    texture: Array  # [G] int, -1 for none
    repeat: Array  # [G, 2] of a texture, per geom, or per unit of length where uniform
    uniform: Array  # [G] bool
    solid: Array  # [G] bool: opaque, and not a plane seen from behind
    casts: Array  # [G] bool: casts shadows
    unlit: Array  # [G] bool: shows its own colour whatever the light
    mirror: int  # the one that reflects, -1 for none


class Light(NamedTuple):
    """One light; the colours are RGB [3]."""

    pos: Array
    dir: Array
    directional: bool
    attenuation: Array
    cutoff: float
    exponent: float
    ambient: Array
    diffuse: Array
    specular: Array
    casts: bool


class View(NamedTuple):
    """The camera: where it is, its axes in the world, and what it sees at distance 1 (at all, if orthographic)."""

    pos: Array
    forward: Array
    right: Array
    up: Array
    bottom: float
    top: float
    centre: float
    half_width: float
    orthographic: bool
    far: float


class Scene:
    """The abstract scene of a model, for one camera.

    Args:
        model: an MjModel.
        data: its MjData.
        camera: an MjvCamera.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, camera: mujoco.MjvCamera) -> None:
        self._model, self._data, self._camera = model, data, camera
        segments = model.ntendon * (model.nwrap + 2 * model.vis.quality.numslices)
        self._scene = mujoco.MjvScene(model, maxgeom=1000 + model.ngeom + 2 * model.nsite + segments)
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()

    def update(self, aspect: float) -> tuple[Geoms, list[Light], View]:
        """Return geoms, lights and camera of the data's present state, for pictures of `aspect` (X / Y)."""
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        view = _read_view(self._scene, aspect)
        return _read_geoms(self._scene, view.pos), _read_lights(self._scene), view

    def plane_grid(self, model_id: int) -> tuple[Array, Array]:
        """Return where MuJoCo puts the vertices of a plane, along its x and y: GL lights a plane only there.

        A plane of half width w and spacing s has lines 2 s apart with narrower cells at both ends; one without end
        has 200 cells that reach beyond the horizon.
        """
        model = self._model
        size, material = model.geom_size[model_id], model.geom_matid[model_id]
        far = 2.1 * model.vis.map.zfar * model.stat.extent
        grids = []
        for axis in (0, 1):
            half = size[axis]
            if half > 0:
                spacing = max(size[2], half / (_GRID - 2))
                count = int(half / max(spacing, 1e-15)) // 2 * 2
                inner = -half + (half - count * spacing) + 2 * spacing * np.arange(count + 1)
                grids.append(np.concatenate([[-half], inner, [half]]))
            else:
                repeat = model.mat_texrepeat[material, axis] if material >= 0 else 0
                step = (far + 2 * (2 / repeat if repeat > 0 else far / (_GRID - 2))) / _GRID
                grids.append(step * (np.arange(_GRID + 1) - _GRID // 2))
        return grids[0], grids[1]


def _read_view(scene: mujoco.MjvScene, aspect: float) -> View:
    """Return the camera between the scene's two eyes."""
    left, right = scene.camera[0], scene.camera[1]
    forward, up = np.array(left.forward, float), np.array(left.up, float)
    bottom, top = float(left.frustum_bottom), float(left.frustum_top)
    width = float(left.frustum_width) or 0.5 * aspect * (top - bottom)
    centre = (float(left.frustum_center) + float(right.frustum_center)) / 2
    near = 1.0 if left.orthographic else float(left.frustum_near)
    return View(
        pos=(np.array(left.pos, float) + np.array(right.pos, float)) / 2,
        forward=forward,
        right=np.cross(forward, up),
        up=up,
        bottom=bottom / near,
        top=top / near,
        centre=centre / near,
        half_width=width / near,
        orthographic=bool(left.orthographic),
        far=float(left.frustum_far),
    )


def _read_lights(scene: mujoco.MjvScene) -> list[Light]:
    """Return the lights that GL knows: spots and directional ones."""
    kinds = (int(mujoco.mjtLightType.mjLIGHT_SPOT), int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL))
    return [
        Light(
            pos=np.array(light.pos, float),
            dir=np.array(light.dir, float) / max(math.sqrt(float(np.square(light.dir).sum())), 1e-12),
            directional=int(light.type) == kinds[1],
            attenuation=np.array(light.attenuation, float),
            cutoff=float(light.cutoff),
            exponent=float(light.exponent),
            ambient=np.array(light.ambient, float),
            diffuse=np.array(light.diffuse, float),
            specular=np.array(light.specular, float),
            casts=bool(light.castshadow),
        )
        for light in scene.lights[: scene.nlight]
        if int(light.type) in kinds
    ]


def _read_geoms(scene: mujoco.MjvScene, eye: Array) -> Geoms:
    """Return the geoms that are drawn."""
    drawn = [geom for geom in scene.geoms[: scene.ngeom] if int(geom.type) in _DRAWN and geom.rgba[3] > 0]
    kind = np.array([geom.type for geom in drawn], int)
    unlit = kind == LINE
    pos = np.array([geom.pos for geom in drawn], float).reshape(-1, 3)
    mat = np.array([geom.mat for geom in drawn], float).reshape(-1, 3, 3)
    size = np.array([geom.size for geom in drawn], float).reshape(-1, 3)
    # A line goes from its place along z; it becomes a capsule around its middle, too thin to be seen unless widened.
    size[unlit, 2] /= 2
    pos[unlit] += mat[unlit][:, :, 2] * size[unlit, 2:]
    size[unlit, :2] = 1e-9
    kind = np.where(unlit, CAPSULE, kind)
    rgba = np.array([geom.rgba for geom in drawn], float).reshape(-1, 4)
    behind = (kind == PLANE) & (np.einsum("gi,gi->g", eye - pos, mat[:, :, 2]) < 0)
    rgba[behind, 3] *= 0.3
    solid = (rgba[:, 3] >= _SOLID) & ~behind
    finish = np.array([(g.emission, g.specular, g.shininess, g.reflectance) for g in drawn], float).reshape(-1, 4)
    is_geom = np.array([geom.objtype == mujoco.mjtObj.mjOBJ_GEOM for geom in drawn], bool)
    mirrors = np.flatnonzero(solid & (finish[:, 3] > 0) & ((kind == PLANE) | (kind == BOX)))
    bound = [
        geom.modelrbound if kind[i] in (HFIELD, MESH) else bounding_radius(kind[i], size[i])
        for i, geom in enumerate(drawn)
    ]
    return Geoms(
        kind=kind,
        model_id=np.where(is_geom, np.array([geom.objid for geom in drawn], int), -1),
        pos=pos,
        mat=mat,
        size=size,
        bound=np.array(bound, float),
        rgba=rgba,
        finish=finish,
        texture=np.array([geom.texid if geom.matid >= 0 else -1 for geom in drawn], int),
        repeat=np.array([geom.texrepeat for geom in drawn], float).reshape(-1, 2),
        uniform=np.array([geom.texuniform for geom in drawn], bool),
        solid=solid,
        casts=np.array([int(g.category) != int(mujoco.mjtCatBit.mjCAT_DECOR) for g in drawn], bool) & ~unlit,
        unlit=unlit,
        mirror=int(mirrors[0]) if len(mirrors) else -1,
    )
