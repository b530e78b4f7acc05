"""What the time loops ask of states and of what goes with them. For this package alone."""

from torch import Tensor

from planet_lib._shapes import check_dense, check_device, check_dtype


def check_like(name: str, state: tuple[Tensor, ...], like: tuple[Tensor, ...], *, rows: str) -> None:
    """Raise unless a state given from outside is of the kind, the shapes and the types of the cell's own `like`.

    rows: the argument that says how many there are.
    """
    check_kind(name, state, like)
    for field, value, own in zip(getattr(like, "_fields", range(len(like))), state, like, strict=True):
        check_dense(f"{name}.{field}", value)
        if value.shape != own.shape:
            expected = ", ".join(map(str, own.shape))
            because = f"B from {rows}, and the cell's sizes"
            raise ValueError(f"{name}.{field} must be [{expected}] ({because}), got {list(value.shape)}")
        check_dtype(f"{name}.{field}", value, own.dtype, because="as in the cell's initial state")
        check_device(f"{name}.{field}", value, own.device, because="as the cell's initial state")


def check_kind(name: str, state: object, like: tuple[Tensor, ...]) -> None:
    """Raise unless a state is of the kind of the cell's own `like`."""
    if type(state) is not type(like):
        raise TypeError(f"{name} must be the cell's {type(like).__name__}, got {type(state).__name__}")


def check_meets(state: tuple[Tensor, ...], is_first: Tensor | None, **values: Tensor | None) -> None:
    """Raise unless what a cell takes is of its state's floating type, and on its device."""
    floating = next((field for field in state if field.is_floating_point()), None)
    for name, value in values.items():
        if value is not None and floating is not None:
            check_dtype(name, value, floating.dtype, because="as the cell's state")
            check_device(name, value, floating.device, because="as the cell's state")
    if is_first is not None:
        check_device("is_first", is_first, state[0].device, because="as the cell's state")


def check_rows(name: str, value: Tensor, count: int) -> None:
    """Raise unless the first `count` axes of `value`, one or two, have at least one row each."""
    for size, which in zip(value.shape[:count], ("first", "second"), strict=False):
        if size < 1:
            raise ValueError(f"{name} must have at least one row along its {which} axis, got {size}")


def check_sizes(name: str, state: tuple[Tensor, ...], first: tuple[Tensor, ...], like: tuple[Tensor, ...]) -> None:
    """Raise unless fields have the leading axis of those of `first`, and the sizes behind it that `like` has."""
    for field, before, own in zip(state, first, like, strict=True):
        check_dense(f"a field of {name}", field)
        if field.shape[:1] != before.shape[:1] or field.shape[1:] != own.shape[1:]:
            expected = [*before.shape[:1], *own.shape[1:]]
            raise ValueError(f"a field of {name} must be {expected}, as the state before, got {list(field.shape)}")
