"""The contract of a cell: the library's cells keep it, and each way to break it is named."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from planet_lib import RNNCell, RSSMCell, SSMCell, State
from planet_lib.testing import ContractError, check_cell
from planet_lib.testing.contract import difference, expect_equal

SIZES = {"stoch_dim": 4, "hidden_dim": 16}
CELLS = {
    "rssm": (RSSMCell, {"deter_dim": 12}),
    "ssm": (SSMCell, {}),
    "rnn": (RNNCell, {"deter_dim": 12}),
}
OTHER_SETTINGS = {
    "rssm": {"gru": "reset_before", "num_layers": 2, "min_std_mode": "clamp", "init": "glorot", "activation": "elu"},
    "ssm": {"num_layers": 2, "min_std_mode": "clamp", "init": "glorot", "activation": "elu"},
    "rnn": {"gru": "reset_before", "num_layers": 2, "init": "glorot", "activation": "elu"},
}
NO_SCAN = {"scan": property(lambda self: self.no_such_thing)}  # hides the inherited one: the library steps


@pytest.fixture(autouse=True)
def same_weights_each_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def build(name, **settings):
    cell_class, sizes = CELLS[name]
    return cell_class(2, 5, **SIZES, **sizes, **settings)


def ssm(base=SSMCell, **members):
    """An SSM cell with some of its members replaced."""
    return type("Broken", (base,), members)(2, 5, **SIZES)


def rssm(**members):
    return type("Broken", (RSSMCell,), members)(2, 5, **SIZES, deter_dim=12)


def broken(cell, match, **settings):
    with pytest.raises(ContractError, match=match) as caught:
        check_cell(cell, **{"compile": False, **settings})
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", [{}, OTHER_SETTINGS], ids=["defaults", "other settings"])
@pytest.mark.parametrize("name", CELLS)
def test_the_cells_of_the_library_keep_the_contract(name, settings, dtype):
    check_cell(build(name, **settings.get(name, {})).to(dtype), compile=False)


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_of_the_library_trace(name):
    check_cell(build(name), batch_size=2, length=4)


@pytest.mark.parametrize("name", CELLS)
def test_the_contract_holds_by_stepping_too_and_for_another_batch_length_and_seed(name):
    cell_class, sizes = CELLS[name]
    stepping = type("Stepping", (cell_class,), NO_SCAN)
    assert not hasattr(stepping(2, 5, **SIZES, **sizes), "scan")
    check_cell(stepping(2, 5, **SIZES, **sizes), batch_size=2, length=9, seed=7, compile=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CELLS)
def test_the_contract_is_tried_on_the_device_of_the_cell(name):
    check_cell(build(name).to("cuda"))


class Levels(NamedTuple):
    """A state of three fields: [..., 2], whole numbers [...], and [..., 2, 3]."""

    height: Tensor
    steps: Tensor
    memory: Tensor


class Tank:
    """No module, no parameters, no embed_dim, fields of no axis and of two, whole numbers: and a cell all the same."""

    action_dim, feature_dim, noise_dim = 1, 8, 2

    def initial(self, batch_size):
        steps = torch.zeros(batch_size, dtype=torch.int64)
        return Levels(torch.zeros(batch_size, 2), steps, torch.zeros(batch_size, 2, 3))

    def prior(self, state, action, noise=None):
        noise = torch.randn_like(state.height) if noise is None else noise
        height = 0.9 * state.height + action + 0.1 * noise
        return Levels(height, state.steps + 1, torch.cat([state.memory[..., 1:], height.unsqueeze(-1)], -1))

    def posterior(self, prior, embed, noise=None):
        noise = torch.randn_like(prior.height) if noise is None else noise
        return prior._replace(height=0.5 * (prior.height + embed) + 0.1 * noise)

    def features(self, state):
        return torch.cat([state.height, state.memory.flatten(-2)], -1)

    def divergence(self, posterior, prior):
        return 0.5 * (posterior.height - prior.height).square().sum(-1)


def test_a_cell_need_be_no_module_and_its_state_may_hold_whole_numbers():
    check_cell(Tank(), embed_dim=2, compile=False)


def test_without_an_embed_dim_the_error_says_to_pass_it():
    with pytest.raises(
        ValueError, match=r"embed_dim must be given, got none and Tank has none; call check_cell\(cell, em"
    ):
        check_cell(Tank())


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"length": 3}])
def test_sizes_at_which_nothing_could_be_proven_are_refused(sizes):
    with pytest.raises(ValueError, match="batch_size must be at least 2 and length at least 4, got"):
        check_cell(build("ssm"), **sizes)


@pytest.mark.parametrize("grad", [True, False])
def test_it_leaves_everything_as_it_was(grad):
    cell = build("rssm")
    weights = {name: value.clone() for name, value in cell.state_dict().items()}
    random = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        check_cell(cell)
        assert torch.is_grad_enabled() is grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in cell.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in cell.parameters())


def test_it_leaves_the_random_state_when_the_contract_is_broken_too():
    cell = ssm(features=lambda self, state: state.stoch[..., :-1])
    random = torch.get_rng_state()
    broken(cell, r"cell.features must be \[3, 4\], got \[3, 3\]")
    assert torch.equal(torch.get_rng_state(), random)


def test_it_runs_under_inference_mode():
    with torch.inference_mode(False):
        cell = build("ssm")
    with torch.inference_mode():
        check_cell(cell, compile=False)


def test_frozen_parameters_need_no_gradient():
    cell = build("ssm")
    cell.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
    check_cell(cell, compile=False)


def test_a_contract_error_keeps_its_cause_and_says_what_must_run():
    def prior(self, state, action, noise=None):
        raise KeyError("deter")

    with pytest.raises(
        ContractError, match=r"cell.prior must run with leading axes \[3\], got KeyError: 'deter'"
    ) as caught:
        check_cell(ssm(prior=prior))
    assert isinstance(caught.value.__cause__, KeyError)


# Members.


@pytest.mark.parametrize("name", ["action_dim", "feature_dim", "noise_dim"])
def test_a_size_that_is_missing_is_named(name):
    cell = build("ssm")
    delattr(cell, name)
    broken(cell, rf"cell.{name} must be a whole number of at least [01], got none; planet_lib.Cell lists")


def test_a_size_that_is_no_whole_number_is_named():
    cell = build("ssm")
    cell.noise_dim = -1
    broken(cell, "cell.noise_dim must be a whole number of at least 0, got -1")
    cell.noise_dim = 4.0
    broken(cell, "cell.noise_dim must be a whole number of at least 0, got 4.0")


@pytest.mark.parametrize("name", ["initial", "prior", "posterior", "features", "divergence"])
def test_a_method_that_is_missing_is_named(name):
    broken(ssm(**{name: None}), f"cell.{name} must be a method, got none")


# States.


def test_a_state_that_is_no_named_tuple_is_caught():
    broken(
        ssm(initial=lambda self, n: (torch.zeros(n, 4),) * 4), "initial must return a NamedTuple of tensors, got tuple"
    )


def test_a_state_without_floating_fields_is_caught():
    counts = ssm(initial=lambda self, n: State(*(torch.zeros(n, 4, dtype=torch.int64),) * 4))
    broken(counts, "cell.initial must return a floating field, got none")


def test_a_field_that_is_no_tensor_is_caught():
    broken(
        ssm(initial=lambda self, n: State(*(torch.zeros(n, 4),) * 3, std=1.0)),
        "initial's std must be a tensor, got float",
    )


def test_an_initial_state_of_another_batch_size_is_caught():
    broken(
        ssm(initial=lambda self, n: SSMCell.initial(self, 1)), r"cell.initial's deter must be \[3, 0\], got \[1, 0\]"
    )


def test_initial_rows_that_are_not_alike_are_caught():
    def initial(self, batch_size):
        return State(*(field + torch.arange(batch_size).unsqueeze(-1) for field in SSMCell.initial(self, batch_size)))

    broken(ssm(initial=initial), "cell.initial.stoch must be the same in every row, whatever the batch size.*up to 2")


def test_an_initial_state_in_another_precision_is_caught():
    def initial(self, batch_size):
        return State(*(field.float() for field in SSMCell.initial(self, batch_size)))

    message = "initial's deter must be torch.float64 on cpu, got torch.float32 on cpu; take dtype and device from"
    broken(ssm(initial=initial).double(), message)


def test_a_prior_of_another_type_is_caught():
    def prior(self, state, action, noise=None):
        return tuple(SSMCell.prior(self, state, action, noise))

    broken(ssm(prior=prior), "cell.prior must return a State, as cell.initial does, got tuple")


def test_a_posterior_whose_field_has_another_size_is_caught():
    def posterior(self, prior, embed, noise=None):
        return SSMCell.posterior(self, prior, embed, noise)._replace(std=torch.ones(3, 1))

    broken(ssm(posterior=posterior), r"cell.posterior's std must be \[3, 4\], got \[3, 1\]")


def test_a_result_that_is_not_finite_is_caught():
    def divergence(self, posterior, prior):
        return SSMCell.divergence(self, posterior, prior) + (posterior.mean - 100.0).log().sum(-1)

    broken(ssm(divergence=divergence), "cell.divergence must be finite, got NaN or infinity")


# Leading axes and rows.


def test_a_cell_for_one_leading_axis_only_is_caught():
    def prior(self, state, action, noise=None):
        mean, std = self.prior_head(torch.cat([state.stoch, action], 1))
        return State(state.deter, mean + std * noise, mean, std)

    broken(ssm(prior=prior), r"cell.prior must run with leading axes \[2, 3\], got (RuntimeError|ValueError)")


def test_a_cell_that_computes_otherwise_on_two_leading_axes_is_caught():
    def prior(self, state, action, noise=None):
        result = SSMCell.prior(self, state, action, noise)
        return result._replace(stoch=result.stoch * len(action.shape) / 2)

    broken(ssm(prior=prior), r"prior.stoch must be the same on leading axes \[J, B\] as on \[J \* B\]; read sizes")


def test_a_mean_over_the_batch_is_caught():
    def prior(self, state, action, noise=None):
        return SSMCell.prior(self, state, action - action.mean(-2, keepdim=True), noise)

    broken(ssm(prior=prior), r"prior.\w+ must be the same on leading axes \[J, B\] as on \[J \* B\]")


def test_rows_that_are_compared_with_the_first_are_caught():
    def prior(self, state, action, noise=None):
        flat = action.reshape(-1, self.action_dim)
        return SSMCell.prior(self, state, (flat - flat[:1]).reshape(action.shape), noise)

    broken(ssm(prior=prior), r"prior.\w+ of one row must not depend on other rows of the batch; take no mean")


# Purity.


def test_an_action_changed_in_place_is_caught():
    def prior(self, state, action, noise=None):
        return SSMCell.prior(self, state, action.mul_(2.0), noise)

    broken(ssm(prior=prior), "argument action must be left as it was by cell.prior; use nothing that writes in place")


def test_a_posterior_that_writes_into_the_prior_is_caught():
    def posterior(self, prior, embed, noise=None):
        result = SSMCell.posterior(self, prior, embed, noise)
        prior.mean.copy_(result.mean)
        return result

    broken(ssm(posterior=posterior), "argument prior.mean must be left as it was by cell.posterior")


def test_a_state_kept_inside_is_caught():
    def prior(self, state, action, noise=None):
        self.steps = getattr(self, "steps", 0) + 1
        return SSMCell.prior(self, state, action * self.steps, noise)

    broken(ssm(prior=prior), r"prior.\w+ must be the same when the same is asked again; keep nothing in the cell")


def test_a_posterior_that_reads_the_last_prior_instead_of_its_argument_is_caught():
    def prior(self, state, action, noise=None):
        self.last = SSMCell.prior(self, state, action, noise)
        return self.last

    def posterior(self, prior, embed, noise=None):
        return SSMCell.posterior(self, self.last, embed, noise)

    cell = ssm(prior=prior, posterior=posterior)
    broken(cell, r"posterior.\w+ must not depend on calls in between; keep nothing in the cell")


def test_dropout_in_train_mode_is_caught_and_in_eval_mode_is_not():
    def features(self, state):
        return torch.dropout(state.stoch, 0.5, self.training)

    broken(ssm(features=features), "features must be the same at any seed, since the noise is given")
    check_cell(ssm(features=features).eval(), compile=False)


# Noise.


@pytest.mark.parametrize("method", ["prior", "posterior"])
def test_noise_that_is_not_used_is_caught(method):
    def mean_only(self, state, argument, noise=None):
        result = getattr(SSMCell, method)(self, state, argument, noise)
        return result._replace(stoch=result.mean)

    broken(ssm(**{method: mean_only}), f"cell.{method} must depend on its noise, got the same state from any")


def test_noise_drawn_although_it_is_given_is_caught():
    broken(
        ssm(prior=lambda self, state, action, noise=None: SSMCell.prior(self, state, action)),
        "prior.stoch must be the same at any seed, since the noise is given; draw nothing where it is",
    )


def test_a_cell_that_needs_noise_to_be_given_is_caught():
    def posterior(self, prior, embed, noise):
        return SSMCell.posterior(self, prior, embed, noise)

    broken(ssm(posterior=posterior), "cell.posterior must run without noise, got TypeError")


def drawing(draw):
    def prior(self, state, action, noise=None):
        noise = draw(self, (*action.shape[:-1], 4)) if noise is None else noise
        return SSMCell.prior(self, state, action, noise)

    return ssm(prior=prior)


def test_uniform_noise_drawn_in_place_of_normal_is_caught():
    message = "prior.stoch must be distributed alike for noise=None and for normal noise; draw torch.randn"
    broken(drawing(lambda self, shape: torch.rand(shape)), message)
    broken(drawing(lambda self, shape: 1.2 * torch.randn(shape)), message)
    broken(drawing(lambda self, shape: 0.3 + torch.randn(shape)), message)
    check_cell(drawing(lambda self, shape: torch.randn(shape)), compile=False)


def test_noise_of_a_generator_of_its_own_is_caught():
    own = torch.Generator().manual_seed(0)
    again = "prior.stoch must be replayed by torch.manual_seed where noise is None"
    broken(drawing(lambda self, shape: torch.randn(shape, generator=own)), again)
    fixed = drawing(lambda self, shape: torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    broken(fixed, "cell.prior must follow torch.manual_seed, got the same at another seed")


def test_randomness_where_noise_dim_is_zero_is_caught():
    cell = build("ssm")
    cell.noise_dim = 0
    cell.prior = lambda state, action, noise=None: SSMCell.prior(
        cell, state, action, torch.zeros(*action.shape[:-1], 4)
    )
    cell.posterior = lambda prior, embed, noise=None: SSMCell.posterior(
        cell, prior, embed, torch.randn(*embed.shape[:-1], 4) if noise is None else torch.zeros(*embed.shape[:-1], 4)
    )
    broken(cell, "posterior.stoch must not be random, since noise_dim is 0; set it to the numbers")


# What depends on what.


def test_a_prior_that_ignores_the_action_is_caught():
    cell = ssm(prior=lambda self, state, action, noise=None: SSMCell.prior(self, state, 0.0 * action, noise))
    broken(cell, "cell.prior must depend on action, got the same state from any")


def test_a_prior_that_never_advances_is_caught():
    def prior(self, state, action, noise=None):
        nothing = state._replace(stoch=torch.zeros_like(state.stoch))
        return SSMCell.prior(self, nothing, action, noise)._replace(deter=state.deter)

    broken(ssm(prior=prior), "cell.prior must depend on state, got the same state from any")


def test_a_posterior_that_ignores_what_was_seen_is_caught():
    cell = ssm(posterior=lambda self, prior, embed, noise=None: SSMCell.posterior(self, prior, 0.0 * embed, noise))
    broken(cell, "cell.posterior must depend on embed, got the same state from any")


DIVERGENCES = {
    "of another shape": (lambda nats: nats.mean(), r"cell.divergence must be \[3\], got \[\]; the leading axes are"),
    "not summed": (
        lambda nats: nats.unsqueeze(-1).expand(*nats.shape, 4),
        r"cell.divergence must be \[3\], got \[3, 4\]",
    ),
    "negative": (lambda nats: -nats, r"cell.divergence must be at least 0, got -\d.*closed form"),
    "not 0 of a state from itself": (lambda nats: nats + 1.0, "of a state from itself must be 0.*differs by up to 1"),
    "always 0": (
        lambda nats: 0.0 * nats,
        "cell.divergence must be more than 0 where posterior and prior differ, got 0",
    ),
    "of another precision": (
        lambda nats: nats.double(),
        "cell.divergence must be torch.float32 on cpu, got torch.float64",
    ),
}


@pytest.mark.parametrize(("change", "match"), DIVERGENCES.values(), ids=DIVERGENCES)
def test_a_wrong_divergence_is_caught(change, match):
    cell = ssm(divergence=lambda self, one, other: change(SSMCell.divergence(self, one, other)), global_prior=None)
    broken(cell, match)


# Sequences.


def scanning(**changes):
    """An RSSM whose scan gets changed arguments: functions of (state, embed, action, is_first)."""

    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        given = {"state": state, "embed": embed, "action": action, "is_first": is_first}
        given = {name: changes[name](given) if name in changes else value for name, value in given.items()}
        return RSSMCell.scan(self, **given, prior_noise=prior_noise, posterior_noise=posterior_noise)

    return rssm(scan=scan)


SCANS = {
    "ignores is_first": {"is_first": lambda given: torch.zeros_like(given["is_first"])},
    "resets in row 0 only": {"is_first": lambda given: given["is_first"] & (torch.arange(6) == 0).unsqueeze(-1)},
    "ignores the state before": {"state": lambda given: State(*(0.0 * field for field in given["state"]))},
    "reads actions one row late": {"action": lambda given: given["action"].roll(1, 0)},
}


@pytest.mark.parametrize("changes", SCANS.values(), ids=SCANS)
def test_a_scan_that_is_not_stepping_is_caught(changes):
    broken(scanning(**changes), r"\w+.\w+ of cell.scan must equal stepping, with is_first in any row")


def stepping_scan(reset, advance=True, through=lambda state: state, leave_out_action=False):
    """An SSM whose scan is a loop of its own, broken as asked."""

    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        priors, posteriors, before = [], [], state
        for t in range(len(embed)):
            first = is_first[t].unsqueeze(-1)
            state = State(*(reset(field, first) for field in (state if advance else before)))
            step_action = action[t] if leave_out_action else reset(action[t], first)
            noise = [None if given is None else given[t] for given in (prior_noise, posterior_noise)]
            priors.append(self.prior(state, step_action, noise[0]))
            state = through(self.posterior(priors[-1], embed[t], noise[1]))
            posteriors.append(state)
        return tuple(State(*map(torch.stack, zip(*states, strict=True))) for states in (priors, posteriors))

    return ssm(scan=scan)


def filled(value, first):
    return value.masked_fill(first, 0.0)


def test_a_scan_of_the_users_own_that_is_right_passes():
    check_cell(stepping_scan(filled), compile=False)


def test_a_scan_that_never_advances_its_state_is_caught():
    broken(stepping_scan(filled, advance=False), "of cell.scan must equal stepping")


def test_a_scan_that_does_not_reset_the_action_is_caught():
    broken(stepping_scan(filled, leave_out_action=True), "of cell.scan must equal stepping")


def test_a_scan_that_resets_by_multiplication_lets_nan_through_and_is_caught():
    cell = stepping_scan(lambda value, first: value * ~first)
    broken(cell, "must start afresh where is_first holds, got what NaN before it left; fill with masked_fill")


def test_a_scan_that_cuts_the_gradient_between_steps_is_caught():
    cell = stepping_scan(filled, through=lambda state: State(*(field.detach() for field in state)))
    broken(cell, "a gradient must reach embed at row 0 from the last row, got none; detach nothing")


def test_a_scan_whose_gradient_differs_from_that_of_stepping_is_caught():
    def through(state):
        return state._replace(stoch=0.5 * state.stoch + 0.5 * state.stoch.detach())

    broken(
        stepping_scan(filled, through=through), "the gradient to embed through cell.scan must equal that of stepping"
    )


def test_a_state_that_is_not_handed_over_whole_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        prior, posterior = SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)
        if len(embed) < 6:
            posterior = posterior._replace(stoch=posterior.mean)
        return prior, posterior

    broken(ssm(scan=scan), "of two half windows, the state handed over, must equal those of the whole")


def test_randomness_of_a_scan_where_noise_dim_is_zero_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        prior, posterior = RNNCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)
        drawn = torch.randn_like(prior.mean) if prior_noise is None else 0.0
        return prior._replace(stoch=prior.mean + drawn), posterior

    cell = type("Broken", (RNNCell,), {"scan": scan})(2, 5, **SIZES, deter_dim=12)
    broken(cell, "prior.stoch of observe must not be random, since noise_dim is 0")


def test_a_scan_that_carries_nan_from_row_to_row_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        embed = embed + 0.0 * embed.sum(1, keepdim=True)
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    broken(ssm(scan=scan), r"prior.\w+ of one row must not depend on other rows of the batch, got NaN from there")


def test_a_scan_that_draws_from_a_generator_of_its_own_is_caught():
    own = torch.Generator().manual_seed(0)

    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        prior_noise = torch.randn(*embed.shape[:2], 4, generator=own) if prior_noise is None else prior_noise
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    broken(ssm(scan=scan), "prior.stoch of observe must be replayed by torch.manual_seed")


# Gradients.


def test_a_detached_sample_is_caught():
    def features(self, state):
        return state.stoch.detach()

    def posterior(self, prior, embed, noise=None):
        return State(*(field.detach() for field in SSMCell.posterior(self, prior, embed, noise)))

    broken(ssm(features=features, posterior=posterior, **NO_SCAN), "a gradient must reach embed at row 0 from the last")


def test_parameters_that_nothing_trains_are_named():
    cell = build("ssm")
    cell.idle, cell.spare = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    message = broken(cell, "features and divergence must train every parameter, got none for idle, spare; use them")
    assert "prior_head" not in message


def test_a_divergence_that_does_not_train_the_prior_is_caught():
    def divergence(self, posterior, prior):
        return RSSMCell.divergence(self, posterior, State(*(field.detach() for field in prior)))

    message = broken(rssm(divergence=divergence), "must train every parameter, got none for")
    assert "prior_head" in message
    assert "posterior_head" not in message


# The global prior.


def test_a_global_prior_that_depends_on_the_state_is_caught():
    cell = ssm(global_prior=lambda self, state: state)
    broken(cell, "cell.divergence between the global priors of two states must be 0; it is one distribution for all")


def test_a_global_prior_of_another_shape_is_caught():
    cell = ssm(global_prior=lambda self, state: SSMCell.initial(self, 1)._replace(std=torch.ones(1, 4)))
    broken(cell, r"cell.global_prior's deter must be \[3, 0\], got \[1, 0\]")


# Tracing.


def test_a_python_branch_on_what_a_tensor_holds_is_caught_by_tracing_alone():
    def prior(self, state, action, noise=None):
        if bool(next(self.parameters()).abs().max() > 1000.0):
            raise ValueError("diverged")
        return SSMCell.prior(self, state, action, noise)

    broken(
        ssm(prior=prior, **NO_SCAN), r"must trace under torch.compile\(fullgraph=True\) \(no .item\(\)", compile=True
    )
    check_cell(ssm(prior=prior, **NO_SCAN), compile=False)


def test_more_cells_than_torch_keeps_traces_of_can_be_traced_in_one_process():
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        check_cell(Tank(), embed_dim=2, batch_size=2, length=4)


# What checks compare with.


def test_differences_within_rounding_do_not_count_and_the_largest_other_is_told():
    one = torch.tensor([1.0, 2.0, float("nan")])
    assert difference(one + 1e-5, one) == 0.0
    assert difference(one + torch.tensor([0.25, 0.5, 0.0]), one) == 0.5
    assert difference(torch.tensor([1.0, 2.0, 3.0]), one) == float("inf")
    assert difference(one.double() + 1e-5, one.double()) > 0.0
    assert difference(torch.tensor([3]), torch.tensor([4])) == 1.0


def test_the_first_field_that_differs_is_named():
    zeros = State(*(torch.zeros(2),) * 4)
    with pytest.raises(ContractError, match=r"^prior.mean must be so \(it differs by up to 2\)$"):
        expect_equal(zeros._replace(mean=torch.tensor([1.0, 2.0])), zeros, "prior", "must be so")


# Noise that is drawn: by a scan of the cell's own, by `prior` and `posterior`, and how.


def drawing_scan(*, prior=torch.randn, posterior=torch.randn):
    """An SSM whose scan draws as asked, on the shape [T, B, S]."""

    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        shape = (*embed.shape[:2], 4)
        prior_noise = prior(shape) if prior_noise is None else prior_noise
        posterior_noise = posterior(shape) if posterior_noise is None else posterior_noise
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    return ssm(scan=scan)


def test_a_scan_that_draws_standard_normal_noise_of_its_own_passes():
    check_cell(drawing_scan(), compile=False)


ONLY_SCANS_DRAW = {
    "zeros": (torch.zeros, "must follow torch.manual_seed, got the same at another seed"),
    "uniform": (torch.rand, "must be distributed alike for noise=None and for normal noise"),
    "one draw for all rows of time": (
        lambda shape: torch.randn(shape[1:]).expand(shape),
        "must draw noise of its own for each row where noise is None, got correlated ones along leading axis",
    ),
    "one draw for all rows of the batch": (
        lambda shape: torch.randn(shape[0], 1, shape[2]).expand(shape),
        "must draw noise of its own for each row where noise is None, got correlated ones along leading axis",
    ),
    "one draw for two rows of time": (
        lambda shape: torch.randn(-(-shape[0] // 2), *shape[1:]).repeat_interleave(2, 0)[: shape[0]],
        "must draw noise of its own for each row where noise is None, got correlated ones along leading axis 0 of 2",
    ),
    "one number for all dimensions": (
        lambda shape: torch.randn(*shape[:-1], 1).expand(shape),
        "must draw independent numbers where noise is None, got others correlated than with noise given",
    ),
}


@pytest.mark.parametrize("which", ["prior", "posterior"])
@pytest.mark.parametrize(("draw", "match"), ONLY_SCANS_DRAW.values(), ids=ONLY_SCANS_DRAW)
def test_a_scan_that_draws_wrongly_is_caught(draw, match, which):
    assert "of observe" in broken(drawing_scan(**{which: draw}), match)


def test_a_scan_that_is_random_at_starts_alone_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        if posterior_noise is None:
            posterior_noise = torch.randn(*embed.shape[:2], 4) * is_first.unsqueeze(-1)
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    broken(ssm(scan=scan), "posterior of observe must follow torch.manual_seed, got the same at another seed")


def test_a_scan_that_uses_one_draw_for_prior_and_posterior_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        if prior_noise is None and posterior_noise is None:
            prior_noise = posterior_noise = torch.randn(*embed.shape[:2], 4)
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    broken(ssm(scan=scan), "must draw independent numbers where noise is None.*not the same for prior and posterior")


WRONG_DRAWS = {
    "one number for all dimensions": (
        lambda self, shape: torch.randn(*shape[:-1], 1).expand(shape),
        "cell.prior must draw independent numbers where noise is None, got others correlated",
    ),
    "half of the dimensions twice": (
        lambda self, shape: torch.randn(*shape[:-1], 2).repeat_interleave(2, -1),
        "cell.prior must draw independent numbers where noise is None, got others correlated",
    ),
    "one draw for a whole leading axis": (
        lambda self, shape: torch.randn(shape[1:]).expand(shape),
        "cell.prior must draw noise of its own for each row where noise is None, got correlated ones along .* 0 of 2",
    ),
    "clipped at two standard deviations": (
        lambda self, shape: torch.randn(shape).clamp(-2.0, 2.0),
        "prior.stoch must be distributed alike for noise=None and for normal noise",
    ),
    "clipped at two and a half": (
        lambda self, shape: torch.randn(shape).clamp(-2.5, 2.5),
        "prior.stoch must be distributed alike for noise=None and for normal noise",
    ),
    "uniform of variance 1": (
        lambda self, shape: 12**0.5 * (torch.rand(shape) - 0.5),
        "prior.stoch must be distributed alike for noise=None and for normal noise",
    ),
}


@pytest.mark.parametrize(("draw", "match"), WRONG_DRAWS.values(), ids=WRONG_DRAWS)
def test_noise_that_is_neither_independent_nor_normal_is_caught(draw, match):
    broken(drawing(draw), match)


def test_what_a_cell_makes_of_given_noise_is_its_own_affair():
    def prior(self, state, action, noise=None):
        noise = torch.randn(*action.shape[:-1], 4) if noise is None else noise
        return SSMCell.prior(self, state, action, noise.clamp(-2.0, 2.0).sum(-1, keepdim=True).expand_as(noise))

    check_cell(ssm(prior=prior, redraw=None, **NO_SCAN), compile=False)
    inherited = "redraw.stoch must be distributed alike as drawn by cell.prior"
    broken(ssm(prior=prior, **NO_SCAN), inherited)


@pytest.mark.parametrize("name", CELLS)
def test_right_cells_pass_at_any_seed(name):
    for seed in range(1, 5):
        check_cell(build(name), seed=seed, compile=False)


# Axes of size 1.


def test_features_that_squeeze_a_batch_of_one_are_caught():
    cell = ssm(features=lambda self, state: state.stoch.squeeze(0))
    broken(cell, r"cell.features must be \[1, 4\], got \[4\]; the leading axes are")


def test_a_divergence_that_squeezes_a_batch_of_one_is_caught():
    cell = ssm(divergence=lambda self, one, other: SSMCell.divergence(self, one, other).squeeze())
    broken(cell, r"cell.divergence must be \[1\], got \[\]")


def test_features_that_squeeze_one_row_of_time_are_caught():
    def features(self, state):
        return state.stoch.squeeze(0) if state.stoch.ndim == 3 else state.stoch

    broken(ssm(features=features), r"cell.features must be \[1, 3, 4\], got \[3, 4\]")


def test_other_numbers_in_a_batch_of_one_are_caught():
    def prior(self, state, action, noise=None):
        return SSMCell.prior(self, state, action * (1.0 if action.numel() > 2 else 0.5), noise)

    broken(ssm(prior=prior), r"prior.\w+ must be the same in a batch of one row as in a larger one; an axis of size 1")


@pytest.mark.parametrize(("axis", "sizes"), [(0, "T=1, B=3"), (1, "T=6, B=1")])
def test_a_scan_with_other_numbers_at_size_one_is_caught(axis, sizes):
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        embed = 0.5 * embed if embed.shape[axis] == 1 else embed
        return SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)

    broken(ssm(scan=scan), rf"of observe must be the same at {sizes} as in a larger window")


def test_a_scan_that_squeezes_one_row_of_time_is_caught():
    def scan(self, state, embed, action, is_first, prior_noise=None, posterior_noise=None):
        prior, posterior = SSMCell.scan(self, state, embed, action, is_first, prior_noise, posterior_noise)
        return prior, State(*(field.squeeze(0) for field in posterior))

    broken(ssm(scan=scan), "planet_lib.observe must run with the cell, got ValueError: the cell's posterior must have")


# Gradients of features and of divergence, each alone.


def detached(state, *fields):
    return state._replace(**{field: getattr(state, field).detach() for field in fields or state._fields})


def test_a_divergence_with_the_prior_detached_is_caught_where_the_posterior_trains_its_layers():
    cell = ssm(divergence=lambda self, posterior, prior: SSMCell.divergence(self, posterior, detached(prior)))
    broken(cell, "a gradient of cell.divergence must reach all that it reads of prior.mean, got none; detach nothing")


def test_a_divergence_with_the_posterior_detached_is_caught():
    cell = rssm(divergence=lambda self, posterior, prior: RSSMCell.divergence(self, detached(posterior), prior))
    broken(cell, "a gradient of cell.divergence must reach all that it reads of posterior.mean, got none")


def test_a_divergence_with_one_field_detached_is_caught():
    cell = rssm(divergence=lambda self, one, other: RSSMCell.divergence(self, one, detached(other, "std")))
    broken(cell, "a gradient of cell.divergence must reach all that it reads of prior.std, got none")


@pytest.mark.parametrize("field", ["deter", "stoch"])
def test_features_with_one_field_detached_are_caught(field):
    cell = rssm(features=lambda self, state: RSSMCell.features(self, detached(state, field)))
    broken(cell, f"a gradient of cell.features must reach all that it reads of prior.{field}, got none")


def test_features_with_half_of_a_field_detached_are_caught():
    def features(self, state):
        head, tail = state.deter.tensor_split([6], -1)
        return torch.cat([head, tail.detach(), state.stoch], -1)

    broken(rssm(features=features), "a gradient of cell.features must reach all that it reads of prior.deter, got none")


def test_a_prior_whose_sample_is_detached_is_caught():
    cell = rssm(
        prior=lambda self, state, action, noise=None: detached(RSSMCell.prior(self, state, action, noise), "stoch")
    )
    broken(cell, "a gradient of cell.prior's stoch must reach action, which changes it, got none; detach nothing")


def test_a_posterior_that_trains_nothing_through_its_mean_is_caught():
    cell = rssm(
        posterior=lambda self, prior, embed, noise=None: detached(
            RSSMCell.posterior(self, prior, embed, noise), "mean"
        ),
        **NO_SCAN,
    )
    broken(cell, "a gradient of cell.posterior's mean must reach embed, which changes it, got none; detach nothing")


def test_a_balanced_divergence_and_rectified_features_pass():
    def divergence(self, posterior, prior):
        one = RSSMCell.divergence(self, detached(posterior), prior)
        return 0.8 * one + 0.2 * RSSMCell.divergence(self, posterior, detached(prior))

    check_cell(rssm(divergence=divergence), compile=False)
    check_cell(rssm(features=lambda self, state: RSSMCell.features(self, state).relu()), compile=False)


def test_a_class_in_place_of_a_cell_is_named() -> None:
    with pytest.raises(TypeError, match="cell must be an instance, got the class RSSMCell; call it with its sizes"):
        check_cell(RSSMCell)


# Drawing a state again.


def redrawing(redraw, base=SSMCell):
    sizes = {} if base is SSMCell else {"deter_dim": 12}
    return type("Broken", (base,), {"redraw": redraw})(2, 5, **SIZES, **sizes)


def redrawn(change):
    """An SSM that changes what it drew again: a function of the state given, the result and the noise."""

    def redraw(self, state, noise=None):
        noise = torch.randn_like(state.mean) if noise is None else noise
        return change(state, SSMCell.redraw(self, state, noise), noise)

    return redrawing(redraw)


def written_over(state, result, noise):
    state.mean.copy_(result.stoch)
    return result


WRONG_REDRAWS = {
    "another type": (
        lambda state, result, noise: tuple(result),
        "cell.redraw must return a State, as cell.initial does, got tuple",
    ),
    "another shape": (
        lambda state, result, noise: result._replace(stoch=result.stoch[..., :3]),
        r"cell.redraw's stoch must be \[3, 4\], got \[3, 3\]",
    ),
    "its argument written over": (written_over, "argument state.mean must be left as it was by cell.redraw"),
    "another distribution": (
        lambda state, result, noise: result._replace(mean=result.stoch),
        "cell.divergence between a state and the same one redrawn must be 0; draw from the state's own",
    ),
    "a mean over the batch": (
        lambda state, result, noise: result._replace(stoch=result.stoch - noise.mean(-2, keepdim=True)),
        "redraw.stoch of one row must not depend on other rows of the batch; take no mean or other statistic",
    ),
    "noise of the first row": (
        lambda state, result, noise: result._replace(stoch=state.mean + state.std * noise[..., :1, :]),
        "cell.redraw must draw noise of its own for each row where noise is None",
    ),
    "the state itself": (
        lambda state, result, noise: state,
        "cell.redraw must depend on its noise, got the same state from any; use it",
    ),
    "around the sample": (
        lambda state, result, noise: result._replace(stoch=state.stoch + state.std * noise),
        "redraw.stoch must be distributed alike as drawn by cell.prior; draw from the distribution that the state",
    ),
    "half the deviation": (
        lambda state, result, noise: result._replace(stoch=state.mean + 0.5 * state.std * noise),
        "redraw.stoch must be distributed alike as drawn by cell.prior",
    ),
    "partly the old sample": (
        lambda state, result, noise: result._replace(
            stoch=state.mean + 0.6 * (state.stoch - state.mean) + 0.8 * state.std * noise
        ),
        "cell.redraw must draw afresh, got a state correlated with the one it was given",
    ),
}


@pytest.mark.parametrize(("change", "match"), WRONG_REDRAWS.values(), ids=WRONG_REDRAWS)
def test_a_wrong_redraw_is_caught(change, match):
    broken(redrawn(change), match)


def test_a_redraw_that_is_not_replayed_or_draws_although_noise_is_given_is_caught():
    own = torch.Generator().manual_seed(0)

    def of_its_own(self, state, noise=None):
        noise = torch.randn(state.mean.shape, generator=own) if noise is None else noise
        return SSMCell.redraw(self, state, noise)

    broken(redrawing(of_its_own), "redraw.stoch must be replayed by torch.manual_seed where noise is None")
    broken(redrawing(lambda self, state, noise=None: SSMCell.redraw(self, state)), "redraw.stoch must be the same on")
    uniform = redrawing(
        lambda self, state, noise=None: SSMCell.redraw(
            self, state, torch.rand_like(state.mean) if noise is None else noise
        )
    )
    broken(uniform, "redraw.stoch must be distributed alike for noise=None and for normal noise")


def test_a_redraw_that_needs_noise_and_one_for_a_single_leading_axis_are_caught():
    def needs_noise(self, state, noise):
        return state._replace(stoch=state.mean + state.std * noise)

    def one_axis(self, state, noise=None):
        rows, size = state.mean.shape
        return SSMCell.redraw(self, state, torch.randn(rows, size) if noise is None else noise)

    broken(redrawing(needs_noise), "cell.redraw must run without noise, got TypeError")
    broken(redrawing(one_axis), r"cell.redraw must run with leading axes \[2, B\], got ValueError: too many values")


def test_a_redraw_that_is_random_where_noise_dim_is_zero_is_caught():
    def redraw(self, state, noise=None):
        return state._replace(stoch=state.stoch + (torch.randn_like(state.stoch) if noise is None else 0.0))

    broken(redrawing(redraw, RNNCell), "redraw.stoch must not be random, since noise_dim is 0")
