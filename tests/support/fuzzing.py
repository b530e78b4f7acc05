"""Fuzzing of public entries: right arguments, of which one or two are swapped for hostile values.

An `Entry` is a call with arguments that are right. A case makes them, swaps some, and calls. Only two outcomes pass:

- an answer for which `Entry.check` holds, since not all that looks odd is wrong (a view, a float64, a NumPy integer);
- a ValueError or TypeError that names a swapped argument and says what it got, with `Entry.state` as it was before.

Anything else fails: another exception, an error that names nothing, a wrong answer, a call that takes seconds. How many
cases each entry gets is `PLANET_LIB_FUZZ_CASES`, 25 where it is not set.
"""

import copy
import enum
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

CASES = int(os.environ.get("PLANET_LIB_FUZZ_CASES", "25"))
SECONDS = 5.0  # a case that takes longer hangs, as far as anybody who waits can tell
counted: dict[str, int] = {}  # cases by entry, for the closing line
HUGE = 2**31  # counts from here on are refused; below, memory decides


@dataclass(frozen=True)
class Entry:
    """A public entry, and what is right about it.

    Args:
        name: as users import it, without "planet_lib.": "models.RSSMCell", "data.SequenceReplay.add".
        call: called with the arguments by keyword; a method's object is made or taken in here.
        valid: makes arguments that are right, new ones at every call.
        check: raises an AssertionError where check(arguments, answer) does not hold.
        state: what an error must leave as it was, from the arguments: a digest, a tuple of numbers, a list of files.
        keep: arguments that are never swapped (a temporary directory, the object whose method it is).
        also: hostile values of an argument beyond those that its type suggests.
        known_as: other names by which a message may call an argument: {"obs": ("observation", "images")}.
        slow: how many times fewer cases it gets, where an answer takes long.
        errors: further exceptions that are right, such as OSError where a file is opened. They need not name it.
    """

    name: str
    call: Callable[..., Any]
    valid: Callable[[], dict[str, Any]]
    check: Callable[[Mapping[str, Any], Any], object]
    state: Callable[[Mapping[str, Any]], Any] = lambda _: None
    keep: Sequence[str] = ()
    also: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    known_as: Mapping[str, Sequence[str]] = field(default_factory=dict)
    errors: tuple[type[Exception], ...] = ()
    slow: int = 1

    def __str__(self) -> str:
        return self.name


def fuzz(entry: Entry) -> None:
    """Run the cases of an entry; the first that fails is made small and shown."""

    @settings(
        max_examples=max(3, CASES // entry.slow),
        derandomize=CASES <= 25,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        arguments = entry.valid()
        names = sorted(set(arguments) - set(entry.keep))
        swapped = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True), label="swapped")
        for name in swapped:
            arguments[name] = data.draw(hostile(arguments[name], entry.also.get(name, ())), label=name).value
        counted[entry.name] = counted.get(entry.name, 0) + 1
        _outcome(entry, arguments, swapped)

    check_right(entry)
    _warm_up()
    run()


@functools.cache
def _warm_up() -> None:
    """Let torch import what it does at the first operations on the meta device, which takes seconds."""
    torch.randn(1, device="meta").add(1)


def check_right(entry: Entry) -> None:
    """The arguments that are said to be right give an answer that is."""
    arguments = entry.valid()
    entry.check(arguments, entry.call(**arguments))


def _outcome(entry: Entry, arguments: dict[str, Any], swapped: Sequence[str]) -> None:
    before, began = entry.state(arguments), time.monotonic()
    try:
        answer = entry.call(**arguments)
    except (ValueError, TypeError) as error:
        text = str(error)
        words = [word for name in swapped for word in (name, *entry.known_as.get(name, ()))]
        assert any(word in text for word in words), f"the message names none of {words}: {text!r}"
        assert "got" in text or "hold" in text, f"the message does not say what it got: {text!r}"
        assert entry.state(arguments) == before, f"something changed before the error: {text!r}"
    except entry.errors:
        assert entry.state(arguments) == before, "something changed before the error"
    else:
        entry.check(arguments, answer)
    seconds = time.monotonic() - began
    assert seconds < SECONDS, f"the case took {seconds:.1f} s"


class Swap(NamedTuple):
    """A hostile value, shown by its label alone: tensors would fill the report."""

    label: str
    value: Any

    def __repr__(self) -> str:
        return self.label


def hostile(value: Any, also: Sequence[Any] = ()) -> st.SearchStrategy[Swap]:
    """Values like `value` and wrong, odd, extreme or of another kind, each with a label for the report."""
    kinds = [_anything(value)]
    if isinstance(value, Tensor):
        kinds += [_tensors(value)] * 4
    elif isinstance(value, np.ndarray):
        kinds += [_arrays(value)] * 4
    elif isinstance(value, bool):
        kinds += [_labelled([not value, int(value), 2, np.bool_(value), torch.tensor(value)])]
    elif isinstance(value, int | float):
        kinds += [_numbers(value)] * 4
    elif isinstance(value, str | Path):
        kinds += [_texts(value)] * 3
    elif isinstance(value, bytes):
        kinds += [_bytes(value)] * 12
    elif isinstance(value, Mapping):
        kinds += [_mappings(value)] * 3
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        kinds += [_named_tuples(value)] * 6
    elif isinstance(value, list | tuple):
        kinds += [_sequences(value)] * 3
    if also:
        kinds += [_labelled(also)] * 2
    return st.one_of(kinds)


def finite(answer: Any) -> bool:
    """Whether all numbers in tensors, arrays and containers of them are finite."""
    if isinstance(answer, Tensor):
        return answer.is_meta or bool(torch.isfinite(answer.detach()).all())
    if isinstance(answer, np.ndarray):
        return not np.issubdtype(answer.dtype, np.inexact) or bool(np.isfinite(answer).all())
    if isinstance(answer, Mapping):
        return all(finite(item) for item in answer.values())
    if isinstance(answer, list | tuple):
        return all(finite(item) for item in answer)
    return not isinstance(answer, float) or math.isfinite(answer)


@st.composite
def _labelled(draw: st.DrawFn, values: Sequence[Any]) -> Swap:
    # By place: values that compare in odd ways, such as tensors, must not be compared.
    value = values[draw(st.integers(0, len(values) - 1))]
    return Swap(_short(value), value)


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


class _Odd(enum.Enum):
    ONE = 1


def _anything(like: Any) -> st.SearchStrategy[Swap]:
    """Values of other kinds, as mistakes in a call bring them."""
    values: list[Any] = [None, "", "nonsense", b"bytes", -1, 0, 1.5, math.nan, math.inf, True, (), [], {}, object()]
    values += [set(), [None], {"a": 1}, _Odd.ONE, 1j, range(3), np.float32(1), np.array(["text"]), np.array(None)]
    values += [torch.zeros(0), torch.zeros(()), torch.zeros(2, 2), torch.ones(3, dtype=torch.int64), nn.Linear(1, 1)]
    values += [lambda *args, **kwargs: None, int, Exception("text"), slice(None), np.zeros((2, 0)), 10**40]
    return _labelled([value for value in values if type(value) is not type(like) or not isinstance(value, nn.Module)])


@st.composite
def _numbers(draw: st.DrawFn, value: float) -> Swap:
    fixed = [
        0,
        -1,
        -0.0,
        0.5,
        -value,
        value + 1,
        value + 0.5,
        HUGE,
        2**63,
        -(2**63),
        10**30,
        math.nan,
        math.inf,
        -math.inf,
    ]
    fixed += [1e308, 1e-320, str(value), True, np.int64(3), np.float64(value), np.float32("nan"), [value], (value,)]
    fixed += [
        torch.tensor(value if abs(value) < 2**63 else 3),
        np.array(value),
        np.array([value]),
        complex(value),
        2**31 - 1 + HUGE,
    ]
    if isinstance(value, float):
        fixed += [draw(st.floats())]
    else:
        fixed += [draw(st.integers(-20, 20)), draw(st.integers(HUGE, 2**70))]
    result = fixed[draw(st.integers(0, len(fixed) - 1))]
    return Swap(_short(result), result)


@st.composite
def _texts(draw: st.DrawFn, value: str | Path) -> Swap:
    text = str(value)
    fixed: list[Any] = [
        f"{text}x",
        text.upper(),
        text[:-1],
        f" {text}",
        f"{text}\n",
        "\0",
        text * 200,
        "é",
        text.encode(),
    ]
    fixed += ["./x/./y", "x" * 5000, [text], (text, text), draw(st.text(max_size=20))]
    result = fixed[draw(st.integers(0, len(fixed) - 1))]
    return Swap(_short(result), result)


@st.composite
def _bytes(draw: st.DrawFn, value: bytes) -> Swap:
    """A file's content as a disk, a crash or somebody hostile leaves it."""
    way = draw(st.sampled_from(["cut", "flip", "flip", "flip", "zero", "hole", "more", "twice", "reversed", "other"]))
    place = draw(st.integers(0, max(len(value) - 1, 0)))
    if way == "other" or not value:
        return Swap("other bytes", draw(st.binary(max_size=64)))
    if way == "cut":
        return Swap(f"{place} of {len(value)} bytes", value[:place])
    if way == "flip":
        bit = draw(st.integers(0, 7))
        return Swap(
            f"bit {bit} of byte {place} flipped", value[:place] + bytes([value[place] ^ 1 << bit]) + value[place + 1 :]
        )
    size = draw(st.integers(1, 40))
    if way == "zero":
        return Swap(f"{size} zeros at {place}", value[:place] + bytes(size) + value[place + size :])
    if way == "hole":
        return Swap(f"without {size} bytes at {place}", value[:place] + value[place + size :])
    if way == "more":
        return Swap(f"bytes more at {place}", value[:place] + draw(st.binary(min_size=1, max_size=9)) + value[place:])
    return Swap("twice", value * 2) if way == "twice" else Swap("reversed", value[::-1])


@st.composite
def _mappings(draw: st.DrawFn, value: Mapping[Any, Any]) -> Swap:
    changed: dict[Any, Any] = dict(value)
    way = draw(st.sampled_from(["empty", "drop", "add", "swap", "key", "pairs"]))
    if way == "empty" or not changed:
        return Swap("{}", {})
    name = draw(st.sampled_from(sorted(changed, key=str)))
    if way == "drop":
        del changed[name]
    elif way == "add":
        changed["one_more"] = changed[name]
    elif way == "swap":
        label, changed[name] = draw(hostile(changed[name]))
        return Swap(f"with {name!r} = {label}", changed)
    elif way == "key":
        changed[draw(st.sampled_from([0, "", None, "a/b", "a.b", "obs"]))] = changed.pop(name)
    else:
        return Swap("its items as a list", list(changed.items()))
    return Swap(f"{way} {name!r}", changed)


@st.composite
def _named_tuples(draw: st.DrawFn, value: Any) -> Swap:
    way = draw(st.sampled_from(["swap", "swap", "swap", "swap", "plain", "short", "dict"]))
    if way == "plain":
        return Swap("a plain tuple", tuple(value))
    if way == "short":
        return Swap("a plain tuple without its last entry", tuple(value)[:-1])
    if way == "dict":
        return Swap("a dict", value._asdict())
    name = draw(st.sampled_from(value._fields))
    label, item = draw(hostile(getattr(value, name)))
    return Swap(f"with {name} = {label}", value._replace(**{name: item}))


@st.composite
def _sequences(draw: st.DrawFn, value: Sequence[Any]) -> Swap:
    kind = type(value) if type(value) in (list, tuple) else tuple
    items = list(value)
    way = draw(st.sampled_from(["empty", "shorter", "longer", "swap", "swap", "reversed", "array", "nested"]))
    if way == "empty" or not items:
        return Swap("empty", kind())
    if way == "shorter":
        return Swap("without its last", kind(items[:-1]))
    if way == "longer":
        return Swap("its last twice", kind([*items, items[-1]]))
    if way == "reversed":
        return Swap("reversed", kind(items[::-1]))
    if way == "nested":
        return Swap("nested", kind([kind(items)]))
    if way == "array" and all(isinstance(item, int | float) for item in items):
        return Swap("an array", np.array(items))
    place = draw(st.integers(0, len(items) - 1))
    label, items[place] = draw(hostile(items[place]))
    return Swap(f"with [{place}] = {label}", kind(items))


_DTYPES = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@st.composite
def _tensors(draw: st.DrawFn, value: Tensor) -> Swap:
    ways = ["axis", "axis", "less", "more", "dtype", "dtype", "meta", "number", "number", "view", "numpy", "list"]
    way = draw(st.sampled_from([*ways, "grad", "sparse", "parameter"]))
    if way == "axis" and value.ndim:
        axis, size = draw(st.integers(0, value.ndim - 1)), draw(st.sampled_from([0, 1, 2, 3, 7]))
        return Swap(f"axis {axis} of {list(value.shape)} made {size}", _resized(value, axis, size))
    if way == "less" and value.ndim:
        return Swap(f"without the first axis of {list(value.shape)}", value[0] if len(value) else value.sum(0))
    if way == "more":
        return Swap(f"one more axis than {list(value.shape)}", value.unsqueeze(draw(st.integers(0, value.ndim))))
    if way == "dtype":
        dtype = draw(st.sampled_from(_DTYPES))
        return Swap(f"as {dtype}", value.to(dtype))
    if way == "meta":
        return Swap("on the meta device", value.to("meta"))
    if way == "number" and value.numel() and value.is_floating_point():
        place = draw(st.integers(0, value.numel() - 1))
        number = draw(st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0, -1.0, 2.0]))
        changed = value.detach().clone().contiguous()
        changed.view(-1)[place] = number
        return Swap(f"with {number} at {place}", changed)
    if way == "view":
        return Swap("not contiguous", value.detach().clone().unsqueeze(-1).expand(*value.shape, 2).contiguous()[..., 0])
    if way == "numpy":
        return Swap("as a NumPy array", value.detach().cpu().numpy())
    if way == "list":
        return Swap("as a list", value.detach().tolist())
    if way == "grad" and value.is_floating_point():
        return Swap("with gradients", value.detach().clone().requires_grad_())
    if way == "sparse" and value.ndim:
        return Swap("sparse", value.detach().to_sparse())
    if way == "parameter" and value.is_floating_point():
        return Swap("a parameter", nn.Parameter(value.detach().clone()))
    return Swap("on the meta device", value.to("meta"))


@st.composite
def _arrays(draw: st.DrawFn, value: Any) -> Swap:
    way = draw(
        st.sampled_from(
            ["axis", "less", "more", "dtype", "dtype", "number", "number", "view", "tensor", "list", "masked"]
        )
    )
    if way == "axis" and value.ndim:
        axis, size = draw(st.integers(0, value.ndim - 1)), draw(st.sampled_from([0, 1, 2, 3, 7]))
        resized = _resized(torch.from_numpy(np.ascontiguousarray(value)), axis, size).numpy()
        return Swap(f"axis {axis} of {list(value.shape)} made {size}", resized)
    if way == "less" and value.ndim and len(value):
        return Swap(f"without the first axis of {list(value.shape)}", value[0])
    if way == "more":
        return Swap(f"one more axis than {list(value.shape)}", np.expand_dims(value, draw(st.integers(0, value.ndim))))
    if way == "dtype":
        dtype = draw(st.sampled_from(["f8", "f2", "i8", "i1", "u1", "?", "c8", "O", "U3", "M8[s]", ">f4", "g"]))
        if dtype == "M8[s]":
            return Swap("as dates", np.zeros(value.shape, dtype))
        return Swap(f"as {dtype}", value.astype(dtype))
    if way == "number" and value.size and np.issubdtype(value.dtype, np.floating):
        place = draw(st.integers(0, value.size - 1))
        number = draw(st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0, -1.0, 2.0]))
        changed = value.copy()
        changed.flat[place] = number
        return Swap(f"with {number} at {place}", changed)
    if way == "view" and value.ndim:
        return Swap("not contiguous", np.repeat(value, 2, axis=-1)[..., ::2])
    if way == "tensor":
        return Swap("as a tensor", torch.from_numpy(np.ascontiguousarray(value)))
    if way == "masked":
        return Swap("as a masked array", np.ma.masked_array(value))
    return Swap("as a list", value.tolist())


def _resized(value: Tensor, axis: int, size: int) -> Tensor:
    """The tensor with another length of one axis: cut, or its entries again and again."""
    length = value.shape[axis]
    if length == 0:
        return value.new_zeros([size if place == axis else n for place, n in enumerate(value.shape)])
    places = torch.arange(size) % length
    return copy.copy(value.detach().index_select(axis, places))
