"""Where the bodies are, for many joint positions at once: MuJoCo's forward kinematics in NumPy.

It knows a MuJoCo model's tree of bodies and joints, and no dynamics. MuJoCo's own `mj_kinematics` takes one state at a
time, and a planner asks for a hundred thousand; only the bodies asked for, and those they hang on, are computed.

Source: MuJoCo's documentation (Computation, "Forward kinematics"; XML reference, "joint"). Different from MuJoCo: a
mocap body stands where the model puts it, and frames are normalised once, from the joints' own quaternions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from planet_lib._shapes import check_members, check_whole, is_whole, shown

Array = npt.NDArray[np.float64]

# A number where all rows agree, else one value per row [N]. Planar models are mostly zeros, which cost nothing so.
_Component = float | Array
_Vector = tuple[_Component, _Component, _Component]
_Quaternion = tuple[_Component, _Component, _Component, _Component]

# mjtJoint: how many numbers of qpos a joint reads, and what they mean.
_FREE, _BALL, _SLIDE, _HINGE = range(4)

# Below this length MuJoCo takes a quaternion for the identity (mjMINVAL).
_SHORTEST = 1e-15


class Kinematics:
    """Positions and axes of bodies, geoms and sites, in world coordinates, for N joint positions.

    position(body) = position(parent) + rotation(parent) body_pos, and the same for rotations, followed by the body's
    joints in their order: a slide moves along its axis, a hinge turns about it, ball and free joints replace or turn
    the whole frame. Axes move with the joints before them.

    Shapes: qpos [N, nq] with nq the model's; every result [N, 3], in the model's unit of length (metres as a rule).
    Bodies, geoms and sites are given by name or by index.

    Args:
        model: a `mujoco.MjModel`. It is read, never written.
        qpos: joint positions; not copied. What is not a number gives what is not a number, in its own rows only.

    Raises:
        ValueError: qpos of another shape, or a name that the model does not have.

    Example:
        >>> import mujoco
        >>> import numpy as np
        >>> arm = '<body name="arm"><joint axis="0 1 0"/><geom name="tip" size="0.1" pos="1 0 0"/></body>'
        >>> model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{arm}</worldbody></mujoco>")
        >>> kinematics = Kinematics(model, np.array([[0.0], [np.pi / 2]]))
        >>> kinematics.geom_position("tip").round(3) + 0.0
        array([[ 1.,  0.,  0.],
               [ 0.,  0., -1.]])
    """

    def __init__(self, model: Any, qpos: Array) -> None:
        check_members("model", model, "a mujoco.MjModel", "nq", "body_parentid", "jnt_type")
        given: object = qpos
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "iuf":
            raise TypeError(f"qpos must be an array of numbers [N, nq], got {shown(given)}")
        if qpos.ndim != 2 or qpos.shape[1] != model.nq:
            raise ValueError(f"qpos must be [N, nq] with nq={model.nq} (the model's), got {list(qpos.shape)}")
        self._model, self._qpos = model, qpos
        self._frames: dict[int, tuple[_Vector, _Quaternion]] = {0: ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))}

    def body_position(self, body: int | str) -> Array:
        """Return the origin of the body's frame [N, 3] (MuJoCo's `xpos`)."""
        return self._stack(self._frame(_index(self._model, "body", body))[0])

    def body_centre(self, body: int | str) -> Array:
        """Return the body's centre of mass [N, 3] (MuJoCo's `xipos`)."""
        body = _index(self._model, "body", body)
        return self._stack(self._point(body, self._model.body_ipos[body]))

    def body_axis(self, body: int | str, axis: int) -> Array:
        """Return the body's own axis 0, 1 or 2 in the world [N, 3], a unit vector (a column of MuJoCo's `xmat`)."""
        check_whole("axis", axis, least=0, most=2)
        unit = tuple(float(each == axis) for each in range(3))
        return self._stack(_rotate(self._frame(_index(self._model, "body", body))[1], _vector(unit)))

    def geom_position(self, geom: int | str) -> Array:
        """Return the geom's centre [N, 3] (MuJoCo's `geom_xpos`)."""
        geom = _index(self._model, "geom", geom)
        return self._stack(self._point(int(self._model.geom_bodyid[geom]), self._model.geom_pos[geom]))

    def site_position(self, site: int | str) -> Array:
        """Return the site's centre [N, 3] (MuJoCo's `site_xpos`)."""
        site = _index(self._model, "site", site)
        return self._stack(self._point(int(self._model.site_bodyid[site]), self._model.site_pos[site]))

    def _stack(self, vector: _Vector) -> Array:
        """Return three components as one array [N, 3] of its own."""
        result = np.empty((len(self._qpos), 3))
        for axis, component in enumerate(vector):
            result[:, axis] = component
        return result

    def _point(self, body: int, offset: Array) -> _Vector:
        """Return where a point fixed to `body` is."""
        position, rotation = self._frame(body)
        return _add(position, _rotate(rotation, _vector(offset)))

    def _frame(self, body: int) -> tuple[_Vector, _Quaternion]:
        """Return position and rotation of a body's frame, computed once."""
        if body not in self._frames:
            model = self._model
            position, rotation = self._frame(int(model.body_parentid[body]))
            position = _add(position, _rotate(rotation, _vector(model.body_pos[body])))
            rotation = _multiply(rotation, _quaternion(model.body_quat[body]))
            first = int(model.body_jntadr[body])
            for joint in range(first, first + int(model.body_jntnum[body])):
                position, rotation = self._moved(joint, position, rotation)
            self._frames[body] = position, rotation
        return self._frames[body]

    def _moved(self, joint: int, position: _Vector, rotation: _Quaternion) -> tuple[_Vector, _Quaternion]:
        """Return the frame after a joint, from the frame before it."""
        model, kind = self._model, int(self._model.jnt_type[joint])
        start = int(model.jnt_qposadr[joint])
        if kind == _FREE:
            x, y, z = self._qpos[:, start : start + 3].T
            return (x, y, z), self._normalised(start + 3)
        axis, anchor = _vector(model.jnt_axis[joint]), _vector(model.jnt_pos[joint])
        if kind == _SLIDE:
            way = self._qpos[:, start] - model.qpos0[start]
            return _add(position, _scale(_rotate(rotation, axis), way)), rotation
        if kind == _HINGE:
            half = (self._qpos[:, start] - model.qpos0[start]) / 2
            turn: _Quaternion = (np.cos(half), *_scale(axis, np.sin(half)))
        else:
            turn = self._normalised(start)
        turned = _multiply(rotation, turn)
        # The anchor stays where it is, and the frame turns about it.
        moved = _add(_add(position, _rotate(rotation, anchor)), _scale(_rotate(turned, anchor), -1.0))
        return moved, turned

    def _normalised(self, start: int) -> _Quaternion:
        """Return the quaternion that qpos holds from `start` on, of length one."""
        w, x, y, z = self._qpos[:, start : start + 4].T
        length = np.sqrt(w * w + x * x + y * y + z * z)
        is_short = length < _SHORTEST
        length = np.where(is_short, 1.0, length)
        return np.where(is_short, 1.0, w / length), x / length, y / length, z / length


def _index(model: Any, kind: str, name: int | str) -> int:
    """Return the index of a body, geom or site that is given by index or name."""
    if not isinstance(name, str):
        count = int(getattr(model, f"n{kind}"))
        if not is_whole(name, least=0, most=count - 1):
            raise ValueError(f"{kind} must be a name, or a number from 0 to {count - 1}, got {shown(name)}")
        return int(name)
    try:
        return int(getattr(model, kind)(name).id)
    except KeyError as error:
        raise ValueError(f"the model must have a {kind} named {name!r}, got {error.args[0]}") from error


def _vector(values: Any) -> _Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _quaternion(values: Any) -> _Quaternion:
    w, x, y, z = (float(value) for value in values)
    return w, x, y, z


def _is_zero(value: _Component) -> bool:
    return isinstance(value, float) and value == 0.0


def _times(a: _Component, b: _Component) -> _Component:
    return 0.0 if _is_zero(a) or _is_zero(b) else a * b


def _plus(a: _Component, b: _Component) -> _Component:
    return b if _is_zero(a) else a if _is_zero(b) else a + b


def _minus(a: _Component, b: _Component) -> _Component:
    return a if _is_zero(b) else a - b


def _add(a: _Vector, b: _Vector) -> _Vector:
    return _plus(a[0], b[0]), _plus(a[1], b[1]), _plus(a[2], b[2])


def _scale(a: _Vector, factor: _Component) -> _Vector:
    return _times(a[0], factor), _times(a[1], factor), _times(a[2], factor)


def _cross(a: _Vector, b: _Vector) -> _Vector:
    return (
        _minus(_times(a[1], b[2]), _times(a[2], b[1])),
        _minus(_times(a[2], b[0]), _times(a[0], b[2])),
        _minus(_times(a[0], b[1]), _times(a[1], b[0])),
    )


def _rotate(q: _Quaternion, v: _Vector) -> _Vector:
    """Return v turned by the unit quaternion q = (w, u): v + w t + u x t with t = 2 u x v."""
    u = q[1:]
    t = _scale(_cross(u, v), 2.0)
    return _add(v, _add(_scale(t, q[0]), _cross(u, t)))


def _multiply(p: _Quaternion, q: _Quaternion) -> _Quaternion:
    """Return the quaternion that turns by q first, then by p: (pw qw - pu . qu, pw qu + qw pu + pu x qu)."""
    pu, qu = p[1:], q[1:]
    dot = _plus(_plus(_times(pu[0], qu[0]), _times(pu[1], qu[1])), _times(pu[2], qu[2]))
    w = _minus(_times(p[0], q[0]), dot)
    return (w, *_add(_add(_scale(qu, p[0]), _scale(pu, q[0])), _cross(pu, qu)))
