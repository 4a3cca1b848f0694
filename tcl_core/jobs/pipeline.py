"""Stages that overlap: images are read before they are asked for, and what is made of them is taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["done", "in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    items: Iterable[_Item], submit: Callable[[_Item], Future[_Result]], ahead: int
) -> Iterator[tuple[_Item, Future[_Result]]]:
    """Submit items before their results are asked for, and give them back in their order.

    Args:
        items: what to work on.
        submit: starts the work on one.
        ahead: so many are worked on at a time, at least 1; with 1 each is submitted when it is asked for.

    Yields:
        Each item and its future, which need not be done.

    Example:
        >>> [future.result() for _, future in in_order([1, 2, 3], lambda item: done(item * item), ahead=2)]
        [1, 4, 9]
    """
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    for item in items:
        pending.append((item, submit(item)))
        if len(pending) >= ahead:
            yield pending.popleft()
    yield from pending


def done(result: _Result) -> Future[_Result]:
    """A future that has a result."""
    future: Future[_Result] = Future()
    future.set_result(result)
    return future
