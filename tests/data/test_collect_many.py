"""Collection from many environments: the same episodes as from one, whatever shares the batch or is lost."""

import numpy as np
import pytest
import torch

import planet_lib as pl
from planet_lib.data import random_policy, run_episode, run_episodes


class Walk:
    """Sees [position, step]; the seed gives start and length, 1 + seed % 4 steps; reward is the position."""

    def reset(self, *, seed=None):
        self.t, self.length = 0, 1 + seed % 4
        self.x, self.ends = np.array([seed / 10, 0]), seed % 2 == 0
        return self.x.copy(), {}

    def step(self, action):
        self.t += 1
        self.x += [action[0], 1]
        over = self.t == self.length
        return self.x.copy(), self.x[0], over and self.ends, over and not self.ends, {}


class Many:
    """B of them, in Gymnasium's way; `lost` are the (seed, step) at which a row fails, each once."""

    def __init__(self, num_envs, make=Walk, lost=(), replaced=None):
        self.num_envs, self.envs = num_envs, [make() for _ in range(num_envs)]
        self.lost, self.replaced = set(lost), replaced or {}
        self.seeds, self.running, self.resets, self.actions = {}, set(), [], []
        self.obs = [np.zeros(2)] * num_envs

    def batch(self):
        if isinstance(self.obs[0], dict):
            return {name: np.stack([obs[name] for obs in self.obs]) for name in self.obs[0]}
        return np.stack(self.obs)

    def reset(self, *, seed, options):
        rows = np.flatnonzero(options["reset_mask"])
        self.resets.append({int(row): seed[row] for row in rows})
        for row in rows:
            assert row not in self.running
            self.seeds[row] = seed[row]
            self.running.add(row)
            self.obs[row] = self.envs[row].reset(seed=seed[row])[0]
        if isinstance(self.obs[rows[0]], dict):
            empty = {name: np.zeros_like(value) for name, value in self.obs[rows[0]].items()}
            self.obs = [obs if isinstance(obs, dict) else empty for obs in self.obs]
        return self.batch(), {}

    def step(self, actions):
        self.actions.append(actions.copy())
        reward, flags = np.zeros(self.num_envs), np.zeros((3, self.num_envs), bool)
        for row in sorted(self.running):
            self.obs[row], reward[row], flags[0, row], flags[1, row], _ = self.envs[row].step(actions[row])
            at = (self.seeds[row], self.envs[row].t)
            if at in self.lost:
                self.lost.remove(at)
                flags[:, row], reward[row] = (False, False, True), np.nan
            reward[row] = self.replaced.get(at, reward[row])
            if flags[:, row].any():
                self.running.remove(row)
        actions[:] = 99  # an environment may scribble on what it is given
        return self.batch(), reward, flags[0], flags[1], {"restarted": flags[2]}


def drifting(obs, is_first, state):
    """Acts by what it sees and by what it remembers of its own row."""
    seen = obs[:, 0].float()
    memory = torch.zeros_like(seen) if state is None else state
    memory = torch.where(is_first, seen, 0.5 * memory + seen)
    return torch.sin(memory)[:, None], memory


def same_episode(one, other):
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
        assert mine.dtype == theirs.dtype, name


SEEDS = [5, 3, 8, 2, 11, 4, 6]


@pytest.mark.parametrize("num_envs", [1, 3, 7, 9])
def test_each_episode_is_the_one_that_its_seed_gives_alone(num_envs):
    episodes = run_episodes(Many(num_envs), drifting, seeds=SEEDS)
    assert len({len(episode.reward) for episode in episodes}) > 2
    for seed, episode in zip(SEEDS, episodes, strict=True):
        same_episode(episode, run_episode(Walk(), drifting, seed=seed))


def test_a_lost_episode_is_played_again_from_its_seed_in_its_row_and_no_other_is_touched():
    env = Many(3, lost=[(3, 1), (3, 3), (8, 1), (6, 2), (11, 4)])
    found = []
    episodes = run_episodes(env, drifting, seeds=SEEDS, on_episode=lambda number, episode: found.append(number))
    assert env.lost == set()
    assert sorted(found) == list(range(7))
    for seed, episode in zip(SEEDS, episodes, strict=True):
        same_episode(episode, run_episode(Walk(), drifting, seed=seed))
    env = Many(2, lost=[(3, 2)])
    run_episodes(env, drifting, seeds=[1, 3, 2])  # row 0 is free when row 1 loses its episode
    assert env.resets == [{0: 1, 1: 3}, {0: 2, 1: 3}]


def test_a_finished_environment_takes_the_next_seed_at_once():
    env = Many(2)
    run_episodes(env, drifting, seeds=[3, 0, 1, 2])  # 4, 1, 2 and 3 steps
    assert env.resets == [{0: 3, 1: 0}, {1: 1}, {1: 2}]
    assert len(env.actions) == 6


def test_the_policy_always_sees_all_rows_and_is_first_where_one_begins_or_has_no_work():
    calls = []

    def policy(obs, is_first, state):
        calls.append((obs.clone(), is_first.tolist(), state))
        obs.fill_(7)  # its input is its own
        return torch.full((3, 1), 0.5), len(calls)

    env = Many(3)
    (one, two) = run_episodes(env, policy, seeds=[2, 1])  # 3 and 2 steps, and one row without work
    assert [state for _, _, state in calls] == [None, 1, 2]
    assert [is_first for _, is_first, _ in calls] == [[True, True, True], [False, False, True], [False, True, True]]
    seen = torch.stack([obs for obs, _, _ in calls])
    assert torch.equal(seen[:, 0], torch.from_numpy(one.obs[:3]))
    assert torch.equal(seen[:, 1], torch.from_numpy(two.obs))  # its last one stays
    assert torch.equal(seen[:, 2], torch.zeros(3, 2))
    assert [action[:, 0].tolist() for action in env.actions] == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0, 0]]


def test_each_step_and_each_episode_is_reported_as_it_happens():
    events = []
    episodes = run_episodes(
        Many(2, lost=[(1, 1)]),
        drifting,
        seeds=[2, 1],
        on_step=events.append,
        on_episode=lambda number, episode: events.append((number, len(episode.reward))),
    )
    assert events == [1, 2, 3, 4, 5, (0, 4), 6, (1, 3)]  # the lost step counts
    assert [len(episode.reward) for episode in episodes] == [4, 3]


def test_dictionaries_come_out_as_rows_by_name():
    class Named(Walk):
        def named(self, obs):
            return {"joints": obs, "camera": np.full((1, 2, 2), self.t, np.uint8)}

        def reset(self, *, seed=None):
            return self.named(super().reset(seed=seed)[0]), {}

        def step(self, action):
            obs, *others = super().step(action)
            return self.named(obs), *others

    shapes = []

    def policy(obs, is_first, state):
        shapes.append({name: tuple(value.shape) for name, value in obs.items()})
        return drifting(obs["joints"], is_first, state)

    episodes = run_episodes(Many(3, Named), policy, seeds=[3, 2])
    assert shapes == [{"joints": (3, 2), "camera": (3, 1, 2, 2)}] * 4
    for seed, episode in zip([3, 2], episodes, strict=True):
        alone = run_episode(Named(), policy, seed=seed)
        assert episode.obs["camera"][:, 0, 0, 0].tolist() == list(range(2 + seed % 4))
        np.testing.assert_array_equal(episode.obs["joints"], alone.obs["joints"])
        same_episode(episode._replace(obs=episode.reward), alone._replace(obs=alone.reward))


def test_no_seeds_give_no_episodes_and_touch_nothing():
    assert run_episodes(Many(2), lambda *_: pytest.fail("the policy was called"), seeds=[]) == []


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (torch.zeros(1, 1), ValueError, r"^call 1 of the policy: action must be \[N, A\] with N=2, got \[1, 1\]"),
        (torch.zeros(2), ValueError, r"with N=2, got \[2\]"),
        (np.zeros((2, 1)), TypeError, r"action must be a floating tensor \[N, A\], got ndarray"),
        (torch.tensor([[0.0], [1.1]]), ValueError, r"^seed 3, step 1: action must be finite and in \[-1, 1\], got"),
        (torch.tensor([[0.0], [np.nan]]), ValueError, r"^seed 3, step 1: action must be finite .* got \[nan\]"),
    ],
)
def test_a_bad_action_is_named_and_never_executed(action, error, message):
    env = Many(2)
    with pytest.raises(error, match=message):
        run_episodes(env, lambda obs, is_first, state: (action, state), seeds=[1, 3])
    assert env.actions == []


def test_a_bad_value_of_an_environment_is_named_with_seed_and_step_and_finished_episodes_are_out():
    found = []
    with pytest.raises(ValueError, match=r"^seed 3, step 3: reward must be one finite number, got nan"):
        run_episodes(
            Many(2, replaced={(3, 3): np.nan}),
            drifting,
            seeds=[0, 3],
            on_episode=lambda number, episode: found.append((number, len(episode.reward))),
        )
    assert found == [(0, 2)]
    env = Many(1)
    env.single_action_space = type("Box", (), {"shape": (2,)})()
    with pytest.raises(ValueError, match=r"action must be \[N, A\] with N=1, A=2, got \[1, 1\]"):
        run_episodes(env, drifting, seeds=[0])


def test_environments_that_reset_themselves_are_refused():
    env = Many(1)
    env.metadata = {"autoreset_mode": "NextStep"}
    with pytest.raises(ValueError, match=r"^env must not reset its rows by itself, got autoreset_mode=NextStep; make"):
        run_episodes(env, drifting, seeds=[0])
    env.metadata = {"autoreset_mode": "Disabled"}
    assert len(run_episodes(env, drifting, seeds=[0])) == 1


def make_agent(**settings):
    """A small agent of doubles, with noise that is the same in every row and at every step."""
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(2, embed_dim=6)
    cell = pl.RSSMCell(action_dim=1, embed_dim=6, deter_dim=8, stoch_dim=4, hidden_dim=8)
    model = pl.WorldModel(encoder, cell, pl.Decoder(12, (2,)), pl.RewardHead(12)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that what was seen decides which plans are best
    planner = pl.CEMPlanner(
        pl.LatentDynamics(model), -1.0, 1.0, action_dim=1, horizon=3, num_candidates=10, num_elites=3, num_iterations=2
    )
    agent = pl.PlanningAgent(model, planner, **settings)

    def policy(obs, is_first, state):
        rows = len(is_first)

        def noise(*shape, axis):
            one = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)
            return one.expand(*shape[:axis], rows, *shape[axis + 1 :]).contiguous()

        drawn = pl.AgentNoise(
            prior=noise(1, 4, axis=0),
            posterior=noise(1, 4, axis=0),
            candidates=noise(2, 3, 1, 10, 1, axis=2),
            dynamics=noise(2, 3, 1, 10, 4, axis=2),
            exploration=noise(1, 1, axis=0),
        )
        action, state, _ = agent(obs, is_first, state, explore=True, noise=drawn)
        return action, state

    return policy


@pytest.mark.parametrize("warm_start", [False, True])
def test_an_agent_that_plans_for_all_rows_in_one_batch_acts_as_it_would_alone(warm_start):
    policy = make_agent(warm_start=warm_start, exploration_std=0.1)
    episodes = run_episodes(Many(3, lost=[(11, 2)]), policy, seeds=SEEDS)
    for seed, episode in zip(SEEDS, episodes, strict=True):
        alone = run_episode(Walk(), policy, seed=seed)
        for mine, theirs in zip(episode, alone, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    assert np.unique(np.concatenate([episode.action for episode in episodes])).size > 10


@pytest.mark.parametrize("make", [np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)])
def test_the_random_policy_draws_for_every_row_and_one_of_the_choices_where_asked(make):
    is_first = torch.zeros(500, dtype=torch.bool)
    actions, state = random_policy(4, make(0))(torch.zeros(500, 2), is_first, "kept")
    assert state == "kept"
    assert len(actions.unique()) > 1900
    policy = random_policy(4, make(0), one_hot=True)
    choices = torch.cat([policy(torch.zeros(500, 2), is_first, None)[0] for _ in range(4)])
    assert choices.dtype == torch.float32
    assert ((choices == 0) | (choices == 1)).all()
    assert (choices.sum(1) == 1).all()
    counts = choices.sum(0)
    assert ((counts - 500) ** 2 / 500).sum() < 16.3  # 3 degrees of freedom: exceeded once in a thousand
