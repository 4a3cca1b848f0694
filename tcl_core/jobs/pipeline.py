"""Stages that overlap: images are read before they are asked for, and what is made of them is taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["done", "in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Started = TypeVar("_Started")


def in_order(
    items: Iterable[_Item], submit: Callable[[_Item], _Started], ahead: int
) -> Iterator[tuple[_Item, _Started]]:
    """Submit items before their results are asked for, and give them back in their order.

    Args:
        items: what to work on. An error that this raises comes after the items before it.
        submit: starts the work on one; it returns a future, or whatever else stands for the result.
        ahead: so many are worked on at a time, at least 1; with 1 each is submitted when it is asked for.

    Yields:
        Each item and what was returned for it, which need not be done.

    Example:
        >>> [future.result() for _, future in in_order([1, 2, 3], lambda item: done(item * item), ahead=2)]
        [1, 4, 9]
    """
    pending: deque[tuple[_Item, _Started]] = deque()
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception:
            yield from pending
            raise
        pending.append((item, submit(item)))
        if len(pending) >= ahead:
            yield pending.popleft()
    yield from pending


def done(result: _Result) -> Future[_Result]:
    """A future that has a result."""
    future: Future[_Result] = Future()
    future.set_result(result)
    return future
