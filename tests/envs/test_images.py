import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planet_lib.envs.images import is_channels_last, resize_area

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)))


def mean_by_hand(image, size):
    """Enlarge every pixel until both grids fit, then average blocks."""
    fine = image.astype(float).repeat(size[0], axis=0).repeat(size[1], axis=1)
    blocks = fine.reshape(size[0], image.shape[0], size[1], image.shape[1], image.shape[2])
    return blocks.mean(axis=(1, 3))


@given(images, sizes)
def test_a_resized_pixel_is_the_mean_of_the_area_it_covers(image, size):
    result = resize_area(image, size)
    assert result.dtype == np.uint8
    assert np.abs(result - mean_by_hand(image, size)).max() <= 0.5 + 1e-9


def test_three_pixels_become_two_by_sharing_the_middle_one():
    image = np.array([0, 90, 240], np.uint8).reshape(1, 3, 1)
    assert resize_area(image, (1, 2)).ravel().tolist() == [30, 190]
    assert resize_area(image.reshape(3, 1, 1), (2, 1)).ravel().tolist() == [30, 190]


@given(st.integers(0, 255), sizes, sizes)
def test_a_plain_colour_stays_the_same_at_every_size(level, old, new):
    assert (resize_area(np.full((*old, 3), level, np.uint8), new) == level).all()


def test_the_channels_are_the_shorter_end():
    assert is_channels_last((96, 64, 3))
    assert is_channels_last((3, 3, 3))
    assert not is_channels_last((3, 96, 64))
    assert not is_channels_last((9, 64, 64))
