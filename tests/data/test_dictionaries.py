"""A camera and joints all the way: environment, episode, file, replay, batch, and the floats that a model takes."""

import numpy as np
import pytest
import torch

from planet_lib.data import SequenceReplay, load_episodes, prepare, random_policy, run_episode, save_episode


class Arm:
    """A joint moved by the action, seen by a camera as a white column at its place, and felt as angle and speed."""

    def reset(self, *, seed=None):
        self.angle, self.speed, self.t = np.random.default_rng(seed).uniform(-0.5, 0.5), 0.0, 0
        return self.observe(), {}

    def step(self, action):
        self.speed = float(action[0]) / 10
        self.angle = float(np.clip(self.angle + self.speed, -1, 1))
        self.t += 1
        return self.observe(), -abs(self.angle), False, self.t == 12, {}

    def observe(self):
        camera = np.zeros((1, 4, 20), np.uint8)
        camera[:, :, place(self.angle)] = 255
        return {"camera": camera, "joints": np.array([self.angle, self.speed])}


def place(angle):
    return int((angle + 1) / 2 * 19)


@pytest.fixture
def batch(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(3):
        save_episode(tmp_path, run_episode(Arm(), random_policy(1, generator), seed=number), number)
    replay = SequenceReplay(100, obs_shape={"camera": (1, 4, 20), "joints": (2,)}, action_dim=1)
    for episode in load_episodes(tmp_path):
        replay.add(episode)
    assert (replay.num_episodes, replay.num_steps) == (3, 39)
    return replay.sample(16, 6)


def test_each_row_of_a_batch_has_the_picture_of_its_joints_and_the_action_that_led_there(batch):
    angle, speed = batch.obs["joints"].unbind(-1)
    for t in range(6):
        for b in range(16):
            columns = batch.obs["camera"][t, b, 0, 0].nonzero().flatten().tolist()
            assert columns == [place(float(angle[t, b]))]
    torch.testing.assert_close(speed, batch.action[..., 0] / 10)
    torch.testing.assert_close(batch.reward, torch.where(batch.is_first, 0, -angle.abs()))
    assert batch.mask.all()


def test_a_batch_moves_and_becomes_floats_with_its_dictionary(batch):
    obs = prepare(batch.to("cpu").obs, noise={"camera": torch.zeros(6, 16, 1, 4, 20)})
    assert torch.equal(obs["joints"], batch.obs["joints"])
    white = batch.obs["camera"] == 255
    assert (obs["camera"][white] == 31 / 32 - 0.5).all()
    assert (obs["camera"][~white] == -0.5).all()
