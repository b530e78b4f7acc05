"""What the model sees and foresees: reconstructions up to the context, imagination from the actions after it."""

import numpy as np
import pytest
import torch

from planet_lib import Episode, dequantise, to_uint8
from planet_lib.training import open_loop, reconstruct
from planet_lib.training.presets import PRESETS, build_model


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
