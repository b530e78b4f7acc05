"""Where rays enter MuJoCo's shapes, and the normals there: numpy alone, float64.

Every function takes rays in the shape's own frame (origin [3] or [N, 3], unit direction [N, 3]) and returns the
distance [N] at which a ray enters the shape, inf where it does not. A ray that starts inside a shape does not enter it:
like GL, which culls back faces, a camera sees out of the geom it sits in.

Sizes are those of MuJoCo's scene geoms: sphere (r, r, r), capsule and cylinder (r, r, half length), ellipsoid and box
half axes, plane half widths, where 0 is without end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PLANE, HFIELD, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX, MESH = range(8)

_TINY = 1e-12


def enter_plane(origin: Array, direction: Array, size: Array) -> Array:
    """Return where rays pass the rectangle z = 0, from either side."""
    steep = _away_from_zero(direction[:, 2])
    distance = -origin[..., 2] / steep
    inside = distance > 0
    for axis in (0, 1):
        if size[axis] > 0:
            inside &= np.abs(origin[..., axis] + distance * direction[:, axis]) <= size[axis]
    return np.where(inside, distance, np.inf)


def enter_ellipsoid(origin: Array, direction: Array, size: Array) -> Array:
    """Return where rays enter the ellipsoid (a sphere among them) of these half axes."""
    start, way = origin / size, direction / size
    return _first_root(_dot(way, way), _dot(start, way), _dot(start, start) - 1)


def enter_capsule(origin: Array, direction: Array, size: Array) -> Array:
    """Return where rays enter the capsule along z: on its side, else on the ball at the end that is entered."""
    radius, half = size[0], size[2]
    x, y, z = (origin[..., axis] for axis in range(3))
    along = direction[:, 2]
    squared = np.maximum(1 - along * along, _TINY)
    inner = x * direction[:, 0] + y * direction[:, 1]
    root = inner * inner - squared * (x * x + y * y - radius * radius)
    hits = root >= 0
    side = (-inner - np.sqrt(np.where(hits, root, 0.0))) / squared
    height = z + side * along
    on_side = np.abs(height) <= half
    # The ball at the end where the ray comes into the endless cylinder.
    end = np.where(height > 0, half, -half)
    towards = inner + (z - end) * along
    ball = towards * towards - (x * x + y * y + (z - end) ** 2 - radius * radius)
    cap = np.where(ball >= 0, -towards - np.sqrt(np.maximum(ball, 0.0)), np.inf)
    distance = np.where(on_side, side, cap)
    return np.where(hits & (distance > 0), distance, np.inf)


def enter_cylinder(origin: Array, direction: Array, size: Array) -> Array:
    """Return where rays enter the closed cylinder along z."""
    radius, half = size[0], size[2]
    x, y = origin[..., 0], origin[..., 1]
    squared = np.maximum(direction[:, 0] ** 2 + direction[:, 1] ** 2, _TINY)
    inner = x * direction[:, 0] + y * direction[:, 1]
    root = inner * inner - squared * (x * x + y * y - radius * radius)
    width = np.sqrt(np.maximum(root, 0.0))
    first, last = _slab(origin[..., 2], direction[:, 2], half)
    first = np.maximum(first, (-inner - width) / squared)
    last = np.minimum(last, (-inner + width) / squared)
    return np.where((root >= 0) & (first <= last) & (first > 0), first, np.inf)


def enter_box(origin: Array, direction: Array, size: Array) -> Array:
    """Return where rays enter the box."""
    first = np.full(len(direction), -np.inf)
    last = np.full(len(direction), np.inf)
    for axis in range(3):
        near, far = _slab(origin[..., axis], direction[:, axis], size[axis])
        np.maximum(first, near, out=first)
        np.minimum(last, far, out=last)
    return np.where((first <= last) & (first > 0), first, np.inf)


ENTER: dict[int, Callable[[Array, Array, Array], Array]] = {
    PLANE: enter_plane,
    SPHERE: enter_ellipsoid,
    CAPSULE: enter_capsule,
    ELLIPSOID: enter_ellipsoid,
    CYLINDER: enter_cylinder,
    BOX: enter_box,
}


def normals(kind: int, points: Array, size: Array) -> Array:
    """Return the unit outward normals [N, 3] at points [N, 3] on (or near) a shape, in its own frame."""
    normal = np.zeros_like(points)
    if kind == PLANE:
        normal[:, 2] = 1
        return normal
    if kind in (SPHERE, ELLIPSOID):
        normal = points / size**2
    elif kind == CAPSULE:
        normal[:] = points
        normal[:, 2] -= np.clip(points[:, 2], -size[2], size[2])
    elif kind in (CYLINDER, BOX):
        rows, face = np.arange(len(points)), faces(kind, points, size)
        normal[rows, face // 2] = np.where(face % 2, 1.0, -1.0)
        if kind == CYLINDER:
            normal[face == 0] = points[face == 0] * (1.0, 1.0, 0.0)
    unit: Array = normal / np.maximum(np.sqrt(_dot(normal, normal)), _TINY)[:, None]
    return unit


def faces(kind: int, points: Array, size: Array) -> Array:
    """Return which face of a shape points [N, 3] on it belong to, int [N]; only boxes and cylinders have several.

    A box: 0 to 5 for -x, +x, -y, +y, -z, +z. A cylinder: 4 and 5 for its lids, 0 for its side.
    """
    if kind == BOX:
        axis = np.argmax(np.abs(points) / size, axis=1)
        face: Array = 2 * axis + (points[np.arange(len(points)), axis] > 0)
        return face
    if kind == CYLINDER:
        radius = np.hypot(points[:, 0], points[:, 1])
        return np.where(np.abs(points[:, 2]) * size[0] > radius * size[2], 4 + (points[:, 2] > 0), 0)
    return np.zeros(len(points), int)


def bounding_radius(kind: int, size: Array) -> float:
    """Return the radius of a ball around a shape's centre that holds it; inf for a plane without end."""
    if kind == PLANE:
        return float(np.hypot(size[0], size[1])) if size[0] > 0 and size[1] > 0 else np.inf
    if kind == CAPSULE:
        return float(size[0] + size[2])
    if kind == CYLINDER:
        return float(np.hypot(size[0], size[2]))
    if kind == BOX:
        return float(np.sqrt(np.square(size).sum()))
    return float(max(size))


def _dot(first: Array, second: Array) -> Array:
    """Return the products of vectors along the last axis."""
    product: Array = np.einsum("...i,...i->...", first, second)
    return product


def _first_root(squared: Array, half_linear: Array, constant: Array) -> Array:
    """Return the smaller root t > 0 of squared t^2 + 2 half_linear t + constant, inf where there is none."""
    root = half_linear * half_linear - squared * constant
    with np.errstate(divide="ignore", invalid="ignore"):  # a way without length, where poses were never computed
        distance = (-half_linear - np.sqrt(np.maximum(root, 0.0))) / squared
    return np.where((root >= 0) & (distance > 0), distance, np.inf)


def _slab(origin: Array, direction: Array, half: float) -> tuple[Array, Array]:
    """Return where rays come into and leave -half <= coordinate <= half."""
    steep = _away_from_zero(direction)
    one, other = (-half - origin) / steep, (half - origin) / steep
    return np.minimum(one, other), np.maximum(one, other)


def _away_from_zero(values: Array) -> Array:
    """Return values with those next to zero moved off it, so that one may divide by them."""
    return np.where(np.abs(values) < _TINY, _TINY, values)
