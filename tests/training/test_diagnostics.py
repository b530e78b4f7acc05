"""What the model sees and foresees: reconstructions up to the context, imagination from the actions after it.

The errors are measured on worlds that are known: one grey level that the actions move, and models of it that are
perfect, late by a step, or noisy by a known amount.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planet_lib import Episode, WorldModel, dequantise, to_uint8
from planet_lib.training.diagnostics import open_loop, reconstruct
from planet_lib.training.foresight import open_loop_error
from planet_lib.training.presets import PRESETS, build_model
from planet_lib.training.show import draw_episode

LEVEL = 1 / 32  # of 5 bits, on a scale where black to white is 1


def make_episode(length=8):
    rows = np.arange(length)
    generator = np.random.default_rng(0)
    action = generator.uniform(-1, 1, (length, 2)).astype(np.float32)
    action[0] = 0
    return Episode(
        obs=generator.integers(0, 256, (length, 3, 16, 16), dtype=np.uint8),
        action=action,
        reward=np.zeros(length, np.float32),
        is_first=rows == 0,
        terminated=rows < 0,
        truncated=rows == length - 1,
    )


def make_model(cell="rnn"):
    torch.manual_seed(0)
    return build_model(PRESETS["cpu"], cell, (3, 16, 16), 2)


def test_frames_after_the_context_depend_on_actions_and_not_on_what_was_there_to_see():
    model, episode = make_model(), make_episode()
    torch.manual_seed(1)
    frames = open_loop(model, episode, context=3)
    other_obs, other_action = episode.obs.copy(), episode.action.copy()
    other_obs[3:] = 0
    other_action[6:] *= -1
    torch.manual_seed(1)
    np.testing.assert_array_equal(open_loop(model, episode._replace(obs=other_obs), context=3), frames)
    torch.manual_seed(1)
    turned = open_loop(model, episode._replace(action=other_action), context=3)
    np.testing.assert_array_equal(turned[:6], frames[:6])
    assert (turned[6:] != frames[6:]).any()


def test_the_frame_of_a_row_is_the_decoded_posterior_stepped_by_hand():
    model, episode = make_model(), make_episode()
    torch.manual_seed(2)
    frames = reconstruct(model, episode)
    torch.manual_seed(2)
    embed = model.encoder(dequantise(torch.from_numpy(episode.obs)))
    state = model.cell.initial(1)
    for t in range(len(frames)):
        state = model.cell.posterior(model.cell.prior(state, torch.from_numpy(episode.action[t])[None]), embed[t, None])
        shown = to_uint8(model.decoder(model.cell.features(state)))[0].numpy()
        assert np.abs(shown.astype(int) - frames[t].astype(int)).max() <= 1


def test_a_start_in_the_middle_shows_the_rows_from_there():
    assert len(open_loop(make_model("rssm"), make_episode(), context=2, length=50, start=5)) == 3


def test_episodes_of_vectors_and_wrong_contexts_are_refused():
    model, episode = make_model(), make_episode()
    with pytest.raises(ValueError, match=r"episode must hold pixels \[L, C, Y, X\] uint8, got float32 \(8, 5\)"):
        reconstruct(model, episode._replace(obs=np.zeros((8, 5), np.float32)))
    with pytest.raises(ValueError, match="context must be between 1 and the 8 rows there are, got 9"):
        open_loop(model, episode, context=9)
    with pytest.raises(ValueError, match="start must be a row of the episode, 0 to 7, got 8"):
        open_loop(model, episode, start=8)


class Place(NamedTuple):
    """Where the world stands, and what the last action added to it: [..., 1] each, in levels."""

    place: Tensor
    moved: Tensor


class PlaceCell:
    """The true dynamics of `moving_episode`; `delay` knows each move a step late, `noise` blurs each step."""

    action_dim = feature_dim = noise_dim = 1

    def __init__(self, noise=0.0, delay=False):
        self.noise, self.delay = noise, delay

    def initial(self, batch_size):
        return Place(torch.zeros(batch_size, 1), torch.zeros(batch_size, 1))

    def prior(self, state, action, noise=None):
        moved = 4 * action
        noise = torch.randn_like(state.place) if noise is None else noise
        return Place(state.place + (state.moved if self.delay else moved) + self.noise * noise, moved)

    def posterior(self, prior, embed, noise=None):
        return Place(embed, prior.moved)

    def features(self, state):
        return state.place

    def divergence(self, posterior, prior):
        return torch.zeros(prior.place.shape[:-1])


class Look(nn.Module):
    """Frames of one grey level, alone or as the entry "camera", as the number of the level [..., 1]."""

    def forward(self, obs):
        image = obs["camera"] if isinstance(obs, dict) else obs
        return ((image.mean((-3, -2, -1)) + 0.5) / LEVEL).floor().unsqueeze(-1)


class Paint(nn.Module):
    """The inverse of `Look`: frames at the centre of a level."""

    def __init__(self, name=None):
        super().__init__()
        self.name = name

    def forward(self, features):
        image = ((features + 0.5) * LEVEL - 0.5).unsqueeze(-1).unsqueeze(-1).expand(*features.shape[:-1], 1, 2, 3)
        return {self.name: image} if self.name else image


class Twice(nn.Module):
    """The true reward: twice the place."""

    def forward(self, features):
        return 2 * features.squeeze(-1)


def place_model(name=None, **settings):
    return WorldModel(Look(), PlaceCell(**settings), Paint(name), Twice())


def moving_episode(moves, first=16, named=False):
    """An episode of grey frames whose level the actions move, by `moves` levels each; the pixel is not its centre."""
    places = first + np.cumsum([0, *moves])
    assert places.min() >= 0
    assert places.max() <= 31
    rows = np.arange(len(places))
    pixels = (8 * places + rows % 8).astype(np.uint8)
    obs = np.broadcast_to(pixels[:, None, None, None], (len(rows), 1, 2, 3)).copy()
    joints = np.zeros((len(rows), 2), np.float32)
    return Episode(
        obs={"joints": joints, "camera": obs} if named else obs,
        action=(np.array([0, *moves], np.float32) / 4)[:, None],
        reward=np.where(rows == 0, 0, 2 * places).astype(np.float32),
        is_first=rows == 0,
        terminated=rows < 0,
        truncated=rows == rows[-1],
    )


MOVES = (1, -2, 3, -4, 2, 1, 0, -3, 4)  # places 16 17 15 18 14 16 17 17 14 18


@pytest.mark.parametrize("named", [False, True])
def test_a_perfect_model_has_no_error_at_any_horizon_from_any_start(named):
    episodes = [moving_episode(MOVES, named=named), moving_episode(MOVES[::-1], first=9, named=named)]
    error = open_loop_error(place_model("camera" if named else None), episodes, context=2, length=6, every=2)
    assert error.num_windows == 2 * 3  # rows 0 to 5, 2 to 7 and 4 to 9
    assert error.horizon.tolist() == [1, 2, 3, 4]
    for name in ("image", "reconstruction", "reward", "reward_reconstruction"):
        np.testing.assert_allclose(getattr(error, name), np.zeros(4), atol=1e-12, err_msg=name)
    np.testing.assert_allclose(error.reward_r2, np.ones(4))


def test_repeating_the_last_frame_and_the_mean_frame_err_by_hand_computed_squares():
    error = open_loop_error(place_model(), [moving_episode(MOVES)], context=3, length=7, every=3)
    # Windows at rows 0 (last seen row 2, place 15) and 3 (row 5, place 16): truth 18 14 16 17 and 17 17 14 18.
    last_frame = [(9 + 1) / 2, (1 + 1) / 2, (1 + 4) / 2, (4 + 4) / 2]
    np.testing.assert_allclose(error.last_frame, np.array(last_frame) * LEVEL**2, rtol=1e-6)
    # The mean place of all ten rows is 16.2.
    mean_frame = [
        (1.8**2 + 0.8**2) / 2,
        (2.2**2 + 0.8**2) / 2,
        (0.2**2 + 2.2**2) / 2,
        (0.8**2 + 1.8**2) / 2,
    ]
    np.testing.assert_allclose(error.mean_frame, np.array(mean_frame) * LEVEL**2, rtol=1e-5)
    rewards = 2 * np.array([18, 14, 16, 17, 17, 17, 14, 18])
    assert error.reward_variance == pytest.approx(rewards.var())


def test_a_model_that_is_one_step_late_errs_by_exactly_the_last_step():
    error = open_loop_error(place_model(delay=True), [moving_episode(MOVES)], context=3, length=8, every=99)
    # Seen up to row 2, whose action was -2; rows 3 to 7 move by 3 -4 2 1 0. Late by a step, the model is off by the sum
    # of the moves up to the row minus that of the moves up to the row before, plus the move of row 2: d_t - d_2.
    off = np.array([3, -4, 2, 1, 0]) - -2
    np.testing.assert_allclose(error.image, (off * LEVEL) ** 2, rtol=1e-6)
    np.testing.assert_allclose(error.reward, (2.0 * off) ** 2, rtol=1e-6)
    np.testing.assert_allclose(error.reward_r2, 1 - (2.0 * off) ** 2 / error.reward_variance)
    np.testing.assert_allclose(error.reconstruction, np.zeros(5), atol=1e-12)


def test_the_error_of_a_noisy_model_is_the_mean_over_sampled_futures_and_grows_with_the_horizon():
    error = open_loop_error(
        place_model(noise=0.5), [moving_episode(MOVES)], context=1, length=5, every=1, num_samples=4000
    )
    # After h steps the place is off by a normal of variance h / 4: of 24000 futures, the mean square is within 4 %.
    np.testing.assert_allclose(error.image, np.arange(1, 5) / 4 * LEVEL**2, rtol=0.04)
    np.testing.assert_allclose(error.reward, np.arange(1, 5), rtol=0.04)


def test_the_median_is_that_of_the_futures_and_is_not_moved_by_one_window():
    moves = [0] * 5 + [9] + [0] * 24
    error = open_loop_error(place_model(delay=True), [moving_episode(moves)], context=2, length=10, every=10)
    # Of three windows one holds the jump by 9 levels, at row 6: there, and only there, the late model is off by 9.
    wrong = np.arange(2, 10) == 6
    np.testing.assert_allclose(error.image, wrong * (9 * LEVEL) ** 2 / 3, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(error.image_median, np.zeros(8), atol=1e-12)
    noisy = open_loop_error(place_model(noise=1.0), [moving_episode(MOVES)], context=1, length=3, num_samples=20000)
    # The median of the square of a standard normal is 0.4549.
    np.testing.assert_allclose(noisy.image_median, np.array([1, 2]) * 0.4549 * LEVEL**2, rtol=0.04)


def test_the_seed_alone_decides_and_the_global_generator_stays_as_it_is():
    model, episodes = make_model("rssm"), [make_episode(12)]
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(open_loop_error(model, episodes, context=3, length=8, seed=seed).image)
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).all()


def test_the_windows_in_one_batch_err_as_they_do_one_by_one():
    model, episode = place_model(delay=True), moving_episode(MOVES)
    together = open_loop_error(model, [episode], context=2, length=6, every=2)
    cuts = [Episode(*(field[start : start + 6] for field in episode)) for start in (0, 2, 4)]
    apart = [open_loop_error(model, [cut], context=2, length=6) for cut in cuts]
    assert (together.num_windows, [one.num_windows for one in apart]) == (3, [1, 1, 1])
    for name in ("image", "last_frame", "reward"):
        mean = np.mean([getattr(one, name) for one in apart], axis=0)
        np.testing.assert_allclose(getattr(together, name), mean, rtol=1e-6, err_msg=name)


def test_equal_rewards_have_no_r2():
    still = moving_episode([0] * 9)
    error = open_loop_error(place_model(), [still], context=2, length=6)
    assert error.reward_variance == 0
    assert np.isnan(error.reward_r2).all()


def test_frames_of_a_dictionary_are_those_of_the_image_alone():
    single, named = moving_episode(MOVES), moving_episode(MOVES, named=True)
    np.testing.assert_array_equal(reconstruct(place_model("camera"), named), reconstruct(place_model(), single))
    frames = open_loop(place_model("camera", noise=0.0), named, context=2, image="camera")
    np.testing.assert_array_equal(frames // 8, named.obs["camera"] // 8)


def test_an_entry_with_pixels_must_be_there_and_be_chosen_where_there_are_several():
    model, episode = place_model("camera"), moving_episode(MOVES, named=True)
    pixels = episode.obs["camera"]
    both = episode._replace(obs={"camera": pixels, "wrist": pixels, "joints": episode.obs["joints"]})
    none = episode._replace(obs={"joints": episode.obs["joints"]})
    for look in (reconstruct, open_loop, lambda model, one, **image: open_loop_error(model, [one], **image)):
        with pytest.raises(ValueError, match=r"image must be one of the entries with pixels, camera, wrist, got None"):
            look(model, both)
        with pytest.raises(ValueError, match=r"one of the entries with pixels, camera, wrist, got 'joints'"):
            look(model, both, image="joints")
        with pytest.raises(
            ValueError, match=r"an entry with pixels \[L, C, Y, X\] uint8, got joints float32 \(10, 2\)"
        ):
            look(model, none)
        with pytest.raises(ValueError, match=r"image must be None, since .* is no dictionary, got 'camera'"):
            look(model, episode._replace(obs=pixels), image="camera")
    with pytest.raises(ValueError, match="image must be an entry that the decoder predicts, camera, got 'wrist'"):
        open_loop(model, both, image="wrist")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, "context must be between 1 and length - 1 = 5, got 0"),
        ({"context": 6}, "context must be between 1 and length - 1 = 5, got 6"),
        ({"length": 11}, "length must be at most the 10 rows of the longest episode, got 11"),
        ({"every": 0}, "every must be greater than 0, got 0"),
        ({"num_samples": 0}, "num_samples must be greater than 0, got 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        open_loop_error(place_model(), [moving_episode(MOVES)], **{"context": 2, "length": 6, **settings})


def test_episodes_that_differ_or_are_missing_are_refused():
    episode = moving_episode(MOVES)
    wide = episode._replace(obs=np.zeros((10, 1, 2, 4), np.uint8))
    with pytest.raises(ValueError, match=r"all hold obs uint8 \[1, 2, 3\], action float32 \[1\] like .* \[1, 2, 4\]"):
        open_loop_error(place_model(), [episode, wide])
    with pytest.raises(ValueError, match="episodes must be at least one, got none"):
        open_loop_error(place_model(), [])


def test_episodes_shorter_than_the_length_count_for_nothing_but_the_mean_frame():
    long, short = moving_episode(MOVES), moving_episode(MOVES[:3])
    alone, both = (open_loop_error(place_model(), e, context=2, length=6) for e in ([long], [long, short]))
    assert alone.num_windows == both.num_windows == 1
    np.testing.assert_array_equal(alone.last_frame, both.last_frame)
    assert (alone.mean_frame != both.mean_frame).all()


def test_all_pictures_of_an_episode_are_drawn_for_each_entry_with_pixels(tmp_path):
    episode = make_episode(6)
    model = build_model(PRESETS["cpu"], "rssm", {"eye": (3, 16, 16), "arm": (4,)}, 2)
    both = episode._replace(obs={"eye": episode.obs, "arm": np.zeros((6, 4), np.float32)})
    written = draw_episode(tmp_path / "first", model, both, context=9, length=20)
    names = ["first-eye-reconstruction.mp4", "first-eye-open-loop.mp4", "first-eye-open-loop.png"]
    assert [path.name for path in written] == names
    assert all(path.stat().st_size > 500 for path in written)
    vector = build_model(PRESETS["cpu"], "rssm", (4,), 2)
    assert draw_episode(tmp_path / "second", vector, both._replace(obs=both.obs["arm"])) == []
