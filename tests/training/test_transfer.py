"""Transfer: the body's weights come along, the task's heads begin anew, and a model that doesn't fit is refused."""

from dataclasses import replace

import pytest
import torch

from planet_lib.training import transfer_weights
from planet_lib.training.presets import PRESETS, build_model

PRESET = replace(PRESETS["cpu"], deter_dim=6, stoch_dim=3, hidden_dim=6, embed_dim=6, reward_hidden_dim=6)


def model_with(seed, **changes):
    torch.manual_seed(seed)
    return build_model(replace(PRESET, **changes), "rssm", (5,), 2)


def test_everything_but_the_heads_that_know_the_task_comes_from_the_other_run():
    old, new, untouched = model_with(0, continue_scale=1.0), model_with(1, continue_scale=1.0), model_with(1)
    own_head = {name: value.clone() for name, value in new.reward_head.state_dict().items()}
    own_continue = {name: value.clone() for name, value in new.continue_head.state_dict().items()}
    loaded = transfer_weights(new, old.state_dict())
    assert {name.partition(".")[0] for name in loaded} == {"encoder", "cell", "decoder"}
    for part in ("encoder", "cell", "decoder"):
        torch.testing.assert_close(getattr(new, part).state_dict(), getattr(old, part).state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(new.reward_head.state_dict(), own_head, rtol=0, atol=0)
    torch.testing.assert_close(new.continue_head.state_dict(), own_continue, rtol=0, atol=0)
    assert not torch.equal(next(new.encoder.parameters()), next(untouched.encoder.parameters()))


@pytest.mark.parametrize(("old_scale", "new_scale"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_continue_head_on_one_side_only_is_no_obstacle(old_scale, new_scale):
    old, new = model_with(0, continue_scale=old_scale), model_with(1, continue_scale=new_scale)
    transfer_weights(new, old.state_dict())
    torch.testing.assert_close(new.cell.state_dict(), old.cell.state_dict(), rtol=0, atol=0)


def test_nothing_fresh_takes_the_heads_too():
    old, new = model_with(0), model_with(1)
    transfer_weights(new, old.state_dict(), fresh=())
    torch.testing.assert_close(new.state_dict(), old.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deter_dim": 7}, r"instead of .* and \d+ more: give the settings of the run"),
        ({"num_layers": 2}, "which this model lacks"),
    ],
)
def test_a_model_of_other_sizes_is_refused_and_nothing_is_loaded(changes, message):
    new = model_with(1)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        transfer_weights(new, model_with(0, **changes).state_dict())
    torch.testing.assert_close(new.state_dict(), before, rtol=0, atol=0)


def test_a_part_that_no_world_model_has_is_refused():
    with pytest.raises(ValueError, match=r"fresh must name parts of the model \(encoder, cell, .*got policy"):
        transfer_weights(model_with(0), model_with(1).state_dict(), fresh=("policy",))
