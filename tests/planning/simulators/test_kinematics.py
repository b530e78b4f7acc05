import mujoco
import numpy as np
import pytest
from dm_control import suite

from planet_lib.planning.simulators import Kinematics

# Every kind of joint, several in one body, anchors and axes off the beaten track, reference angles, a mocap body.
MIXED = """
<mujoco><worldbody>
  <body name="free" pos="1 2 3" quat="1 2 0 1"><freejoint/><geom name="g" size="0.1" pos="0.1 0.2 0.3"/>
    <body name="ball" pos="0.3 0 0.2" euler="20 30 40">
      <joint type="ball" pos="0.1 -0.2 0.3"/><geom size="0.1"/><site name="s" pos="0.4 0.1 -0.3"/>
      <body name="many" pos="0 0.5 0.1" quat="0.5 -0.5 0.1 0.7">
        <joint type="slide" axis="1 2 3" ref="0.4"/>
        <joint type="hinge" axis="0 -1 2" pos="0.3 0.1 0" ref="25"/>
        <joint type="hinge" axis="1 0 0" pos="0 0.2 -0.1"/>
        <geom name="tip" type="box" size="0.1 0.2 0.3" pos="0.2 0.1 0" mass="2"/><geom size="0.05" pos="0 0 1"/>
      </body></body></body>
  <body name="hung" pos="0 0 1"><body name="fixed" pos="0 1 0" euler="0 0 90"><geom name="wall" size="1" pos="1 0 0"/>
    <site name="corner" pos="0 0 1"/></body></body>
  <body name="hand" mocap="true" pos="5 6 7" euler="10 0 0"><geom name="palm" size="0.1" pos="0 1 0"/></body>
</worldbody></mujoco>"""

SUITE = ["cartpole-three_poles", "reacher-easy", "walker-walk", "finger-spin", "ball_in_cup-catch", "humanoid-run"]
SUITE += ["quadruped-walk", "fish-swim", "swimmer-swimmer6", "hopper-hop"]


def load(name):
    if name == "mixed":
        return mujoco.MjModel.from_xml_string(MIXED)
    return suite.load(*name.split("-")).physics.model.ptr


@pytest.mark.filterwarnings("ignore:compiler attribute")
@pytest.mark.parametrize("name", ["mixed", *SUITE])
def test_bodies_geoms_and_sites_are_where_mujoco_puts_them(name):
    model = load(name)
    data = mujoco.MjData(model)
    qpos = np.random.default_rng(1).normal(0, 1.5, (20, model.nq))
    ours = Kinematics(model, qpos)
    bodies = np.stack([ours.body_position(body) for body in range(model.nbody)], 1)
    centres = np.stack([ours.body_centre(body) for body in range(model.nbody)], 1)
    axes = np.stack([[ours.body_axis(body, axis) for axis in range(3)] for body in range(model.nbody)])
    geoms = np.stack([ours.geom_position(geom) for geom in range(model.ngeom)], 1)
    sites = [ours.site_position(site) for site in range(model.nsite)]
    for row in range(len(qpos)):
        data.qpos[:] = qpos[row]
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(bodies[row], data.xpos, atol=1e-12)
        np.testing.assert_allclose(centres[row], data.xipos, atol=1e-12)
        np.testing.assert_allclose(axes[:, :, row].transpose(0, 2, 1), data.xmat.reshape(-1, 3, 3), atol=1e-12)
        np.testing.assert_allclose(geoms[row], data.geom_xpos, atol=1e-12)
        for site, positions in enumerate(sites):
            np.testing.assert_allclose(positions[row], data.site_xpos[site], atol=1e-12)


def test_names_and_indices_mean_the_same():
    model = load("mixed")
    kinematics = Kinematics(model, np.random.default_rng(0).normal(size=(3, model.nq)))
    pairs = [
        (kinematics.body_position, "many", "body"),
        (kinematics.geom_position, "tip", "geom"),
        (kinematics.site_position, "s", "site"),
    ]
    for position, name, kind in pairs:
        np.testing.assert_array_equal(position(name), position(getattr(model, kind)(name).id))


def test_a_quaternion_of_length_zero_is_the_identity_as_in_mujoco():
    model = load("mixed")
    data = mujoco.MjData(model)
    data.qpos[:] = 0
    qpos = data.qpos.copy()
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(Kinematics(model, qpos[None]).geom_position("tip")[0], data.geom("tip").xpos, atol=1e-12)


def test_what_is_not_a_number_stays_in_its_row():
    model = load("mixed")
    qpos = np.random.default_rng(0).normal(size=(3, model.nq))
    clean = Kinematics(model, qpos).body_position("many")
    broken = qpos.copy()
    broken[1] = np.nan
    result = Kinematics(model, broken).body_position("many")
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[[0, 2]], clean[[0, 2]])


def test_results_are_arrays_of_their_own_and_qpos_is_left_alone():
    model = load("mixed")
    qpos = np.random.default_rng(0).normal(size=(3, model.nq))
    before = qpos.copy()
    kinematics = Kinematics(model, qpos)
    first = kinematics.body_position("free")
    expected = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(kinematics.body_position("free"), expected)
    np.testing.assert_array_equal(qpos, before)


def test_errors_name_the_argument():
    model = load("mixed")
    with pytest.raises(ValueError, match=r"qpos must be \[N, nq\] with nq=14 \(the model's\), got \[14\]"):
        Kinematics(model, np.zeros(14))
    with pytest.raises(ValueError, match=r"the model must have a body named 'nobody', got .*many"):
        Kinematics(model, np.zeros((1, 14))).body_position("nobody")
    with pytest.raises(TypeError, match=r"qpos must be an array of numbers \[N, nq\], got \[\[0.0"):
        Kinematics(model, [[0.0] * 14])
    with pytest.raises(TypeError, match=r"model must be a mujoco\.MjModel, got str without nq"):
        Kinematics("mixed", np.zeros((1, 14)))


def test_what_is_no_index_is_named_and_does_not_count_from_the_end():
    kinematics = Kinematics(load("mixed"), np.zeros((1, 14)))
    for wrong in (-1, 1000, 1.5, True, None):
        with pytest.raises(ValueError, match=rf"body must be a name, or a number from 0 to \d+, got {wrong}"):
            kinematics.body_position(wrong)
    for wrong in (-1, 3):  # there would be no such axis, and zeros
        with pytest.raises(ValueError, match=rf"axis must be a whole number of at .*, got {wrong}"):
            kinematics.body_axis("free", wrong)
