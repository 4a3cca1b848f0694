"""The comparison of prompts with another revision, on a small network."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from benchmarks import first_prompt
from benchmarks.compare_revision import REPOSITORY, BenchmarkError

_SMALL = {
    "side": 64,
    "embed_dim": 32,
    "vision": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def test_examples_of_the_documentation() -> None:
    failed, tried = doctest.testmod(first_prompt)
    assert tried and not failed


@pytest.mark.parametrize(
    "kept", sorted(REPOSITORY.glob("benchmarks/results/first-prompt*.json")), ids=lambda path: path.stem
)
def test_the_page_shows_what_was_measured(kept: Path) -> None:
    content = json.loads(kept.read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
    assert first_prompt.format_table(content["figures"], content["names"]) in page
    assert kept.name in page and content["machine"]["processor"] in page


@pytest.mark.slow
def test_own_mode_is_measured_in_a_process(tmp_path: Path) -> None:
    mode = first_prompt.modes()[1]
    figures = first_prompt.run_mode(mode, REPOSITORY, str(tmp_path), 3, _SMALL)
    assert set(figures) == {"first", "known", "new", "one image MB", "texts"}
    assert all(len(pair) == 2 and min(pair) > 0 for pair in figures.values())
    table = first_prompt.format_table({mode.name: figures}, 3).splitlines()
    assert len(table) == 3 and table[2].startswith(f"| {mode.name} |") and "| 1.00 | 1.07 |" in table[2]


@pytest.mark.slow
def test_failure_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="half failed: AttributeError: .*no attribute 'half16'"):
        first_prompt.run_mode(first_prompt.Mode("half", "torch", "half16"), REPOSITORY, str(tmp_path), 0, _SMALL)
