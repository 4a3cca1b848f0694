from __future__ import annotations

import pytest

from tcl_core.benchmarks.segment import _vocabularies, format_rows, run
from tcl_core.errors import SettingsError
from tcl_core.models import Model, load_model
from tcl_core.segmentation import Segmenter
from tests.core.test_segmenter import model  # noqa: F401


def test_rows_refer_to_each_other(model: Model) -> None:  # noqa: F811
    rows = run(model, count=2, size=(50, 60), batch_size=4, repeats=1)
    assert [bool(row.compared_with) for row in rows] == [False, True, False, True, False, True]
    for reference, row in (rows[:2], rows[2:4], rows[4:]):
        assert reference.ratio == 1 and row.ratio == pytest.approx(reference.seconds / row.seconds)
    assert all(row.what in format_rows(rows) for row in rows)


def test_numbers_under_one_are_errors(model: Model) -> None:  # noqa: F811
    with pytest.raises(SettingsError, match="at least 1"):
        run(model, count=0)


def test_the_embedded_model_knows_the_prompts_it_is_measured_with() -> None:
    loaded = load_model("playground", device="cpu")
    first, second = _vocabularies(loaded)
    assert len(first.labels) == len(second.labels) == 4
    Segmenter(loaded).embed_prompts([prompt for _, prompt in (*first.prompts, *second.prompts)])
