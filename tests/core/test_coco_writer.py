from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from tcl_core.errors import CocoError
from tcl_core.export.coco import (
    CocoJournal,
    ImageResult,
    coco_file_name,
    journal_path,
    regions_to_annotations,
    validate_coco,
    write_coco_file,
)
from tcl_core.vocabulary import Vocabulary
from tests.core.coco_helpers import blobs, regions_of

SIZE = (16, 20)
VOCABULARY = Vocabulary.from_options(["label 1=a,b", "label 2"])
SETTINGS = {"model": "playground", "weights_sha256": "ab12", "window": (448, 224), "geometry": "auto"}
NAMES = ["b.png", "a folder/a.png", "broken.png", "Äpfel 苹果.png", "zÿ.png", "empty.png"]


@functools.cache
def image(name: str) -> ImageResult:
    seed = sum(name.encode("utf-8", "surrogateescape"))
    label_map = blobs(seed, SIZE, 2) if name != "empty.png" else np.zeros(SIZE, dtype=np.int32)
    return ImageResult(name, *SIZE, regions_to_annotations(regions_of(label_map), SIZE))


def put(journal: CocoJournal, name: str) -> None:
    if name == "broken.png":
        journal.add_failure(name, "broken.png: cannot identify image file")
    else:
        journal.add(image(name))


@pytest.fixture
def one_run(tmp_path: Path) -> bytes:
    path = tmp_path / "one" / "out.json"
    with CocoJournal.open(path, VOCABULARY, SETTINGS) as journal:
        for name in NAMES:
            put(journal, name)
        journal.write_coco(NAMES)
    return path.read_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


def folder(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.is_file())


def test_the_file_says_what_it_must(one_run: bytes, out: Path) -> None:
    out.write_bytes(one_run)
    assert validate_coco(out) == []
    data = json.loads(one_run)
    assert [i["file_name"] for i in data["images"]] == [n for n in NAMES if n != "broken.png"]
    assert [i["id"] for i in data["images"]] == [1, 2, 3, 4, 5]
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    assert all((i["width"], i["height"]) == (20, 16) for i in data["images"])
    assert 5 not in {a["image_id"] for a in data["annotations"]}
    assert [c["name"] for c in data["categories"]] == ["label 1", "label 2"]
    info = data["info"]
    assert info["settings"]["weights_sha256"] == "ab12"
    assert info["vocabulary"] == VOCABULARY.to_dict()
    assert info["vocabulary_fingerprint"] == VOCABULARY.fingerprint()
    assert info["complete"] is True
    assert info["failed"] == [{"file_name": "broken.png", "reason": "broken.png: cannot identify image file"}]
    assert COCO(str(out)).getImgIds() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", range(len(NAMES) + 1))
def test_an_interrupted_and_resumed_run_ends_with_the_same_bytes(one_run: bytes, out: Path, cut: int) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        for name in NAMES[:cut]:
            put(journal, name)
        journal.write_coco(NAMES, final=False)
    assert validate_coco(out) == []
    part = json.loads(out.read_bytes())
    assert part["info"]["complete"] is False
    assert len(part["images"]) == len([n for n in NAMES[:cut] if n != "broken.png"])
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES[:cut] if n != "broken.png"}
        # Another order on purpose: the file follows the input, not the clock.
        for name in NAMES[::-1]:
            if name not in journal.done:
                put(journal, name)
        journal.write_coco(NAMES)
    assert out.read_bytes() == one_run
    assert folder(out) == ["out.json"]


def test_a_journal_cut_at_any_byte_can_be_resumed(one_run: bytes, out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        for name in NAMES[:3]:
            put(journal, name)
    whole = journal_path(out).read_bytes()
    lines = np.cumsum([len(line) for line in whole.splitlines(keepends=True)])
    cuts = {0, 1, *(int(n) + d for n in lines for d in (-1, 0, 1)), *range(0, len(whole), 997)}
    for cut in sorted(c for c in cuts if c <= len(whole)):
        journal_path(out).write_bytes(whole[:cut])
        with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
            assert len(journal.done) == max(0, min(int(np.sum(lines <= cut)) - 1, 2))
            for name in NAMES:
                if name not in journal.done:
                    put(journal, name)
            journal.write_coco(NAMES)
        assert out.read_bytes() == one_run
        out.unlink()


def _work_until_killed(out: Path, started: multiprocessing.synchronize.Event) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        for name in NAMES[:4]:
            put(journal, name)
        started.set()
        signal.pause()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_loses_nothing_it_had_added(one_run: bytes, out: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_work_until_killed, args=(out, started))
    process.start()
    assert started.wait(30)
    with pytest.raises(CocoError, match="in use by another run"):
        CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        assert len(journal.done) == 3
        for name in NAMES:
            if name not in journal.done:
                put(journal, name)
        journal.write_coco(NAMES)
    assert out.read_bytes() == one_run


def _resume_until_killed(out: Path, lines: int) -> None:
    append, count = CocoJournal._append, 0

    def append_some(self: CocoJournal, line: dict, what: str) -> int:
        nonlocal count
        if count == lines:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return append(self, line, what)

    CocoJournal._append = append_some  # type: ignore[method-assign]
    CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_kill_while_a_finished_file_is_resumed_loses_none_of_it(one_run: bytes, out: Path, lines: int) -> None:
    out.write_bytes(one_run)
    process = multiprocessing.get_context("fork").Process(target=_resume_until_killed, args=(out, lines))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not journal_path(out).exists()
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES if n != "broken.png"}
        journal.write_coco(NAMES)
    assert out.read_bytes() == one_run
    assert folder(out) == ["out.json"]


def test_a_name_that_is_not_text_costs_that_image_only(out: Path) -> None:
    names = ["b.png", "z\udcff.png"]
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        for name in names:
            put(journal, name)
        assert journal.done == {"b.png"} and "not valid UTF-8" in journal.failed["z\udcff.png"]
        journal.write_coco(names)
    assert validate_coco(out) == []
    assert b"\\ud" not in out.read_bytes().replace(b"\\\\", b"")
    assert [f["file_name"] for f in json.loads(out.read_bytes())["info"]["failed"]] == ["z\\udcff.png"]
    before = out.read_bytes()
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        journal.write_coco(names)
    assert out.read_bytes() == before
    with pytest.raises(CocoError, match=r"z\\udcff.png: the file name is not valid UTF-8"):
        write_coco_file(out.with_name("other.json"), [image(names[1])], VOCABULARY, SETTINGS)


@pytest.mark.parametrize("content", ["{}\n", "{}", '{"image": {}}\n', "notes"])
def test_what_is_not_a_journal_is_neither_read_nor_written(out: Path, content: str) -> None:
    journal_path(out).write_text(content)
    with pytest.raises(CocoError, match="out.json.journal is not a journal of tcl-annotate"):
        CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True)
    assert journal_path(out).read_text() == content


def test_the_lock_is_a_file_of_its_own_that_goes_with_the_run(out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS):
        assert folder(out) == ["out.json.journal", "out.json.journal.lock"]
        with pytest.raises(CocoError, match="in use by another run"):
            CocoJournal.open(out, VOCABULARY, SETTINGS, overwrite=True)
    assert folder(out) == ["out.json.journal"]


def test_resuming_a_finished_file_changes_nothing(one_run: bytes, out: Path) -> None:
    out.write_bytes(one_run)
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES if n != "broken.png"}
        assert set(journal.failed) == {"broken.png"}
        journal.write_coco(NAMES)
    assert out.read_bytes() == one_run


def test_a_finished_file_can_be_continued_with_more_images(one_run: bytes, out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, NAMES[0])
        put(journal, NAMES[4])
        journal.write_coco([NAMES[0], NAMES[4]])
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        for name in NAMES:
            if name not in journal.done:
                put(journal, name)
        journal.write_coco(NAMES)
    assert out.read_bytes() == one_run


def test_a_mended_image_gets_its_result_on_resuming(out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        journal.add_failure("a.png", "truncated")
    with CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.failed == {"a.png": "truncated"} and not journal.done
        journal.add(image("a.png"))
        journal.write_coco(["a.png"])
    data = json.loads(out.read_bytes())
    assert [i["file_name"] for i in data["images"]] == ["a.png"]
    assert data["info"]["failed"] == []


def test_no_image_at_all_is_a_valid_file(out: Path) -> None:
    write_coco_file(out, [], VOCABULARY, SETTINGS)
    assert validate_coco(out) == []
    assert json.loads(out.read_bytes())["images"] == []


def test_an_existing_file_is_replaced_only_when_asked_and_only_at_the_end(out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(CocoError, match="exists; resume it, ask to overwrite it"):
        CocoJournal.open(out, VOCABULARY, SETTINGS)
    assert folder(out) == ["out.json"]
    with CocoJournal.open(out, VOCABULARY, SETTINGS, overwrite=True) as journal:
        put(journal, "b.png")
        assert out.read_text() == "precious"
        journal.write_coco()
    assert len(COCO(str(out)).imgs) == 1


def test_a_journal_left_over_is_not_thrown_away_unasked(out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
    with pytest.raises(CocoError, match="unfinished run"):
        CocoJournal.open(out, VOCABULARY, SETTINGS)
    with CocoJournal.open(out, VOCABULARY, SETTINGS, overwrite=True) as journal:
        assert not journal.done
    with pytest.raises(CocoError, match="exclude each other"):
        CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True, overwrite=True)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("vocabulary", "settings", "message"),
    [
        (
            VOCABULARY,
            {**SETTINGS, "model": "tcl-vit-b16"},
            r'info.settings.model "playground", now it is "tcl-vit-b16"',
        ),
        (VOCABULARY, {**SETTINGS, "window": (448, 112)}, r"info.settings.window\[1\] 224, now it is 112"),
        (VOCABULARY, {**SETTINGS, "merge": True}, "info.settings.merge null, now it is true"),
        (Vocabulary.from_options(["label 1=a,c", "label 2"]), SETTINGS, r'prompts\[1\] "b", now it is "c"'),
        (Vocabulary.from_options(["label 1=a,b"]), SETTINGS, "info.vocabulary.labels"),
    ],
)
def test_resuming_with_other_settings_names_the_difference(
    out: Path, finished: bool, vocabulary: Vocabulary, settings: dict, message: str
) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        journal.write_coco(final=finished)
    before = folder(out), out.read_bytes()
    with pytest.raises(CocoError, match=message):
        CocoJournal.open(out, vocabulary, settings, resume=True)
    assert (folder(out), out.read_bytes()) == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"info": null}', "text", '{"images": [], "annotations": []}'])
def test_a_strange_file_cannot_be_resumed(out: Path, content: str) -> None:
    out.write_text(content)
    with pytest.raises(CocoError, match="out.json"):
        CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True)
    assert folder(out) == ["out.json"]
    assert out.read_text() == content


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"image": {}}\n', b'{"failure": 3}\n', b"\xff\n"])
def test_a_damaged_journal_is_named(out: Path, line: bytes) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
    with open(journal_path(out), "ab") as file:
        file.write(line)
    with pytest.raises(CocoError, match="out.json.journal.*overwrite"):
        CocoJournal.open(out, VOCABULARY, SETTINGS, resume=True)


def test_a_failed_write_leaves_the_old_file_and_the_journal(out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        journal.write_coco(final=False)
        before = out.read_bytes()
        put(journal, "empty.png")
        out.with_name("out.json.part").mkdir()
        with pytest.raises(CocoError, match="cannot be written"):
            journal.write_coco()
        out.with_name("out.json.part").rmdir()
        assert out.read_bytes() == before
        journal.write_coco()
    assert folder(out) == ["out.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_and_leaves_no_trace(out: Path, value: float) -> None:
    annotation = {**image("b.png").annotations[0], "score": value}
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        with pytest.raises(CocoError, match="b.png: a number is not finite"):
            journal.add(ImageResult("b.png", *SIZE, [annotation]))
        assert not journal.done
        put(journal, "b.png")
        journal.write_coco()
    assert len(COCO(str(out)).imgs) == 1


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda j: j.add(image("b.png")), "b.png is in .* already"),
        (lambda j: j.add_failure("b.png", "late"), "b.png is in .* already"),
        (lambda j: j.add(ImageResult("c.png", 0, 4)), "size of 4x0"),
        (lambda j: j.write_coco(["b.png", "b.png"]), "b.png is among the images twice"),
        (lambda j: j.write_coco(["b.png", "c.png"]), "c.png has no result yet"),
    ],
)
def test_mistakes_of_the_caller(out: Path, action: Callable[[CocoJournal], None], message: str) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        with pytest.raises(CocoError, match=message):
            action(journal)


def test_settings_that_are_not_json(out: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(CocoError, match="settings cannot be written"):
            CocoJournal.open(out, VOCABULARY, {"threshold": value})
    assert not out.parent.exists() or folder(out) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="is not a file"):
        CocoJournal.open(tmp_path, VOCABULARY, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(CocoError, match="cannot be written"):
        CocoJournal.open(tmp_path / "file" / "out.json", VOCABULARY, SETTINGS)


def test_an_interrupt_in_the_middle_of_a_line_costs_that_line_only(out: Path) -> None:
    with CocoJournal.open(out, VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        with open(journal_path(out), "ab") as file:
            file.write(b'{"image": {"file_name": "half')
        put(journal, "empty.png")
        journal.write_coco()
    assert len(COCO(str(out)).imgs) == 2


def test_file_names_are_given_with_forward_slashes() -> None:
    assert coco_file_name(Path("a") / "b c.png") == "a/b c.png"
    assert coco_file_name(os.fsdecode(b"z\xff.png")) == "z\udcff.png"
