"""The journal is forced to the disk beside the work, and a disk that refuses still ends it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcl_core.errors import ExportError
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs import syncing
from tcl_core.jobs.journal import Journal
from tcl_core.jobs.syncing import BackgroundSync
from tcl_core.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_options(["a"])


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "_SECONDS_BETWEEN", -1.0)


class Disk:
    """Takes what it is given only when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.calls: list[threading.Thread] = []
        self.error: OSError | None = None

    def fsync(self, descriptor: int) -> None:
        self.calls.append(threading.current_thread())
        assert self.may.wait(60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.may.set()


def test_lines_are_added_while_the_disk_works_but_not_without_end(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        sync = BackgroundSync(file)
        monkeypatch.setattr(syncing, "_SECONDS_BETWEEN", -1.0)
        sync.written()
        monkeypatch.setattr(syncing, "_SECONDS_BETWEEN", 1000.0)
        for _ in range(3):
            # Would wait for ever in this thread, for only this one lets the disk go on.
            sync.written()
        monkeypatch.setattr(syncing, "_SECONDS_BETWEEN", -1.0)
        late = threading.Thread(target=sync.written)
        late.start()
        late.join(0.05)
        assert late.is_alive() and len(disk.calls) == 1
        disk.may.set()
        late.join()
        sync.finish()
        sync.close()
    assert len(disk.calls) == 3 and threading.current_thread() not in disk.calls[:2]
    assert disk.calls[2] is threading.current_thread() and not disk.calls[0].is_alive()


@pytest.mark.parametrize("then", ["add", "export", "close"])
def test_a_disk_that_refuses_in_the_background_ends_the_job(
    tmp_path: Path, disk: Disk, always_due: None, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    journal = Journal.open(tmp_path / "o.json", CocoExporter(), VOCABULARY, {})
    # The system tells such an error once, so it has to be kept for whoever asks next.
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    disk.may.set()
    with pytest.raises(ExportError, match=r"No space left on device; free some space .* resume the run \(--resume\)"):
        if then == "add":
            journal.add_failure("a.png", "broken")
        elif then == "export":
            journal.export()
        else:
            journal.close()
    assert not (tmp_path / "o.json").exists()
    journal.close()
    monkeypatch.undo()
    with Journal.open(tmp_path / "o.json", CocoExporter(), VOCABULARY, {}, resume=True) as journal:
        journal.export()
