"""What one plan computes and needs: returns, memory, operations, launches. Knows torch alone, so runs with any peer."""

import ctypes
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Job = Callable[[], object]
_DRAWS = (torch.ops.aten.randn.default, torch.ops.aten.randn_like.default)
# Views whose schema does not say so.
_VIEWS = ["unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_unsafe_view", "_reshape_alias", "lift_fresh"]
_CUDA_CALLS = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"]
_CUDA_CALLS += ["cudaMemcpyAsync", "cudaMemsetAsync"]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Sees every operation of a planner, inside TorchScript as well.

    Hands out given tensors where `torch.randn` or `torch.randn_like` would draw, as long as there are any, and keeps a
    copy of whatever is ranked by the operations `scored`. Counts all operations, and those that compute nothing.
    """

    def __init__(self, draws: Iterable[Tensor] = (), scored: Iterable[Any] = (torch.ops.aten.topk.default,)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.draws, self.scored = list(draws), tuple(scored)
        self.scores: list[Tensor] = []
        self.operations, self.views = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, or answer it."""
        self.operations += 1
        self.views += computes_nothing(func)
        if func in self.scored:
            self.scores.append(args[0].clone())
        if func in _DRAWS and self.draws:
            draw, asked = self.draws.pop(0), args[0].shape if isinstance(args[0], Tensor) else args[0]
            if list(draw.shape) != list(asked):
                raise ValueError(f"the planner must draw noise of {list(draw.shape)} next, but it drew {list(asked)}")
            return draw.clone()
        return func(*args, **(kwargs or {}))


def computes_nothing(op: Any) -> bool:
    """Whether an operation only looks at memory in another way (a view) or takes some (empty)."""
    aliases = [output.alias_info for output in op._schema.returns]
    name = op._schema.name.partition("::")[2]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or name in _VIEWS or name.startswith(("empty", "new_empty"))


def usage(job: Job, device: torch.device, *, is_compiled: bool = False) -> dict[str, int]:
    """What one call takes: `memory` in bytes, and what it starts (`count_operations`, `count_launches`).

    Operations are counted where nothing is compiled (compilation makes way for whoever watches them), launches where
    something is, and on a graphics card always. On the processor the first call is a warm-up for the memory, which
    compilation would fill; on a card it is part of it, since a captured graph takes its memory once.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        job()
        memory = torch.cuda.max_memory_allocated(device) - before
        counted = {} if is_compiled else count_operations(job)
        return {"memory": memory, **counted, **count_launches(job, device)}
    if is_compiled:
        job()
        return {"memory": peak_memory(job), **count_launches(job, device)}
    counted = count_operations(job)
    return {"memory": peak_memory(job), **counted}


def peak_memory(job: Job) -> int:
    """Bytes of resident memory that one call needs at its worst, above those in use just before it; Linux alone."""
    status = Path("/proc/self/status")
    ctypes.CDLL(None).malloc_trim(0)  # else the call would fill what earlier ones have freed, and seem smaller
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = int(status.read_text().partition("VmRSS:")[2].split()[0])
    job()
    return 1024 * (int(status.read_text().partition("VmHWM:")[2].split()[0]) - before)


def count_operations(job: Job) -> dict[str, int]:
    """Operations that one call dispatches, and how many of these are views or allocations."""
    with Watch(scored=()) as watch:
        job()
    return {"operations": watch.operations, "views": watch.views}


def count_launches(job: Job, device: torch.device) -> dict[str, int]:
    """How often one call starts something, read off the profiler.

    On the processor: generated kernels, and operations that compute something, each counted once whatever it calls
    inside. On a graphics card: kernels, copies and graphs that the host starts, and kernels that the card runs.
    """
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda]) as profiler:
        job()
    events: list[Any] = list(profiler.events() or [])
    if is_cuda:
        on_card = [event for event in events if event.device_type.name == "CUDA"]
        kernels = [event for event in on_card if not event.name.startswith(("Memcpy", "Memset"))]
        return {"launches": sum(event.name in _CUDA_CALLS for event in events), "kernels": len(kernels)}
    return {"launches": sum(_starts_something(event) for event in events)}


def _starts_something(event: Any) -> bool:
    """Whether it is a launch, and not part of one."""
    if not _is_launch(event.name):
        return False
    parent = event.cpu_parent
    while parent is not None:
        if _is_launch(parent.name):
            return False
        parent = parent.cpu_parent
    return True


def _is_launch(name: str) -> bool:
    """Whether a profiler's name is that of a generated kernel, or of an operation with a kernel that computes."""
    space, _, rest = name.partition("::")
    if not rest:
        return "cpp_fused" in name
    packet = getattr(getattr(torch.ops, space), rest, None)
    if packet is None:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    known = [op for op in overloads if torch._C._dispatch_has_kernel(op.name())]  # the others are TorchScript's alone
    # The name does not say which overload it was. Operations made of others are counted by those.
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    is_made_of_others = all(has_kernel(op.name(), "CompositeImplicitAutograd") for op in known)
    return not (is_made_of_others or computes_nothing(known[0]))


def seconds(job: Job, device: torch.device) -> float:
    """How long one call takes, with nothing left running on the device before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
