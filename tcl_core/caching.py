"""Least-recently-used caches that are bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from tcl_core.errors import SettingsError

__all__ = ["DEFAULT_CACHE_BYTES", "ByteBoundedCache"]

DEFAULT_CACHE_BYTES = 1 << 30
"""1 GiB; about twenty images of one or two 448-pixel windows of a ViT-B/16."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteBoundedCache(Generic[Key, Value]):
    """A thread-safe cache whose values together never hold more than a number of bytes.

    The value that was not used for the longest time goes first. A value larger than the whole bound is not kept, and
    drives nothing else out.

    Args:
        max_bytes: bound of the sum of the values' sizes; 0 keeps nothing.
        size_of: number of bytes a value holds.

    Raises:
        SettingsError: ``max_bytes`` is negative.

    >>> cache = ByteBoundedCache[str, bytes](max_bytes=5, size_of=len)
    >>> cache.put("a", b"12"), cache.put("b", b"345"), cache.put("c", b"123456")
    (True, True, False)
    >>> cache.get("a"), cache.put("d", b"6"), cache.get("b"), cache.nbytes
    (b'12', True, None, 3)
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        if max_bytes < 0:
            raise SettingsError(f"the cache size is {max_bytes} bytes; give 0 (no cache) or more.")
        self.max_bytes = max_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._items: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._nbytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: Key) -> Value | None:
        """The value of a key, which becomes the most recently used; ``None`` where there is none."""
        with self._lock:
            found = self._items.get(key)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._items.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value) -> bool:
        """Keep a value, in place of an older one of the same key.

        Returns:
            False where the value alone is larger than the bound; it is then not kept.
        """
        size = self._size_of(value)
        with self._lock:
            self._drop(key)
            if size > self.max_bytes:
                return False
            while self._nbytes + size > self.max_bytes:
                self._drop(next(iter(self._items)))
            self._items[key] = (value, size)
            self._nbytes += size
            return True

    def clear(self) -> None:
        """Forget all values (not the counts of hits and misses)."""
        with self._lock:
            self._items.clear()
            self._nbytes = 0

    def _drop(self, key: Key) -> None:
        found = self._items.pop(key, None)
        if found is not None:
            self._nbytes -= found[1]

    def __len__(self) -> int:
        """Number of values kept."""
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        """Whether a key is kept; neither counted nor a use."""
        return key in self._items

    @property
    def nbytes(self) -> int:
        """Bytes held by all values."""
        return self._nbytes

    @property
    def hits(self) -> int:
        """Number of `get` calls that found a value."""
        return self._hits

    @property
    def misses(self) -> int:
        """Number of `get` calls that found none."""
        return self._misses
