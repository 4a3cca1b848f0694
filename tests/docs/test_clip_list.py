from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import open_clip
import pytest

from tcl_core.towers.open_clip_catalog import architectures

DOCS = Path(__file__).parents[2] / "docs"


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_clip_list", DOCS / "build_clip_list.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_list_of_clips_says_what_open_clip_says() -> None:
    """Another version of open_clip may know other configurations; what both know is compared."""
    written = (DOCS / "open-clip-models.md").read_text(encoding="utf-8")
    listed = {match[1]: match[0] for match in re.finditer(r"^\| (\S+) \| (?:yes|no: ).*$", written, re.MULTILINE)}
    made = builder()
    if f"open_clip {open_clip.__version__}," in written:
        assert written == made.page()
    common = sorted(listed.keys() & set(architectures()))
    assert len(common) > 60
    for name, line in made.rows(common).items():
        # Tags are added by the year.
        assert line.rpartition(" | ")[0] == listed[name].rpartition(" | ")[0]
