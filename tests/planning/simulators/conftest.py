import mujoco
import pytest

from planet_lib.envs import make_env

SLIDER = """
<mujoco><option timestep="0.01" gravity="0 0 0"/>
  <worldbody><body name="cart"><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/>
    <site name="middle"/></body></worldbody>
  <actuator>{actuator}</actuator>
  <sensor><jointpos joint="x"/><jointvel joint="x"/><accelerometer site="middle"/></sensor>
</mujoco>"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of the test's own, where MuJoCo writes its log of warnings."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make():
    """`make_env` for states, whose environments are closed after the test."""
    made = []

    def build(name, **settings):
        made.append(make_env(name, obs="state", **settings))
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.fixture
def slider():
    """A mass of one kilogram that a force in [-inf, inf] pushes along x, in steps of 0.01 s."""
    return mujoco.MjModel.from_xml_string(SLIDER.format(actuator='<motor joint="x"/>'))


@pytest.fixture
def unstable():
    """The same mass, with damping of the wrong sign: it diverges, unless it stands still and nothing pushes it."""
    return mujoco.MjModel.from_xml_string(SLIDER.format(actuator='<velocity joint="x" kv="-3000"/>'))
