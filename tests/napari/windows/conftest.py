"""Fixtures of the cases: a viewer in a real window, the widget in it, and what it says.

Each case runs in a process of its own, see ``tests.napari.case_server``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.napari.steps import prepared

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the remembered settings: those of other cases and of whoever runs this stay out of the way."""
    folder = tmp_path / "config"
    monkeypatch.setenv("TCL_ANNOTATE_CONFIG", str(folder))
    return folder


@pytest.fixture
def viewer(config: Path) -> Iterator[Viewer]:
    """A viewer in a window, closed after the case."""
    import napari

    made = napari.Viewer(show=True)
    yield made
    made.close()


@pytest.fixture
def widget(viewer: Viewer, tiny_model_path: Path) -> SegmentWidget:
    """The docked widget with two labels and a small random model."""
    return prepared(viewer, tiny_model_path)


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Messages that the viewer shows as errors."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    shown: list[str] = []

    def note(event: Any) -> None:
        if event.severity >= NotificationSeverity.ERROR:
            shown.append(str(event.message))

    notification_manager.notification_ready.connect(note)
    yield shown
    notification_manager.notification_ready.disconnect(note)
