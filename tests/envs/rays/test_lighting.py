import numpy as np
import pytest

from planet_lib.envs.rays.lighting import Surface, in_shadow_map, lit, shine
from planet_lib.envs.rays.scene import Light

UP = np.array([[0.0, 0.0, 1.0]])


def light(**settings):
    usual = {
        "pos": np.array([0.0, 0.0, 2.0]),
        "dir": np.array([0.0, 0.0, -1.0]),
        "directional": True,
        "attenuation": np.array([1.0, 0.0, 0.0]),
        "cutoff": 45.0,
        "exponent": 10.0,
        "ambient": np.full(3, 0.1),
        "diffuse": np.full(3, 0.4),
        "specular": np.full(3, 0.2),
        "casts": True,
    }
    return Light(**{**usual, **settings})


def surface(point=(0, 0, 0), *, to_eye=(1, 0, 0), emission=0.0, shininess=0.5):
    return Surface(
        point=np.array([point], float),
        normal=UP,
        to_eye=np.array([to_eye], float),
        rgb=np.array([[1.0, 0.5, 0.0]]),
        finish=np.array([[emission, 0.5, shininess, 0.0]]),
    )


def test_a_light_adds_ambient_diffuse_and_gloss():
    half_angle = np.cos(np.pi / 8)
    slanted = (np.sin(np.pi / 4), 0, np.cos(np.pi / 4))
    gloss = 0.5 * 0.2 * half_angle**64
    assert shine(light(), surface(to_eye=slanted))[0] == pytest.approx([0.5 + gloss, 0.25 + gloss, gloss])


def test_a_surface_that_faces_away_gets_ambient_light_alone():
    below = light(dir=np.array([0.0, 0.0, 1.0]))
    assert shine(below, surface(to_eye=(0, 0, 1)))[0] == pytest.approx([0.1, 0.05, 0])


def test_a_spot_fades_with_angle_and_distance_and_ends_at_its_cutoff():
    spot = light(directional=False, attenuation=np.array([1.0, 0.5, 0.25]), specular=np.zeros(3))
    assert shine(spot, surface())[0, 0] == pytest.approx(0.5 / (1 + 1 + 1))
    cosine = np.cos(np.pi / 6)
    away = 2 / cosine
    expected = (0.1 + 0.4 * cosine) * cosine**10 / (1 + 0.5 * away + 0.25 * away**2)
    assert shine(spot, surface((2 * np.tan(np.pi / 6), 0, 0)))[0, 0] == pytest.approx(expected)
    assert shine(spot, surface((2.01, 0, 0)))[0].tolist() == [0, 0, 0]
    assert shine(spot._replace(cutoff=180.0, exponent=0.0), surface((2.01, 0, 0)))[0, 0] > 0.05


def test_a_pass_adds_its_lights_and_its_own_glow_and_is_cut_off_at_one():
    plain = light(specular=np.zeros(3))
    assert lit([plain], surface(emission=0.2), is_base=True)[0] == pytest.approx([0.7, 0.35, 0])
    assert lit([plain], surface(emission=0.2), is_base=False)[0] == pytest.approx([0.5, 0.25, 0])
    assert lit([plain] * 3, surface(), is_base=True)[0] == pytest.approx([1, 0.75, 0])
    assert lit([], surface(), is_base=True)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "inside", "outside"),
    [
        ({"directional": True}, (2.9, -2.9, 0), (3.1, 0, 0)),
        ({"directional": False}, (1.01, 0, 0), (1.04, 0, 0)),
        ({"directional": False, "cutoff": 180.0}, (11.3, 0, 0), (11.4, 0, 0)),
        ({"directional": True}, (0, 0, 1.9), (0, 0, 2.1)),
    ],
)
def test_a_shadow_map_ends_where_mujocos_does(settings, inside, outside):
    # A square of half width 3, or 0.6 of 45 degrees on either side: 2 tan 27 = 1.019; at most 80: 2 tan 80 = 11.34.
    points = np.array([inside, outside], float)
    assert in_shadow_map(light(**settings), points, clip=3.0, scale=0.6).tolist() == [True, False]
