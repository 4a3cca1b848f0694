from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from tcl_core.errors import CocoError, ExportError, SettingsError
from tcl_core.export.base import Exporter, ImageRegions, create_exporter
from tcl_core.export.coco import (
    CocoExporter,
    coco_file_name,
    validate_coco,
    write_coco_file,
)
from tcl_core.jobs.journal import Journal, journal_path
from tcl_core.vocabulary import Vocabulary
from tests.core.coco_helpers import blobs, regions_of

SIZE = (16, 20)
VOCABULARY = Vocabulary.from_options(["label 1=a,b", "label 2"])
SETTINGS = {"model": "playground", "weights_sha256": "ab12", "window": (448, 224)}
NAMES = ["b.png", "a folder/a.png", "broken.png", "Äpfel 苹果.png", "zÿ.png", "empty.png"]


@functools.cache
def image(name: str) -> ImageRegions:
    seed = sum(name.encode("utf-8", "surrogateescape"))
    label_map = blobs(seed, SIZE, 2) if name != "empty.png" else np.zeros(SIZE, dtype=np.int32)
    return ImageRegions(name, *SIZE, regions_of(label_map))


def put(journal: Journal, name: str) -> None:
    if name == "broken.png":
        journal.add_failure(name, "broken.png: cannot identify image file")
    else:
        journal.add(image(name))


@pytest.fixture
def one_run(tmp_path: Path) -> bytes:
    path = tmp_path / "one" / "out.json"
    with Journal.open(path, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        for name in NAMES:
            put(journal, name)
        journal.export(NAMES)
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
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        for name in NAMES[:cut]:
            put(journal, name)
        journal.export(NAMES, final=False)
    assert validate_coco(out) == []
    part = json.loads(out.read_bytes())
    assert part["info"]["complete"] is False
    assert len(part["images"]) == len([n for n in NAMES[:cut] if n != "broken.png"])
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES[:cut] if n != "broken.png"}
        # Another order on purpose: the file follows the input, not the clock.
        for name in NAMES[::-1]:
            if name not in journal.done:
                put(journal, name)
        journal.export(NAMES)
    assert out.read_bytes() == one_run
    assert folder(out) == ["out.json"]


def test_a_journal_cut_at_any_byte_can_be_resumed(one_run: bytes, out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        for name in NAMES[:3]:
            put(journal, name)
    whole = journal_path(out).read_bytes()
    lines = np.cumsum([len(line) for line in whole.splitlines(keepends=True)])
    cuts = {0, 1, *(int(n) + d for n in lines for d in (-1, 0, 1)), *range(0, len(whole), 997)}
    for cut in sorted(c for c in cuts if c <= len(whole)):
        journal_path(out).write_bytes(whole[:cut])
        with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
            assert len(journal.done) == max(0, min(int(np.sum(lines <= cut)) - 1, 2))
            for name in NAMES:
                if name not in journal.done:
                    put(journal, name)
            journal.export(NAMES)
        assert out.read_bytes() == one_run
        out.unlink()


def _work_until_killed(out: Path, started: multiprocessing.synchronize.Event) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
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
    with pytest.raises(ExportError, match="in use by another run"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        assert len(journal.done) == 3
        for name in NAMES:
            if name not in journal.done:
                put(journal, name)
        journal.export(NAMES)
    assert out.read_bytes() == one_run


def _resume_until_killed(out: Path, lines: int) -> None:
    append, count = Journal._append, 0

    def append_some(self: Journal, line: dict, what: str) -> int:
        nonlocal count
        if count == lines:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return append(self, line, what)

    Journal._append = append_some  # type: ignore[method-assign]
    Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_kill_while_a_finished_file_is_resumed_loses_none_of_it(one_run: bytes, out: Path, lines: int) -> None:
    out.write_bytes(one_run)
    process = multiprocessing.get_context("fork").Process(target=_resume_until_killed, args=(out, lines))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not journal_path(out).exists()
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES if n != "broken.png"}
        journal.export(NAMES)
    assert out.read_bytes() == one_run
    assert folder(out) == ["out.json"]


def test_a_name_that_is_not_text_costs_that_image_only(out: Path) -> None:
    names = ["b.png", "z\udcff.png"]
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        for name in names:
            put(journal, name)
        assert journal.done == {"b.png"} and "not valid UTF-8" in journal.failed["z\udcff.png"]
        journal.export(names)
    assert validate_coco(out) == []
    assert b"\\ud" not in out.read_bytes().replace(b"\\\\", b"")
    assert [f["file_name"] for f in json.loads(out.read_bytes())["info"]["failed"]] == ["z\\udcff.png"]
    before = out.read_bytes()
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        journal.export(names)
    assert out.read_bytes() == before
    with pytest.raises(ExportError, match=r"z\\udcff.png: the file name is not valid UTF-8"):
        write_coco_file(out.with_name("other.json"), [image(names[1])], VOCABULARY, SETTINGS)


@pytest.mark.parametrize("content", ["{}\n", "{}", '{"image": {}}\n', "notes"])
def test_what_is_not_a_journal_is_neither_read_nor_written(out: Path, content: str) -> None:
    journal_path(out).write_text(content)
    with pytest.raises(ExportError, match="out.json.journal is not a journal of tcl-annotate"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True)
    assert journal_path(out).read_text() == content


def test_the_lock_is_a_file_of_its_own_that_goes_with_the_run(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS):
        assert folder(out) == ["out.json.journal", "out.json.journal.lock"]
        with pytest.raises(ExportError, match="in use by another run"):
            Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, overwrite=True)
    assert folder(out) == ["out.json.journal"]


def test_resuming_a_finished_file_changes_nothing(one_run: bytes, out: Path) -> None:
    out.write_bytes(one_run)
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.done == {n for n in NAMES if n != "broken.png"}
        assert set(journal.failed) == {"broken.png"}
        journal.export(NAMES)
    assert out.read_bytes() == one_run


def test_a_finished_file_can_be_continued_with_more_images(one_run: bytes, out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, NAMES[0])
        put(journal, NAMES[4])
        journal.export([NAMES[0], NAMES[4]])
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        for name in NAMES:
            if name not in journal.done:
                put(journal, name)
        journal.export(NAMES)
    assert out.read_bytes() == one_run


def test_a_mended_image_gets_its_result_on_resuming(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        journal.add_failure("a.png", "truncated")
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True) as journal:
        assert journal.failed == {"a.png": "truncated"} and not journal.done
        journal.add(image("a.png"))
        journal.export(["a.png"])
    data = json.loads(out.read_bytes())
    assert [i["file_name"] for i in data["images"]] == ["a.png"]
    assert data["info"]["failed"] == []


def test_no_image_at_all_is_a_valid_file(out: Path) -> None:
    write_coco_file(out, [], VOCABULARY, SETTINGS)
    assert validate_coco(out) == []
    assert json.loads(out.read_bytes())["images"] == []


def test_an_existing_file_is_replaced_only_when_asked_and_only_at_the_end(out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(ExportError, match=r"already exists; resume it \(--resume\), overwrite it"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS)
    assert folder(out) == ["out.json"]
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, overwrite=True) as journal:
        put(journal, "b.png")
        assert out.read_text() == "precious"
        journal.export()
    assert len(COCO(str(out)).imgs) == 1


def test_a_journal_left_over_is_not_thrown_away_unasked(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
    with pytest.raises(ExportError, match="unfinished run"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS)
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, overwrite=True) as journal:
        assert not journal.done
    with pytest.raises(ExportError, match="cannot be combined"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True, overwrite=True)


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
        (VOCABULARY, {**SETTINGS, "small": True}, "info.settings.small null, now it is true"),
        (Vocabulary.from_options(["label 1=a,c", "label 2"]), SETTINGS, r'prompts\[1\] "b", now it is "c"'),
        (Vocabulary.from_options(["label 1=a,b"]), SETTINGS, "info.vocabulary.labels"),
    ],
)
def test_resuming_with_other_settings_names_the_difference(
    out: Path, finished: bool, vocabulary: Vocabulary, settings: dict, message: str
) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        journal.export(final=finished)
    before = folder(out), out.read_bytes()
    with pytest.raises(ExportError, match=message):
        Journal.open(out, CocoExporter(), vocabulary, settings, resume=True)
    assert (folder(out), out.read_bytes()) == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"info": null}', "text", '{"images": [], "annotations": []}'])
def test_a_strange_file_cannot_be_resumed(out: Path, content: str) -> None:
    out.write_text(content)
    with pytest.raises(ExportError, match="out.json"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True)
    assert folder(out) == ["out.json"]
    assert out.read_text() == content


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"image": {}}\n', b'{"failure": 3}\n', b"\xff\n"])
def test_a_damaged_journal_is_named(out: Path, line: bytes) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
    with open(journal_path(out), "ab") as file:
        file.write(line)
    with pytest.raises(ExportError, match="out.json.journal.*overwrite"):
        Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS, resume=True)


def test_a_failed_write_leaves_the_old_file_and_the_journal(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        journal.export(final=False)
        before = out.read_bytes()
        put(journal, "empty.png")
        out.with_name("out.json.part").mkdir()
        with pytest.raises(ExportError, match="cannot be written"):
            journal.export()
        out.with_name("out.json.part").rmdir()
        assert out.read_bytes() == before
        journal.export()
    assert folder(out) == ["out.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_and_leaves_no_trace(out: Path, value: float) -> None:
    region = dataclasses.replace(image("b.png").regions[0], score=value)
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        with pytest.raises(ExportError, match="a score is a number in"):
            journal.add(ImageRegions("b.png", *SIZE, [region]))
        assert not journal.done
        put(journal, "b.png")
        journal.export()
    assert len(COCO(str(out)).imgs) == 1


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda j: j.add(image("b.png")), "b.png is already in"),
        (lambda j: j.add_failure("b.png", "late"), "b.png is already in"),
        (lambda j: j.add(ImageRegions("c.png", 0, 4)), "size of 4x0"),
        (lambda j: j.export(["b.png", "b.png"]), "b.png is listed twice"),
        (lambda j: j.export(["b.png", "c.png"]), "c.png has no result yet"),
    ],
)
def test_mistakes_of_the_caller(out: Path, action: Callable[[Journal], None], message: str) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        with pytest.raises(ExportError, match=message):
            action(journal)


def test_settings_that_are_not_json(out: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(ExportError, match="settings cannot be written"):
            Journal.open(out, CocoExporter(), VOCABULARY, {"threshold": value})
    assert not out.parent.exists() or folder(out) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a file"):
        Journal.open(tmp_path, CocoExporter(), VOCABULARY, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        Journal.open(tmp_path / "file" / "out.json", CocoExporter(), VOCABULARY, SETTINGS)


def test_an_interrupt_in_the_middle_of_a_line_costs_that_line_only(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        with open(journal_path(out), "ab") as file:
            file.write(b'{"image": {"file_name": "half')
        put(journal, "empty.png")
        journal.export()
    assert len(COCO(str(out)).imgs) == 2


def test_file_names_are_given_with_forward_slashes() -> None:
    assert coco_file_name(Path("a") / "b c.png") == "a/b c.png"
    assert coco_file_name(os.fsdecode(b"z\xff.png")) == "z\udcff.png"


def test_an_unknown_geometry_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match="--geometry mask: choose polygon, keyhole or rle"):
        create_exporter("coco", geometry="mask")


def test_an_unknown_exporter_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match="there is no exporter 'voc'; the exporters are: .*coco"):
        create_exporter("voc")


class Names(Exporter):
    """A second format: one line for each region."""

    name = "names"

    def settings(self) -> dict[str, Any]:
        return {}

    def open(self, out: Path, vocabulary: Vocabulary, info: Mapping[str, Any]) -> None:
        self.out, self.lines = out, [", ".join(vocabulary.names)]

    def add(self, image: ImageRegions) -> None:
        for region in image.regions:
            outline = None if region.polygon is None else region.polygon.wkb_hex
            digest = hashlib.sha256(region.mask.tobytes()).hexdigest()
            self.lines.append(f"{image.file_name} {region.label} {region.score!r} {region.bbox} {digest} {outline}")

    def close(self, *, complete: bool, failed: Sequence[tuple[str, str]]) -> None:
        self.out.write_text("\n".join([*self.lines, str(complete), *map(str, failed)]), encoding="utf-8")

    def abort(self) -> None:
        pass


def test_any_format_can_be_made_of_a_journal_and_nothing_is_lost(out: Path, tmp_path: Path) -> None:
    expected = Names()
    expected.open(tmp_path / "expected.txt", VOCABULARY, {})
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        for name in NAMES:
            put(journal, name)
            if name != "broken.png":
                expected.add(image(name))
        journal.export(NAMES, final=False)
        journal.export(NAMES, final=False, exporter=Names(), out=tmp_path / "names.txt")
        assert journal_path(out).exists()
    expected.close(complete=False, failed=[("broken.png", "broken.png: cannot identify image file")])
    assert (tmp_path / "names.txt").read_bytes() == (tmp_path / "expected.txt").read_bytes()


def test_an_exporter_that_cannot_read_back_says_so(out: Path) -> None:
    out.write_text("", encoding="utf-8")
    with pytest.raises(ExportError, match="a finished names output cannot be resumed"):
        Journal.open(out, Names(), VOCABULARY, SETTINGS, resume=True)
    assert folder(out) == ["out.json"]


def test_an_export_that_fails_keeps_the_journal_and_the_old_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        put(journal, "b.png")
        journal.export(final=False)
        before = out.read_bytes()
        put(journal, "zÿ.png")

        def refuse(*_: Any) -> None:
            raise CocoError("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(CocoExporter, "add_again", refuse)
            with pytest.raises(ExportError, match="no space left"):
                journal.export()
        assert journal.done == {"b.png", "zÿ.png"} and out.read_bytes() == before
        journal.export()
    assert len(json.loads(out.read_bytes())["images"]) == 2 and folder(out) == ["out.json"]


def test_an_image_that_cannot_be_exported_is_not_taken(out: Path) -> None:
    with Journal.open(out, CocoExporter(), VOCABULARY, SETTINGS) as journal:
        outside = dataclasses.replace(image("b.png").regions[0], bbox=(100, 100, 1, 1))
        with pytest.raises(ExportError, match="inside the image"):
            journal.add(ImageRegions("b.png", *SIZE, [outside]))
        assert not journal.done
