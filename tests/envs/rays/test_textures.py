import numpy as np
import pytest

from planet_lib.envs.rays.textures import Texture

CHECKS = np.array([[[[0, 0, 0], [200, 100, 50]], [[200, 100, 50], [0, 0, 0]]]], np.uint8)


def look(texture, s, t, texels=1e-3):
    return (255 * texture.image(np.array([s]), np.array([t]), np.array([texels]))[0]).round(3).tolist()


def test_an_image_is_repeated_and_mixed_between_its_texels():
    texture = Texture(CHECKS)
    assert look(texture, 0.25, 0.25) == [0, 0, 0]
    assert look(texture, 0.75, 0.25) == [200, 100, 50]
    assert look(texture, -1.25, 3.25) == [200, 100, 50]
    assert look(texture, 0.375, 0.25) == [50, 25, 12.5]
    assert look(texture, 0.5, 0.5) == [100, 50, 25]


def test_wide_pixels_see_the_mean_and_wider_ones_see_it_mixed_in_before():
    texture = Texture(CHECKS)
    assert look(texture, 0.25, 0.25, texels=2) == [100, 50, 25]
    assert look(texture, 0.25, 0.25, texels=2**0.5) == [50, 25, 12.5]
    assert look(texture, 0.25, 0.25, texels=1000) == [100, 50, 25]


@pytest.mark.parametrize("size", [3, 5, 25, 100])
def test_the_smallest_copy_is_the_mean_of_odd_sizes_too(size):
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    assert look(Texture(image), 0.5, 0.5, texels=1e6) == pytest.approx(image.mean(axis=(0, 1, 2)), abs=3)


def test_a_cube_shows_its_faces_in_the_order_and_turn_of_opengl():
    faces = np.zeros((6, 2, 2, 3), np.uint8)
    faces[..., 0] = (np.arange(6) * 10)[:, None, None]
    faces[:, 0, 0, 1] = 100  # the corner where both coordinates are 0
    texture = Texture(faces)
    axes = np.concatenate([np.eye(3)[[0, 0, 1, 1, 2, 2]] * np.array([[1], [-1]] * 3)])
    # What OpenGL 2.1, table 3.18, gives as the directions of that corner on each face.
    corners = np.array([[1, 1, 1], [-1, 1, -1], [-1, 1, -1], [-1, -1, 1], [-1, 1, 1], [1, 1, -1]])
    seen = texture.cube(axes + 0.5 * corners * (axes == 0), np.full(6, 1e-3)) * 255
    assert seen[:, 0].round().tolist() == [0, 10, 20, 30, 40, 50]
    assert seen[:, 1].round().tolist() == [100] * 6
