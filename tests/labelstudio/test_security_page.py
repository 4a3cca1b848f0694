"""Every line of the attacks on the security page names its tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "label-studio-security.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| attack |"))
]


def test_the_page_has_its_two_tables() -> None:
    assert len(ROWS) > 20 and all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_every_attack_has_a_test(row: list[str]) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", row[2])
    assert named, row
    for name in named:
        assert re.search(rf"^def {name}\(", sources, re.MULTILINE), name
