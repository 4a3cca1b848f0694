"""For tests that show that a result comes from what is kept, not from the network."""

from __future__ import annotations

import pytest

from tcl_core.segmentation.encoding import ImageEncoder

__all__ = ["forbid_network"]


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image fail that a segmenter would send through the network, with whichever backend."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network ran")

    # Not the method's `encode`: a backend may have exported it before.
    monkeypatch.setattr(ImageEncoder, "_embed", refuse)
