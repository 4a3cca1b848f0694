"""Vocabularies from files, options and Python: what is accepted, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tcl_core.errors import VocabularyError
from tcl_core.vocabulary import Label, Vocabulary, default_colors


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_list_of_names(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(write(tmp_path, "- Sofa\n- ' Blumentöpfe '\n- 猫\n"))
    assert vocabulary.labels == (Label("Sofa"), Label("Blumentöpfe"), Label("猫"))
    assert (vocabulary.background, vocabulary.background_threshold, vocabulary.templates) == (True, None, None)


FULL = """\
labels:
  - Cat
  - name: Sofa
    prompts: [sofa, couch]
    threshold: 0.4
    color: "#ff8000"
  - {name: Dog, color: [1, 2, 3], threshold: 1}
  - name: Lamp
    prompts: standing lamp
background: 0.45
templates: simple
"""


def test_everything_a_file_can_say(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(write(tmp_path, "\ufeff" + FULL))
    assert vocabulary.labels == (
        Label("Cat", ("Cat",)),
        Label("Sofa", ("sofa", "couch"), 0.4, (255, 128, 0)),
        Label("Dog", ("Dog",), 1.0, (1, 2, 3)),
        Label("Lamp", ("standing lamp",)),
    )
    assert vocabulary.background and vocabulary.background_threshold == 0.45
    assert vocabulary.templates == "simple"
    assert vocabulary.prompts == ((0, "Cat"), (1, "sofa"), (1, "couch"), (2, "Dog"), (3, "standing lamp"))
    assert vocabulary.names == ("Cat", "Sofa", "Dog", "Lamp")


@pytest.mark.parametrize(("text", "expected"), [("true", (True, None)), ("false", (False, None)), ("0.0", (True, 0.0))])
def test_background(tmp_path: Path, text: str, expected: tuple[bool, float | None]) -> None:
    vocabulary = Vocabulary.from_file(write(tmp_path, f"labels: [Cat]\nbackground: {text}\n"))
    assert (vocabulary.background, vocabulary.background_threshold) == expected


MISTAKES = [
    ("- Cat\n- Dog\n- Cat\n", "labels[2].name: the label 'Cat' is already labels[0]"),
    ("labels: [Cat, {name: Sofa, prompts: [sofa, '  ']}]", "labels[1].prompts[1]: the prompt is empty; write a word"),
    ("labels: [{name: Sofa, prompts: []}]", "labels[0].prompts: the list is empty"),
    ("labels: [{name: Sofa, prompts: [sofa, couch, sofa]}]", "labels[0].prompts[2]: the prompt 'sofa' is listed twice"),
    ("labels: [{name: Sofa, prompts: 'sofa, couch'}]", "labels[0].prompts: expected a list such as [sofa, couch]"),
    ("labels: [{name: Sofa, prompts: }]", "labels[0].prompts: expected a list such as [sofa, couch], found nothing"),
    ("labels: [{name: Sofa, prompts: [1]}]", "labels[0].prompts[0]: expected text, found 1; put it in quotes"),
    ("labels: [{name: ''}]", "labels[0].name: the label is empty"),
    ("labels: [{prompts: [a]}]", "labels[0].name: this key is missing"),
    ("labels: [{name: A, colr: red}]", "labels[0].colr: unknown key (did you mean 'color'?)"),
    ("label: [A]", "label: unknown key (did you mean 'labels'?)"),
    ("labels: [A]\n3: x", "3: unknown key"),
    ("background: true", "labels: this key is missing"),
    ("labels:\n", "labels: the list is empty"),
    ("[]", "labels: the list is empty"),
    ("", "labels: the file is empty"),
    ("# nothing\n", "labels: the file is empty"),
    ("Cat", "labels: expected a list, found the text 'Cat'"),
    ("labels: {Cat: [cat]}", "labels: expected a list, found a mapping"),
    ("- yes\n", "labels[0]: expected a name or a mapping, found true (true or false); put it in quotes"),
    ("- 7\n", "labels[0]: expected a name or a mapping, found 7; put it in quotes"),
    ("- [Cat]\n", "labels[0]: expected a name or a mapping, found a list"),
    ("-\n", "labels[0]: expected a name or a mapping, found nothing"),
    ("- Sofa=sofa,couch\n", "labels[0]: 'Sofa=sofa,couch' is the syntax of the option --label"),
    ('- "a\\nb"\n', "labels[0].name: the label 'a\\nb' contains a line break"),
    ("labels: [{name: A, threshold: 1.2}]", "labels[0].threshold: 1.2 is out of range"),
    ("labels: [{name: A, threshold: -1}]", "labels[0].threshold: -1 is out of range"),
    ("labels: [{name: A, threshold: .nan}]", "labels[0].threshold: nan is out of range"),
    ("labels: [{name: A, threshold: yes}]", "labels[0].threshold: expected a number between 0 and 1, found True"),
    ("labels: [{name: A, threshold: high}]", "labels[0].threshold: expected a number between 0 and 1, found 'high'"),
    ("labels: [{name: A, color: red}]", "labels[0].color: 'red' is not a color; write '#rrggbb'"),
    ("labels: [{name: A, color: '#12345'}]", "labels[0].color: '#12345' is not a color"),
    ("labels: [{name: A, color: [1, 2]}]", "labels[0].color: [1, 2] is not a color"),
    ("labels: [{name: A, color: [1, 2, 256]}]", "labels[0].color: [1, 2, 256] is not a color"),
    ("labels: [{name: A, color: [1, 2, 3.5]}]", "labels[0].color: [1, 2, 3.5] is not a color"),
    ("labels: [A]\nbackground: 2.5", "background threshold: 2.5 is out of range"),
    ("labels: [A]\nbackground: 1", "background: expected true, false or a threshold"),
    ("labels: [A]\nbackground:", "background: expected true, false or a threshold"),
    ("labels: [A]\ntemplates: customs", "templates: there is no template set 'customs' (did you mean 'custom'?)"),
    ("labels: [A]\ntemplates: [custom]", "templates: expected the name of a template set, found a list"),
    ("labels: [Cat, Background]", "labels[1].name: 'Background' is not a label, but stands for pixels without a label"),
    ("labels: [A]\nlabels: [B]", "line 2: the key 'labels' is written twice"),
    ("labels:\n  - name: A\n    name: B\n", "line 3: the key 'name' is written twice"),
    ("labels: [A\n", "not valid YAML"),
    ("labels: [A]\n\t- x", "line 2, column 1: not valid YAML"),
    ("a: &a [*a]\n- b", "not valid YAML"),
    ("- A\n---\n- B\n", "not valid YAML"),
    ("- !!python/object/apply:os.system ['true']\n", "line 1, column 3: not valid YAML"),
    ("[" * 5000, "not valid YAML"),
    (b"- A\x00\n", "not valid YAML"),
    (b"- caf\xe9\n", "is not UTF-8 text (byte 5)"),
    ("- A\n".encode("utf-16"), "is not UTF-8 text (byte 0)"),
    ("labels:\n- name: A\n  color: #ff0000\n", "line 3: the key 'color' has no value, because '#' starts a comment"),
    ("labels:\n- name: A\n  color: #ff0000\n", 'put the value in quotes, such as "#ff0000"'),
    ("labels:\n- name: #1\n", "line 2: the key 'name' has no value, because '#'"),
    ("labels:\n- name: A\n  prompts: #a\n", "line 3: the key 'prompts' has no value, because '#'"),
    ("labels: [A]\ntemplates: #1", "line 2: the key 'templates' has no value, because '#'"),
    ("labels: [A]\nbackground: #1", "line 2: the key 'background' has no value, because '#'"),
    ("labels:\n- A\n- #B\n", "line 3: the entry has no value, because '#' starts a comment"),
    ("labels: [{name: A, color: #ff0000}]\n", "; put colors in quotes, because '#' starts a comment"),
]


def test_comments_where_no_value_is_lost(tmp_path: Path) -> None:
    text = "labels: # all\n- A # the first\n- name: B\n  color: # red\n    '#ff0000'\n  threshold: null # none\n"
    labels = Vocabulary.from_file(write(tmp_path, text + "- name: 'C, D'\n  color:\n")).labels
    assert labels == (Label("A"), Label("B", color=(255, 0, 0)), Label("C, D"))


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[str(i) for i in range(len(MISTAKES))])
def test_a_mistake_is_one_sentence_with_file_and_field(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_file(path)
    said = str(caught.value)
    joiner = " " if message.startswith("is ") else ": "
    assert said.startswith((f"{path}{joiner}{message}", f"{path}: {message}", f"{path}: line")), said
    assert message in said
    assert "\n" not in said


def test_same_name_in_two_unicode_forms_is_a_duplicate(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    with pytest.raises(VocabularyError, match=r"labels\[1\].name: the label .* is already labels\[0\]"):
        Vocabulary.from_file(write(tmp_path, f"- {composed}\n- {decomposed}\n"))
    assert len(Vocabulary.from_file(write(tmp_path, "- cat\n- Cat\n")).labels) == 2


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="label file not found"):
        Vocabulary.from_file(tmp_path / "no such.yaml")
    with pytest.raises(VocabularyError, match="is a folder"):
        Vocabulary.from_file(tmp_path)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (5 * 2**20))
    with pytest.raises(VocabularyError, match="so it is not a label file"):
        Vocabulary.from_file(big)


def test_options() -> None:
    vocabulary = Vocabulary.from_options(["Sofa=sofa, couch", "Cat", "x = a=b"], background=False, templates="full")
    assert vocabulary.labels == (Label("Sofa", ("sofa", "couch")), Label("Cat"), Label("x", ("a=b",)))
    assert not vocabulary.background


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Sofa=sofa,"], '--label "Sofa=sofa,": prompts[1]: the prompt is empty'),
        (["Sofa="], '--label "Sofa=": prompts[0]: the prompt is empty'),
        (["=sofa"], '--label "=sofa": name: the label is empty'),
        ([""], '--label "": name: the label is empty'),
        (["A", "A=b"], '--label "A=b": the label \'A\' is already defined by --label "A"'),
        (["background"], "--label \"background\": 'background' is not a label"),
        ([], "labels: the list is empty"),
        (
            ["a", "bed, car"],
            '--label "bed, car": a label without prompts cannot contain commas; write --label "bed" --label "car" '
            'for several labels, or --label "NAME=bed,car" for one label with several prompts',
        ),
    ],
)
def test_option_mistakes(options: list[str], message: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_options(options)
    assert str(caught.value).startswith(message)


def test_vocabularies_made_in_python_are_checked_too() -> None:
    with pytest.raises(VocabularyError, match=r"prompts\[0\]: the prompt is empty"):
        Label("A", ("",))
    with pytest.raises(VocabularyError, match="found a string"):
        Label("A", "abc")  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match=r"labels\[1\].name"):
        Vocabulary((Label("A"), Label("A")))
    with pytest.raises(VocabularyError, match="the background is disabled; enable it"):
        Vocabulary((Label("A"),), background=False, background_threshold=0.3)
    with pytest.raises(VocabularyError, match="expected a Label"):
        Vocabulary(("A",))  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match="expected true or false"):
        Vocabulary((Label("A"),), background=0.4)  # type: ignore[arg-type]


def test_colors_are_distinct_stable_and_leave_chosen_ones_alone() -> None:
    first = list(islice(default_colors(), 300))
    assert len(set(first)) == 300
    assert first == list(islice(default_colors(), 300))
    plain = Vocabulary.from_options([f"l{i}" for i in range(12)])
    assert plain.colors == first[:12]
    distances = [
        sum((a - b) ** 2 for a, b in zip(first[i], first[j], strict=True)) ** 0.5 for i in range(12) for j in range(i)
    ]
    assert min(distances) > 40
    chosen = Vocabulary((Label("a"), Label("b", color=first[0]), Label("c")))
    assert chosen.colors == [first[1], first[0], first[2]]


def test_dict_round_trip_and_fingerprint(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(write(tmp_path, FULL))
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again.fingerprint() == vocabulary.fingerprint() == pickle.loads(pickle.dumps(vocabulary)).fingerprint()
    assert len(vocabulary.fingerprint()) == 64
    others = [
        Vocabulary(vocabulary.labels[::-1], True, 0.45, "simple"),
        Vocabulary(vocabulary.labels, True, 0.46, "simple"),
        Vocabulary(vocabulary.labels, True, None, "simple"),
        Vocabulary(vocabulary.labels, False, None, "simple"),
        Vocabulary(vocabulary.labels, True, 0.45),
    ]
    assert len({v.fingerprint() for v in [vocabulary, *others]}) == 6
    with pytest.raises(VocabularyError, match="^backend: labels: expected a list"):
        Vocabulary.from_dict({"labels": 3}, "backend")


words = st.text(min_size=1, max_size=12).filter(lambda t: t.strip() == t and t.isprintable())


@pytest.mark.slow
@given(
    st.lists(words.filter(lambda t: "=" not in t and t.casefold() != "background"), min_size=1, max_size=6),
    st.booleans() | st.floats(0, 1),
)
def test_any_printable_names_survive_yaml(names: list[str], background: bool | float) -> None:
    unique = list({unicodedata.normalize("NFC", name): name for name in names}.values())
    text = yaml.safe_dump({"labels": unique, "background": background}, allow_unicode=True)
    data = yaml.safe_load(text)
    vocabulary = Vocabulary.from_dict(data)
    assert [unicodedata.normalize("NFC", n) for n in vocabulary.names] == [
        unicodedata.normalize("NFC", n).strip() for n in unique
    ]
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_reading_a_label_file_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from tcl_core.vocabulary import Vocabulary; "
        "Vocabulary.from_file(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(write(tmp_path, FULL))], check=True)
