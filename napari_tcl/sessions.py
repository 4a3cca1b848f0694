"""The sessions of a stack's slices: those at hand are whole, of the others only the scores are kept."""

from __future__ import annotations

from collections import OrderedDict

from napari_tcl.slices import Index
from tcl_core.segmentation.session import ImageSession

__all__ = ["SessionStore"]

_WHOLE = 3
_BYTES = 1 << 30


class SessionStore:
    """Sessions by slice, so that a threshold can be moved in all slices of a stack without the network.

    Args:
        whole: how many sessions keep all they know.
        max_bytes: bound of the scores that the others keep; the oldest are forgotten.
    """

    def __init__(self, whole: int = _WHOLE, max_bytes: int = _BYTES) -> None:
        self._whole, self._max_bytes = whole, max_bytes
        self._sessions: OrderedDict[Index, ImageSession] = OrderedDict()
        self._full: list[Index] = []

    def put(self, index: Index, session: ImageSession) -> None:
        """Keep the session of a slice, in place of an older one."""
        self._sessions.pop(index, None)
        self._sessions[index] = session
        self._full = [*(other for other in self._full if other != index), index]
        while len(self._full) > self._whole:
            slim = self._full.pop(0)
            self._sessions[slim] = self._sessions[slim].scores_alone()
        while len(self._sessions) > self._whole and self._nbytes > self._max_bytes:
            self._sessions.popitem(last=False)

    def get(self, index: Index) -> ImageSession | None:
        """The session of a slice, if it is known."""
        return self._sessions.get(index)

    def clear(self) -> None:
        """Forget all, because the image is another."""
        self._sessions.clear()
        self._full.clear()

    @property
    def _nbytes(self) -> int:
        return sum(session.score_bytes for session in self._sessions.values())
