"""What outlives a window: settings, downloads, features; and how a window is opened from the command line."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tcl_core.vocabulary import Vocabulary
from tests.core.hub_server import HubServer, serve_hub
from tests.napari.steps import brush, close_dock, dock, idle, prepared, segmented, settle, wait_until

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget


def test_settings_are_remembered(viewer: Viewer, tiny_model_path: Path, config: Path) -> None:
    import napari

    widget = prepared(viewer, tiny_model_path)
    # Nothing of a label file is lost on its way through the widget, also before anything is segmented.
    file = config.parent / "labels.yaml"
    file.write_text(
        "labels:\n  - {name: Cat, prompts: [a cat, 'a cat, asleep', 'a 5\" cat'], value: 7, color: '#102030'}\n"
        "  - {name: Sky, color: '#405060'}\n"
        "background: {threshold: 0.25, names: ['sky, blue', car]}\ntemplates: simple\n"
    )
    given = Vocabulary.from_file(file)
    widget.labels.load(file)
    assert widget.vocabulary() == given
    widget.background.threshold.value = 0.5
    widget.model.templates.value = "identity"
    widget.labels.save(file)
    changed = replace(given, background_threshold=0.5, templates="identity")
    assert Vocabulary.from_file(file) == changed == widget.vocabulary()
    widget.labels.set_threshold(1, 0.25)
    widget.labels._check(0).setChecked(False)
    widget.labels.add_row("", "half-typed")
    widget.background.on.value = True
    widget.model.method_options.value = "unit_points=4, unit_threshold=-0.5"
    widget.folder.folder.value = config.parent
    widget.polygons.tolerance.value = 0.5
    widget.polygons.geometry.value = "rle"
    widget.folder.keep_features.value = False
    widget.sections["model"].folded = False
    rows = widget.labels.rows()
    settle()
    widget.background.threshold.value = 0.75
    # Closing writes what the last moment changed.
    viewer.close()
    saved = config / "napari.json"
    assert json.loads(saved.read_text())["threshold"] == 0.75

    def reopened() -> SegmentWidget:
        return dock(napari.Viewer(show=True))

    again = reopened()
    assert [row.__dict__ | {"number": 0} for row in again.labels.rows()] == [
        row.__dict__ | {"number": 0} for row in rows
    ]
    assert (again.background.value, again.background.competing_names) == (0.75, ("sky, blue", "car"))
    assert again.model.templates.value == "identity" and again.folder.folder.value == config.parent
    assert again.model.choice().options == (("unit_points", "4"), ("unit_threshold", "-0.5"))
    assert again.model.own_file == str(tiny_model_path) and again.model.device.value == "cpu"
    assert (again.polygons.tolerance.value, again.polygons.word.value) == (0.5, "fine")
    assert again.polygons.geometry.value == "rle" and not again.folder.keep_features.value
    assert not again.sections["model"].folded and again.sections["result"].folded
    # Closing the dock alone is enough, and nothing is written where nothing changed.
    written = saved.stat().st_mtime_ns
    again.viewer.window.remove_dock_widget(again)
    assert saved.stat().st_mtime_ns == written
    again.viewer.close()

    # What is gone or damaged is said, and costs nothing else.
    found = json.loads(saved.read_text())
    gone = {"model_file": "/gone/tiny.safetensors", "folder": "/gone/photos", "templates": "gone"}
    saved.write_text(json.dumps({**found, **gone, "device": "toaster", "threshold": 9}))
    partly = reopened()
    text = partly.buttons.message.text()
    for part in (
        "not valid: threshold",
        "/gone/tiny.safetensors is not there",
        "the device 'toaster' is not available",
        "the template set 'gone' is not available",
        "/gone/photos is not there",
    ):
        assert part in text
    assert len(partly.labels.rows()) == 3 and partly.model.choice().device == "auto"
    partly.viewer.close()
    saved.write_text("{")
    fresh = reopened()
    assert "damaged" in fresh.buttons.message.text() and fresh.labels.rows() == []
    assert (config / "napari.json.bad").read_text() == "{"
    fresh.viewer.close()


def test_closed_dock_does_nothing_any_more(
    viewer: Viewer, image: NDArray[np.uint8], errors: list[str], tiny_model_path: Path
) -> None:
    """Napari only hides a plugin's widget whose dock is closed, and another one takes its place."""
    widget = prepared(viewer, tiny_model_path)
    segmented(widget, image)
    assert widget.engine.loaded is not None
    model = weakref.ref(widget.engine.loaded.model)
    close_dock(widget)
    del widget
    again = dock(viewer)
    again.model.file.value, again.model.device.value = tiny_model_path, "cpu"
    gc.collect()
    assert model() is None, "the closed widget keeps its model"
    # A script may move it to another dock, which is no end.
    viewer.window.remove_dock_widget(again)
    viewer.window.add_dock_widget(again, name="moved")
    settle()
    viewer.layers.clear()
    viewer.add_image(image[::-1], name="other", rgb=True)
    again.segment()
    idle(again)
    assert [layer.name for layer in viewer.layers] == ["other", "other labels", "other accepted"]
    assert errors == []


def test_documentation(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtpy.QtCore import QUrl
    from qtpy.QtGui import QDesktopServices
    from qtpy.QtWidgets import QPushButton

    widget = dock(viewer)
    (button,) = [button for button in widget.findChildren(QPushButton) if button.text() == "Docs"]
    button.click()
    settle()
    page = widget.docs.page
    assert page.isVisible() and "Type labels" in page.toPlainText() and "Folders" in page.toPlainText()
    image = page.loadResource(2, QUrl("images/napari-opened.png"))
    assert 300 < image.width() <= page.width()
    page.anchorClicked.emit(QUrl("weights.md"))
    assert page.source().fileName() == "weights.md" and "Type labels" not in page.toPlainText()
    page.anchorClicked.emit(QUrl("missing.md"))
    assert "missing.md is not part" in widget.docs.word.text() and page.source().fileName() == "weights.md"
    opened: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda link: opened.append(link.toString()))
    page.anchorClicked.emit(QUrl("https://napari.org"))
    assert opened == ["https://napari.org"]
    widget.docs.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on the loopback with a tiny CLIP, which open_clip comes to know."""
    import open_clip
    import torch
    from open_clip import pretrained
    from safetensors.torch import save

    from tests.core.test_models_clips import ARCHITECTURE, CONFIG, FILE, REPOSITORY

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "configs")
    entry = {"hf_hub": f"{REPOSITORY}/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3), "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, ARCHITECTURE, {"random": entry})
    torch.manual_seed(0)
    clip = open_clip.create_model(ARCHITECTURE)
    content = save({name: tensor.contiguous() for name, tensor in clip.state_dict().items()})
    with serve_hub(HubServer({REPOSITORY: {FILE: content}})) as server:
        monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("TCL_ANNOTATE_MIRROR", raising=False)
        yield server


def test_download(viewer: Viewer, hub: HubServer, image: NDArray[np.uint8], errors: list[str]) -> None:
    from tests.core.test_models_clips import NAME

    widget = dock(viewer)
    widget.model.device.value = "cpu"
    offered = [widget.download.names.itemText(row) for row in range(widget.download.names.count())]
    assert "tcl-vit-b16" in offered and "playground" not in offered and NAME not in widget.model.model.choices
    widget.download.button.click()
    assert "no model to download is named" in errors.pop()

    # The bar follows what arrives, and Cancel ends the download in the middle.
    gate = hub.gate = threading.Event()
    widget.download.names.setEditText(NAME)
    widget.download.button.click()
    wait_until(lambda: "downloading" in widget.buttons.message.text(), "the download is told of")
    said = widget.buttons.message.text()
    assert " of 3.4 MB" in said
    assert 0 <= widget.buttons.progress.value() < 50 and widget.buttons.cancel.isEnabled()
    widget.buttons.cancel.click()
    gate.set()
    idle(widget)
    assert widget.buttons.message.text() == f"{NAME}: the download was canceled"
    assert NAME not in widget.model.model.choices and errors == []

    hub.gate = None
    widget.download.button.click()
    idle(widget)
    assert widget.buttons.message.text() == f"{NAME} is downloaded" and errors == []
    assert widget.model.model.value == NAME and widget.download.names.currentText() == ""
    widget.labels.add_row("Cat", "a cat")
    viewer.add_image(image, rgb=True, name="photo")
    widget.segment()
    idle(widget)
    assert errors == [] and widget.engine.loaded is not None and widget.engine.loaded.method.name == "naclip"

    # What cannot be had is said with its remedy.
    widget.download.names.setEditText("naclip:ViT-B-32/no-such-tag")
    widget.download.button.click()
    idle(widget)
    assert len(errors) == 1 and "no-such-tag" in errors[0]


def test_features_of_a_folder(
    viewer: Viewer, tiny_model_path: Path, image: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    import napari

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(image, 16 * number, axis=1)).save(photos / f"{number}.png")
    widget = prepared(viewer, tiny_model_path)
    widget.folder.folder.value = photos
    widget.folder.run()
    idle(widget)
    files = sorted((tmp_path / "photos.features").glob("*.features"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 3 and all(path.stat().st_size < 20e6 for path in files)
    assert widget.buttons.message.text() == "3 of 3 images are labeled"
    widget.folder.open("0.png")
    idle(widget)
    before = viewer.layers["0.png labels"].data.copy()
    other = 3 - int(before[30, 40])
    brush(viewer, viewer.layers["0.png labels"], other, 30, 40)
    stroke = viewer.layers["0.png labels"].data != before
    assert widget.folder.save()
    viewer.close()

    # The next day: no image is encoded again, thresholds answer at once, and corrections stay.
    files[-1].write_bytes(files[-1].read_bytes()[:-5])
    widget = dock(napari.Viewer(show=True))
    widget.folder.folder.value = photos
    widget.folder.run()
    idle(widget)
    loaded = widget.engine.loaded
    assert loaded is not None
    encoded: list[object] = []
    encoder = loaded._encoder
    embed = encoder._embed
    # Not the method's `encode`: a backend may have exported it before.
    encoder._embed = lambda *group: encoded.append(group) or embed(*group)  # type: ignore[method-assign,func-returns-value]
    for name in ("0.png", "1.png", "2.png"):
        widget.folder.open(name)
        if widget.question.isVisible():
            # Features of 16 bits decide a few pixels otherwise, and thresholds were moved.
            widget.question.answer("Discard them")
        idle(widget)
        current = widget.current()
        assert current is not None
        results, index = current
        assert results.sessions.get(index) is not None
        if name == "2.png":
            # Its features are damaged, which is said; they are made anew.
            assert "1 damaged file in" in widget.buttons.message.text()
            assert encoded
            encoded.clear()
        shown = results.draft.data.copy()
        widget.labels.set_threshold(0, 1.0)
        idle(widget)
        if name == "0.png":
            assert (results.draft.data[stroke] == other).all(), "corrections stay"
            # A few pixels that 16 bits decide otherwise count as corrected.
            assert np.mean((results.draft.data == 1) & ~stroke) < 0.01
        else:
            assert not (results.draft.data == 1).any()
        assert not widget.question.isVisible(), "nothing is unsaved that the user did not change"
        widget.labels.set_threshold(0, 0.0)
        idle(widget)
        assert np.mean(results.draft.data != shown) < 0.01
        assert encoded == []
    assert len(list((tmp_path / "photos.features").glob("*.features"))) == 3 and errors == []

    # Without features the model runs again, and corrections stay as well.
    for file in (tmp_path / "photos.features").glob("*.features"):
        file.unlink()
    widget.folder.open("0.png")
    idle(widget)
    widget.segment()
    idle(widget)
    assert (widget.viewer.layers["0.png labels"].data[stroke] == other).all()
    assert widget.folder.save()

    # Off by the switch.
    Image.fromarray(np.roll(image, 5, axis=0)).save(photos / "new.png")
    widget.folder.keep_features.value = False
    before_switch = len(list((tmp_path / "photos.features").glob("*.features")))
    widget.folder.run()
    idle(widget)
    assert widget.buttons.message.text() == "4 of 4 images are labeled"
    assert len(list((tmp_path / "photos.features").glob("*.features"))) == before_switch
    widget.viewer.close()


def test_command_line(
    config: Path, tiny_model_path: Path, image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari
    from napari.qt import get_qapp
    from qtpy.QtCore import QThread, QTimer

    from napari_tcl.cli import command
    from napari_tcl.widget import SegmentWidget
    from tcl_core.errors import ImageError, SettingsError
    from tests.napari.steps import register_plugin

    register_plugin()
    first, second, broken = tmp_path / "first image.png", tmp_path / "stack.tif", tmp_path / "broken.png"
    Image.fromarray(image).save(first)
    pages = [Image.fromarray(image[..., channel]) for channel in range(3)]
    pages[0].save(second, save_all=True, append_images=pages[1:])
    broken.write_bytes(b"no image")
    labels = tmp_path / "labels.yaml"
    labels.write_text("labels:\n  - {name: Cat, prompts: [cat, dog], threshold: 0.25}\n  - sky\nbackground: 0.75\n")
    seen: dict[str, Any] = {}

    def look() -> None:
        if QThread.currentThread().loopLevel() == 0:
            # The command is still opening the window, and handles events meanwhile.
            QTimer.singleShot(100, look)
            return
        viewer = napari.current_viewer()
        window = viewer.window._qt_window
        (widget,) = window.findChildren(SegmentWidget)
        vocabulary = widget.vocabulary()
        seen.update(
            layers=[(layer.name, layer.data.shape) for layer in viewer.layers],
            chosen=widget.image_form.layer.value.name if viewer.layers else None,
            labels=[(label.name, label.prompts, label.threshold) for label in vocabulary.labels],
            threshold=vocabulary.background_threshold,
            choice=widget.model.choice(),
            result=(widget.polygons.least(), widget.polygons.tolerance.value, widget.polygons.geometry.value),
            folder=str(widget.folder.folder.value),
            tab=widget.tabs.currentIndex(),
        )
        window.close()

    def opened(*words: str | Path) -> dict[str, Any]:
        seen.clear()
        # Timers need an application.
        get_qapp()
        QTimer.singleShot(1000, look)
        assert command.main(args=[str(word) for word in words], standalone_mode=False) == 0
        return seen

    model = ["--model", f"naclip:{tiny_model_path}", "--device", "cpu", "--precision", "float32", "--no-refine"]
    model += ["--backend", "compile"]
    options = ["--option", "unit_points=4", "--option", "softmax_over=labels"]
    result = ["--min-area", "12", "--tolerance", "fine", "--geometry", "rle"]
    monkeypatch.chdir(tmp_path)
    found = opened(first.name, second, "--labels", labels, *model, *options, *result)
    assert found["layers"] == [("first image", image.shape), ("stack", (3, *image.shape[:2]))]
    assert found["chosen"] == "stack" and found["tab"] == 0
    assert found["labels"] == [("Cat", ("cat", "dog"), 0.25), ("sky", ("sky",), None)] and found["threshold"] == 0.75
    choice = found["choice"]
    assert (choice.model, choice.device, choice.precision) == (f"naclip:{tiny_model_path}", "cpu", "float32")
    assert choice.backend == "compile" and not choice.refine
    assert choice.options == (("unit_points", "4"), ("softmax_over", "labels"))
    assert found["result"] == (12, 0.5, "rle")

    # A folder, with the labels and the model of the last time.
    (tmp_path / "photos").mkdir()
    found = opened(tmp_path / "photos")
    assert found["folder"] == str(tmp_path / "photos") and found["tab"] == 1 and found["layers"] == []
    assert found["labels"][0][0] == "Cat" and found["choice"] == choice
    assert found["result"] == (12, 0.5, "rle")
    # Options belong to the method, so another model does not get those of the last one.
    found = opened(first, "--model", "playground")
    assert (found["choice"].model, found["choice"].options) == ("playground", ())
    assert opened(first, "--option", "kp_weight=0.2")["choice"].options == (("kp_weight", "0.2"),)
    with pytest.raises(SettingsError, match="'softmax_over': the method has no such option"):
        opened(first, "--option", "softmax_over=labels")

    with pytest.raises(ImageError, match="broken.png: napari cannot open it as an image"):
        opened(broken, "--labels", labels)
    assert napari.current_viewer() is None
