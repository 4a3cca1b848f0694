from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from napari_tcl.words import background_names, background_text, join_texts, split_texts

TEXTS = st.text(st.sampled_from("ab \"',;"), min_size=1).map(str.strip).filter(bool)


@given(st.lists(TEXTS, min_size=1))
def test_texts_come_back(texts: list[str]) -> None:
    line = join_texts(texts)
    assert split_texts(line) == tuple(texts)
    assert split_texts(f" {line} ") == tuple(texts)


@given(st.lists(st.text(st.sampled_from("ab 5;")), min_size=1))
def test_a_line_without_quotation_marks_is_split_at_commas(parts: list[str]) -> None:
    assert split_texts(",".join(parts)) == tuple(part.strip() for part in parts)


@given(st.none() | st.lists(TEXTS | st.sampled_from(["auto", "none", "AUTO"])).map(tuple))
def test_names_of_the_background_come_back(names: tuple[str, ...] | None) -> None:
    assert background_names(background_text(names)) == names
