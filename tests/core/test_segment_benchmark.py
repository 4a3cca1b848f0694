from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tcl_core.benchmarks import segment as segment_benchmark
from tcl_core.benchmarks.segment import _vocabularies, format_rows, format_stages, run, run_stages
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


def test_texts_of_an_earlier_benchmark_are_not_read(
    model: Model,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = []

    class Recording(Segmenter):
        def __init__(self, model: Model, **settings: Any) -> None:
            folders.append(model.text_folder)
            super().__init__(model, **settings)

    monkeypatch.setattr(segment_benchmark, "Segmenter", Recording)
    run(replace(model, text_folder=tmp_path), count=1, size=(50, 60), batch_size=2, repeats=1)
    assert folders and set(folders) == {None}


def test_numbers_under_one_are_errors(model: Model) -> None:  # noqa: F811
    with pytest.raises(SettingsError, match="at least 1"):
        run(model, count=0)


def test_the_embedded_model_knows_the_prompts_it_is_measured_with() -> None:
    loaded = load_model("playground", device="cpu")
    first, second = _vocabularies(loaded)
    assert len(first.labels) == len(second.labels) == 4
    Segmenter(loaded).embed_prompts([prompt for _, prompt in (*first.prompts, *second.prompts)])


@pytest.mark.parametrize("refine", [True, False])
def test_the_parts_of_a_new_image_are_all_of_it(model: Model, refine: bool) -> None:  # noqa: F811
    rows = run_stages(model, size=(48, 40), batch_size=2, refine=refine, repeats=1)
    names = ["network", "scores and arg-max", *(["refinement (PAMR)"] if refine else []), "regions and polygons"]
    assert [row.what for row in rows] == names
    assert sum(row.share for row in rows) == pytest.approx(1)
    total = sum(row.seconds for row in rows)
    assert all(row.share == pytest.approx(row.seconds / total) for row in rows)
    shown = format_stages(rows).splitlines()
    assert all(line.startswith(row.what) and line.endswith(" %") for line, row in zip(shown, rows, strict=True))
    with pytest.raises(SettingsError, match="at least 1"):
        run_stages(model, repeats=0)
