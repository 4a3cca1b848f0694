"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tcl_core.models import Model, load_model
from tcl_core.segmentation.segmenter import Segmenter

_GIGABYTES_PER_WORKER = 3  # of memory: PyTorch, a model, and the programs that a test starts

# An installable package of its own, which has to be unknown until ``tests/contract`` installs it.
collect_ignore = ["example_method"]

# What one test embeds should not be there already for the next; the store's own tests name a folder.
os.environ.setdefault("TCL_ANNOTATE_TEXT_CACHE", "off")

# A busy machine is no fault of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes ``-n auto`` starts: one more than processors, as far as the memory goes.

    Many tests wait for a server, a browser or a program; another process works meanwhile.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not hasattr(os, "sysconf"):
        return processors + 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(processors + 1, int(memory / _GIGABYTES_PER_WORKER)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares costly fixtures in one process, and start the longest first, so that no process waits long."""
    group_of = {item: _group_of(item) for item in items}
    slow = {group_of[item] for item in items if item.get_closest_marker("slow")}
    named = {group for item, group in group_of.items() if group != _module_of(item)}
    items.sort(key=lambda item: (group_of[item] not in named, group_of[item] not in slow))
    for item, group in group_of.items():
        item.add_marker(pytest.mark.xdist_group(group))
        # pytest-xdist 3.8 writes the group where pytest 9.2 does not look any more, and then scatters the tests.
        if hasattr(item, "_id") and getattr(item.config.option, "loadgroup", False):
            item._id = type(item._id).parse(f"{item.nodeid}@{group}")


def _group_of(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return _module_of(item) if mark is None else str(mark.args[0])


def _module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The settings of whoever runs the tests stay as they are, and out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCL_ANNOTATE_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Processes that a module's tests start end with them, or later tests would find them among their own."""
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    if left:
        gc.collect()
        left &= set(multiprocessing.active_children())
    for process in left:
        process.kill()
        process.join()
    assert not left, f"processes that are still running: {left}"


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights that knows the words of ``tests.tiny_model.WORDS``."""
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(tiny_model: Model) -> Segmenter:
    return Segmenter(tiny_model, batch_size=1)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """An image with large colored blocks, so that a random model finds several regions."""
    blocks = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
