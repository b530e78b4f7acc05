"""Memory that a plan uses at every step, kept for the next one. For this package alone."""

import functools

import torch


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next step, instead of asking for it anew page by page.

    glibc gives freed memory back to the system beyond a limit that follows the largest block freed so far, up to 32 MB.
    A plan's blocks are a few megabytes each; one that is larger raises the limit above what a plan uses.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once; its memory is never touched
