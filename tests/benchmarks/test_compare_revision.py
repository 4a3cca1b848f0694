from __future__ import annotations

import pytest

from benchmarks.compare_revision import (
    PARTS,
    BenchmarkError,
    Comparison,
    Figure,
    Part,
    Row,
    compare,
    figure_rows,
    format_table,
    last_line,
    main,
    parse_rows,
)
from tcl_core.benchmarks import segment
from tcl_core.models import Model
from tests.core.test_segmenter import model  # noqa: F401

OLD_SEGMENT = """\
model playground on cpu, 8 pictures of 640 x 480
first prompt on new pictures      2.000 s
second prompt on cached pictures  0.500 s  4.0 times as fast as first prompt
encode one window at a time       1.000 s
encode 8 windows at a time        0.800 s  1.2 times as fast as one at a time
"""
OLD_NAPARI = """\
longest gap of the event loop, encoding               60 ms   idle: 122 ms; bar: under 100 ms
from Cancel to the end of the work, slowest           789 ms  bar: under 1000 ms
new prompt beside 10 labels, 1 megapixel              80 ms   0.028 of the first run; bar: under 0.1
  from the click until it is drawn                    198 ms  first run: 1190 ms
threshold, 1 megapixel, 10 labels, until it is drawn  54 ms   slowest: 100 ms; bar: under 50 ms
memory, run 5 to run 6                                +0 MiB  bar: +50 MiB
"""
NAPARI = """\
longest gap of the event loop, encoding               60 ms   idle: 122 ms; target: under 100 ms
from Cancel to the end of the work, slowest           789 ms  target: under 1000 ms
new prompt beside 10 labels, 1 megapixel              80 ms   0.028 of the first run; target: under 0.1
  from the click until it is drawn                    198 ms  first run: 1190 ms
threshold, 1 megapixel, 10 labels, until it is drawn  54 ms   slowest of 31: 100 ms; target: under 50 ms
  of which napari takes to draw its canvas, though unchanged  20 ms  median of as many
memory, run 5 to run 6                                +0 MiB  target: +50 MiB
"""
LABEL_STUDIO = """\
/health, 99th percentile of 10 calls during batches          0.012s  below 0.25s
/setup, slowest of 10 calls during batches                   1.015s  below 1s  missed
neither right nor 503, of 50 requests at once                0.000   below 1
other requests lost when the worker was killed               0.000   below 1
second prompt's share of the first one's time, median of 54    0.071   below 0.1
  smallest of them                                           0.050
  largest of them                                            0.200
"""
TWO = Part("two", "", (Figure("encode", "an? image", decisive=True), Figure("gap", "gap")))


def test_every_figure_has_its_row_in_old_and_new_revisions(model: Model) -> None:  # noqa: F811
    measured = segment.run(model, count=2, size=(50, 60), batch_size=4, repeats=1)
    stages = segment.run_stages(model, size=(48, 40), batch_size=2, repeats=1)
    printed = f"model tiny on cpu\n{segment.format_rows(measured)}\n\n{segment.format_stages(stages)}"
    outputs = {"segment": (OLD_SEGMENT, printed), "napari": (OLD_NAPARI, NAPARI), "label-studio": (LABEL_STUDIO,)}
    assert outputs.keys() == PARTS.keys()
    for name, part in PARTS.items():
        for text in outputs[name]:
            assert len(figure_rows(part, text)) == len(part.figures)
    assert [row.name for row in figure_rows(PARTS["segment"], printed)] == [row.what for row in measured[:4]]


def test_values_have_their_units() -> None:
    assert [row.value for row in parse_rows(OLD_SEGMENT)] == [2.0, 0.5, 1.0, 0.8]
    assert [row.value for row in parse_rows(OLD_NAPARI)] == pytest.approx([0.06, 0.789, 0.08, 0.198, 0.054, 0])
    assert [row.unit for row in parse_rows(OLD_NAPARI)] == ["s"] * 5 + ["MiB"]
    assert [row.unit for row in parse_rows(LABEL_STUDIO)] == ["s", "s", "", "", "", "", ""]
    share = figure_rows(PARTS["label-studio"], LABEL_STUDIO)[-1]
    assert share == Row("second prompt's share of the first one's time, median of 54", 0.071, "")


def test_a_value_without_a_unit_ends_before_its_target() -> None:
    assert parse_rows("share  0.071 below 0.1") == [Row("share", 0.071, "")]


def test_medians_are_compared() -> None:
    old = [figure_rows(TWO, f"an image  {seconds} s\nother  9\ngap  50 ms") for seconds in (1, 2, 30)]
    new = [figure_rows(TWO, f"an image  {seconds} s\nother  9\ngap  0.1 s") for seconds in (3, 0, 3)]
    encode, gap = compare(TWO, old, new)
    assert (encode.old, encode.new, encode.ratio) == (2, 3, 1.5)
    assert gap.ratio == pytest.approx(2)


def test_a_missing_row_a_second_one_and_another_unit_are_errors() -> None:
    with pytest.raises(BenchmarkError, match="printed 0 rows for 'gap' instead of one"):
        figure_rows(TWO, "an image  1 s\nother  2 s")
    with pytest.raises(BenchmarkError, match="printed 2 rows for 'encode' instead of one"):
        figure_rows(TWO, "an image  1 s\na image  2 s\ngap  3 s")
    old, new = (figure_rows(TWO, f"an image  1 s\nother  2\ngap  3 {unit}") for unit in ("s", "MiB"))
    with pytest.raises(BenchmarkError, match="'gap' has different units, 'MiB' and 's'"):
        compare(TWO, [old], [new])


def test_ratio_to_nothing() -> None:
    assert Comparison(Figure("a", "a"), 0, 0, "").ratio == 1
    assert Comparison(Figure("a", "a"), 0, 1, "").ratio == float("inf")


def test_table_says_what_exceeds_the_limit() -> None:
    table = format_table(
        [
            Comparison(Figure("encode", "e", decisive=True), 1, 1.05, "s"),
            Comparison(Figure("prompt", "p", decisive=True), 0.1, 0.2, ""),
            Comparison(Figure("gap", "g"), 1, 2, "s"),
        ],
        1.05,
    )
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["encode", "*", "1000", "ms", "1050", "ms", "1.050", "yes"]
    assert lines[2] == ["prompt", "*", "0.100", "0.200", "2.000", "NO"]
    assert lines[3] == ["gap", "1000", "ms", "2000", "ms", "2.000", "no,", "not", "decisive"]


def test_last_line() -> None:
    assert last_line("Traceback\n  ValueError: no\n\n") == "ValueError: no"
    assert last_line("\n") == "it said nothing"


@pytest.mark.parametrize("option", ["--rounds=0", "--rounds=two", "--parts=polygons"])
def test_wrong_options_are_refused(option: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["HEAD", option])
    assert error.value.code == 2
