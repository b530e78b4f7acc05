import pytest

from planet_lib.envs import select_backend


@pytest.fixture
def gl():
    """Skip a test of MuJoCo's pixels where nothing can render; the messages for that case are tested elsewhere."""
    if select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
