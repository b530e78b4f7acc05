"""The container: it keeps what it is given, and says which parts do not fit."""

from types import SimpleNamespace

import pytest
import torch

from planet_lib import (
    ContinueHead,
    ConvEncoder,
    Decoder,
    DictDecoder,
    DictEncoder,
    RewardHead,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
)


def parts() -> dict[str, torch.nn.Module]:
    return {
        "encoder": VectorEncoder(3, embed_dim=8),
        "cell": SSMCell(1, 8, stoch_dim=4),
        "decoder": Decoder(4, (3,)),
        "reward_head": RewardHead(4),
    }


def test_the_parts_are_kept_as_they_are_and_make_up_the_state_dict() -> None:
    given = parts()
    model = WorldModel(**given)
    for name, part in given.items():
        assert getattr(model, name) is part
    names = {name.partition(".")[0] for name in model.state_dict()}
    assert names == set(given)


def test_a_continue_head_is_kept_and_without_one_nothing_stands_in_its_place() -> None:
    head = ContinueHead(4)
    model = WorldModel(**parts(), continue_head=head)
    assert model.continue_head is head
    weights = model.state_dict()
    assert {name for name in weights if name.startswith("continue_head.")} == {
        f"continue_head.{name}" for name in head.state_dict()
    }
    plain = WorldModel(**parts())
    assert plain.continue_head is None
    plain.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("continue_head")})


@pytest.mark.parametrize("name", ["encoder", "decoder", "reward_head", "continue_head"])
def test_a_part_that_is_no_module_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a torch.nn.Module, got SimpleNamespace"):
        WorldModel(**{**parts(), name: SimpleNamespace(feature_dim=4)})


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("encoder", ConvEncoder((3, 64, 64)), "cell.embed_dim must equal encoder.embed_dim=1024, got 8"),
        ("cell", RSSMCell(1, 9), "cell.embed_dim must equal encoder.embed_dim=8, got 9"),
        ("decoder", Decoder(5, (3,)), "decoder.feature_dim must equal cell.feature_dim=4, got 5"),
        ("reward_head", RewardHead(6), "reward_head.feature_dim must equal cell.feature_dim=4, got 6"),
        ("continue_head", ContinueHead(6), "continue_head.feature_dim must equal cell.feature_dim=4, got 6"),
        (
            "encoder",
            DictEncoder({"one": VectorEncoder(3, embed_dim=8), "other": VectorEncoder(3, embed_dim=8)}),
            "cell.embed_dim must equal encoder.embed_dim=16, got 8",
        ),
        (
            "decoder",
            DictDecoder({"one": Decoder(5, (3,)), "other": Decoder(5, (3,))}),
            "decoder.feature_dim must equal cell.feature_dim=4, got 5",
        ),
    ],
)
def test_parts_of_different_sizes_are_named(name: str, part: torch.nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        WorldModel(**{**parts(), name: part})


def test_a_part_of_ones_own_need_not_state_its_sizes() -> None:
    encoder, decoder = torch.nn.Linear(3, 8), torch.nn.Linear(4, 3)
    model = WorldModel(**{**parts(), "encoder": encoder, "decoder": decoder})
    assert model.encoder is encoder
    assert model.decoder is decoder


class Still:
    """A cell without parameters, which is no module: nothing ever happens."""

    action_dim, feature_dim, noise_dim = 1, 4, 0

    def initial(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch_size, 4),)

    def prior(self, state: object, action: torch.Tensor, noise: torch.Tensor | None = None) -> object:
        return state

    def posterior(self, prior: object, embed: torch.Tensor, noise: torch.Tensor | None = None) -> object:
        return prior

    def features(self, state: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return state[0]

    def divergence(self, posterior: object, prior: object) -> torch.Tensor:
        return torch.zeros(())


def test_a_cell_need_not_be_a_module_but_must_have_sizes_and_a_prior() -> None:
    cell = Still()
    assert WorldModel(**{**parts(), "cell": cell}).cell is cell
    message = "cell must have the members of planet_lib.Cell, got SimpleNamespace without action_dim, noise_dim, prior"
    with pytest.raises(TypeError, match=message):
        WorldModel(**{**parts(), "cell": SimpleNamespace(feature_dim=4)})
    with pytest.raises(TypeError, match="got Linear without action_dim"):
        WorldModel(**{**parts(), "cell": torch.nn.Linear(1, 1)})
