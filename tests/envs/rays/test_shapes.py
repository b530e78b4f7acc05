import numpy as np
import pytest

from planet_lib.envs.rays.shapes import (
    BOX,
    CAPSULE,
    CYLINDER,
    ELLIPSOID,
    ENTER,
    PLANE,
    SPHERE,
    bounding_radius,
    enter_box,
    enter_capsule,
    enter_cylinder,
    enter_ellipsoid,
    enter_plane,
    faces,
    normals,
)

DOWN = np.array([[0.0, 0.0, -1.0]])
SIDE = np.array([[1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("enter", "size", "origin", "direction", "distance"),
    [
        (enter_plane, (1, 1, 0), (0.5, 0, 3), DOWN, 3),
        (enter_plane, (1, 1, 0), (1.5, 0, 3), DOWN, np.inf),
        (enter_plane, (0, 0, 0), (99, 0, 3), DOWN, 3),
        (enter_plane, (1, 1, 0), (0, 0, 3), -DOWN, np.inf),
        (enter_ellipsoid, (1, 1, 1), (0, 0, 3), DOWN, 2),
        (enter_ellipsoid, (1, 1, 2), (0, 0, 3), DOWN, 1),
        (enter_ellipsoid, (1, 1, 2), (1.01, 0, 3), DOWN, np.inf),
        (enter_ellipsoid, (1, 1, 2), (0, 0, 0), DOWN, np.inf),
        (enter_capsule, (1, 1, 2), (0, 0, 5), DOWN, 2),
        (enter_capsule, (1, 1, 2), (-5, 0, 1.9), SIDE, 4),
        (enter_capsule, (1, 1, 2), (-5, 0, 2.6), SIDE, 4.2),
        (enter_capsule, (1, 1, 2), (-5, 0, 3.1), SIDE, np.inf),
        (enter_capsule, (1, 1, 2), (-5, 1.1, 0), SIDE, np.inf),
        (enter_cylinder, (1, 1, 2), (0.5, 0, 5), DOWN, 3),
        (enter_cylinder, (1, 1, 2), (-5, 0, 1.9), SIDE, 4),
        (enter_cylinder, (1, 1, 2), (-5, 0, 2.1), SIDE, np.inf),
        (enter_box, (1, 2, 3), (0, 0, 5), DOWN, 2),
        (enter_box, (1, 2, 3), (-5, 1.9, 2.9), SIDE, 4),
        (enter_box, (1, 2, 3), (-5, 2.1, 0), SIDE, np.inf),
        (enter_box, (1, 2, 3), (0, 0, 0), SIDE, np.inf),
    ],
)
def test_rays_enter_where_they_should(enter, size, origin, direction, distance):
    origin, size = np.array(origin, float), np.array(size, float)
    assert enter(origin, direction, size)[0] == pytest.approx(distance)
    assert enter(origin[None], direction, size)[0] == pytest.approx(distance)


SIZES = {
    PLANE: (0.7, 0.9, 0.1),
    SPHERE: (0.6, 0.6, 0.6),
    CAPSULE: (0.3, 0.3, 0.8),
    ELLIPSOID: (0.4, 0.7, 0.9),
    CYLINDER: (0.4, 0.4, 0.6),
    BOX: (0.5, 0.7, 0.3),
}


def rays(count):
    generator = np.random.default_rng(0)
    origin = generator.normal(size=(count, 3))
    origin *= 3 / np.linalg.norm(origin, axis=1, keepdims=True)
    target = generator.uniform(-0.8, 0.8, (count, 3))
    direction = target - origin
    return origin, direction / np.linalg.norm(direction, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_rays_and_normals_agree_with_mujocos(kind):
    import mujoco

    size, (origin, direction) = np.array(SIZES[kind]), rays(500)
    stored = (size[0], size[2], 0) if kind in (CAPSULE, CYLINDER) else size
    found = ENTER[kind](origin, direction, size)
    normal = np.zeros(3)
    own = np.eye(3).ravel()
    expected, steep = [], []
    for start, way in zip(origin, direction, strict=True):
        expected.append(mujoco.mju_rayGeom(np.zeros(3), own, np.array(stored, float), start, way, kind, normal))
        steep.append(normal.copy())
    expected = np.array(expected)
    front = (origin[:, 2] > 0) | (kind != PLANE)
    assert np.isfinite(found).sum() > 100
    assert np.where(np.isinf(found), -1, found)[front] == pytest.approx(expected[front])
    met = np.isfinite(found) & front
    points = origin[met] + found[met, None] * direction[met]
    assert normals(kind, points, size) == pytest.approx(np.array(steep)[met], abs=1e-6)
    assert np.linalg.norm(points, axis=1).max() <= bounding_radius(kind, size) + 1e-9


def test_a_plane_without_end_has_no_bound():
    assert bounding_radius(PLANE, np.array([0.0, 1.0, 1.0])) == np.inf


def test_faces_tell_the_sides_of_boxes_and_the_lids_of_cylinders_apart():
    points = np.array([[1, 0.1, 0.2], [-1, 0.1, 0.2], [0, 2, 0.2], [0, 0.1, -3]])
    assert faces(BOX, points, np.array([1.0, 2.0, 3.0])).tolist() == [1, 0, 3, 4]
    points = np.array([[1, 0, 1.9], [0.9, 0, 2], [0.9, 0, -2]])
    assert faces(CYLINDER, points, np.array([1.0, 1.0, 2.0])).tolist() == [0, 5, 4]
    assert faces(SPHERE, points, np.ones(3)).tolist() == [0, 0, 0]
