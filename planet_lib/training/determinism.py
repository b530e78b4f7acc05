"""The switch that makes torch choose operations which give the same numbers every time."""

import os

import torch


def make_deterministic() -> None:
    """Make torch use deterministic operations alone, in this process from now on.

    On a CPU nothing needs it: the same seed, machine, versions and number of threads give the same numbers anyway. On a
    CUDA device some operations add numbers in an order that changes from run to run. With this switch torch takes
    others, slower ones, and raises a RuntimeError in the few places where it has none. cuDNN no longer times its
    convolutions to choose the fastest one. Call it before anything ran on CUDA: cuBLAS reads its setting once.

    Numbers of another machine, another number of threads or another version of torch still differ in their last digits.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html

    Example:
        >>> make_deterministic()
        >>> torch.are_deterministic_algorithms_enabled()
        True
        >>> torch.use_deterministic_algorithms(False)
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
