"""Failures of memory and of other processes, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from tcl_core.errors import SettingsError, is_out_of_memory
from training.distributed import world_size

__all__ = ["in_words"]

# What gloo says has no type of its own.
_SIGNS = ("Connection closed by peer", "Connection reset by peer", "gloo/transport")


@contextmanager
def in_words() -> Iterator[None]:
    """Say what to do where memory runs out, or where another process is gone.

    Raises:
        SettingsError: either happened.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise SettingsError(
                "There is not enough memory for a step; work through the batch in parts with --accumulate, or choose a "
                "smaller one with --set phases.0.batch=N."
            ) from error
        if world_size() > 1 and (isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)):
            raise SettingsError("Another process of this training ended; its message says why.") from error
        raise
