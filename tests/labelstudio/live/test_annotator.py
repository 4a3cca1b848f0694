"""The way of a new annotator through Label Studio's page, in a small window, with 38 labels and the embedded model."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from labelstudio_backend.labeled_shapes import join_labels
from tcl_core.cli.main import run
from tests.labelstudio.live.environment import REPOSITORY, LabelStudioServer, Process, free_port
from tests.labelstudio.live.test_browser import keep_screenshot, log_in, regions, suggestions, wait
from tests.labelstudio.live.test_server import project_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

LABELS = 38
ACCEPT = "[data-testid=bottombar-accept-suggestions-button]"


@pytest.fixture(scope="module")
def playground_backend(
    label_studio: LabelStudioServer, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The backend with the embedded model, set up by environment variables as in a container."""
    folder = tmp_path_factory.mktemp("playground backend")
    port = free_port()
    words = [sys.executable, "-m", "tcl_core.cli", "label-studio", "serve"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TCL_BACKEND_PORT": str(port),
        "TCL_BACKEND_URL": label_studio.url,
        "TCL_BACKEND_TOKEN_FILE": str(secrets / "token.txt"),
        "TCL_BACKEND_STATE_DIR": str(folder),
        "TCL_BACKEND__JOB_SECONDS": "600",
    }
    url = f"http://127.0.0.1:{port}"
    with Process(words, folder / "backend.log", f"{url}/health", environment, folder):
        yield url


@pytest.fixture
def small_window(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    before = browser.get_window_size()
    browser.set_window_size(1280, 720)
    yield browser
    browser.set_window_size(before["width"], before["height"])


def canvas_of(browser: webdriver.Chrome) -> WebElement:
    return wait(lambda: browser.find_elements(By.CSS_SELECTOR, ".konvajs-content canvas"), "the image")[0]


def image_zoom(browser: webdriver.Chrome) -> float:
    """By how much the image is larger than its frame."""
    return browser.execute_script(
        "for (const tag of Htx.annotationStore.selected.names.values()) if (tag.type === 'image') return tag.zoomScale;"
    )


def region_titles(browser: webdriver.Chrome) -> list[WebElement]:
    """The names in the list of regions, as far as the window shows them."""
    titles = browser.find_elements(By.CSS_SELECTOR, "[class*=outliner-item__title]")
    return [each for each in titles if each.is_displayed() and each.text.strip()]


def select_region(browser: webdriver.Chrome, labels: list[str], number: int) -> str:
    """Click on a region in the list, of which the window shows a few; gives its label."""
    shown = wait(
        lambda: [each for each in region_titles(browser) if each.text.strip() in labels], "the list of regions"
    )
    label = shown[number].text.strip()
    ActionChains(browser).move_to_element(shown[number]).click().perform()
    wait(lambda: selected_polygon(browser) != [], "selecting a region")
    return label


def selected_polygon(browser: webdriver.Chrome) -> list[list[float]]:
    """The corners of the one region that is selected, in percent of the image's size."""
    return browser.execute_script(
        "const chosen = Htx.annotationStore.selected.selectedRegions;"
        "return chosen.length === 1 ? chosen[0].points.map(p => [p.x, p.y]) : [];"
    )


def selected_tool(browser: webdriver.Chrome) -> list[Any]:
    return browser.execute_script(
        "return ToolManager.allInstances()[0].allTools().filter(t => t.selected).map(t => [t.toolName, t.dynamic]);"
    )[0]


def choose_label(browser: webdriver.Chrome, name: str) -> None:
    """Click on a label, as an annotator does."""
    (label,) = (
        each for each in browser.find_elements(By.CSS_SELECTOR, ".lsf-label") if each.text.split()[:1] == [name]
    )
    browser.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", label)
    label.click()


def choose_smart_tool(browser: webdriver.Chrome, tool: str) -> None:
    """Click on the last tool until it is the wanted one."""
    for _ in range(4):
        browser.find_elements(By.CSS_SELECTOR, ".lsf-tool_smart")[0].click()
        if selected_tool(browser) == [tool, True]:
            return
    raise AssertionError(f"no click on the last tool gives {tool}")


def choose_tool_to_draw(browser: webdriver.Chrome) -> None:
    """Click on the first tool."""
    browser.find_elements(By.CSS_SELECTOR, ".lsf-tool")[0].click()
    wait(lambda: selected_tool(browser) == ["PolygonTool", False], "the first tool")


def room(corners: list[list[float]], number: int) -> float:
    """How far a corner is from the nearest other one, in percent of the image's size."""
    return min(math.dist(corners[number], other) for at, other in enumerate(corners) if at != number)


def place(browser: webdriver.Chrome, share: tuple[float, float]) -> tuple[int, int]:
    size = canvas_of(browser).size
    return int((share[0] - 0.5) * size["width"]), int((share[1] - 0.5) * size["height"])


def box_of(results: list[dict[str, Any]], label: str) -> tuple[float, float, float, float]:
    """Where the largest region of a label is: left, top, right and bottom as shares of the image."""
    found = []
    for result in join_labels(results):
        if result["type"] == "polygonlabels" and result["value"]["polygonlabels"] == [label]:
            xs, ys = zip(*result["value"]["points"], strict=True)
            found.append((min(xs) / 100, min(ys) / 100, max(xs) / 100, max(ys) / 100))
    return max(found, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))


def surest_objects(results: list[dict[str, Any]]) -> list[str]:
    """Labels of objects, which do not reach across the image, those with the highest score first."""
    found: dict[str, float] = {}
    for result in join_labels(results):
        (label,) = result["value"]["polygonlabels"]
        left, _, right, _ = box_of(results, label)
        if right - left < 0.6:
            found[label] = max(found.get(label, 0), result["score"])
    return sorted(found, key=lambda label: -found[label])


def inner_point(results: list[dict[str, Any]], label: str) -> tuple[float, float]:
    """A point inside the largest region of a label."""
    from shapely import Polygon

    polygons = [
        Polygon(result["value"]["points"]).buffer(0)
        for result in join_labels(results)
        if result["type"] == "polygonlabels" and result["value"]["polygonlabels"] == [label]
    ]
    point = max(polygons, key=lambda polygon: polygon.area).representative_point()
    return point.x / 100, point.y / 100


def type_prompt(browser: webdriver.Chrome, text: str) -> None:
    """Without a click: the field keeps the keyboard, or gets it back by one click that is counted elsewhere."""
    field = browser.find_element(By.CSS_SELECTOR, "input[name=prompt]")
    field.send_keys(text)
    field.send_keys(Keys.ENTER)


def accept(browser: webdriver.Chrome) -> None:
    wait(lambda: browser.find_elements(By.CSS_SELECTOR, ACCEPT), "the button to accept")[0].click()
    wait(lambda: suggestions(browser) == [], "accepting")


def test_the_way_of_a_new_annotator(
    small_window: webdriver.Chrome,
    label_studio: LabelStudioServer,
    playground_backend: str,
    secrets: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    browser = small_window
    scenes = tmp_path / "scenes"
    assert run(["playground", "scenes", "--out", str(scenes), "--count", "12"]) == 0
    text = (scenes / "labels.yaml").read_text()
    head, *entries = text.split("- name: ")
    (scenes / "labels.yaml").write_text("- name: ".join([head, *entries[-LABELS:]]))
    for image in sorted(scenes.glob("*.png"))[1:]:
        image.unlink()
    server = ["--url", label_studio.url, "--token-file", str(secrets / "token.txt")]
    words = ["setup", *server, "--labels", str(scenes / "labels.yaml"), "--backend-url", playground_backend]
    words += ["--title", "a new annotator", "--upload", str(scenes)]
    assert run(["label-studio", *words]) == 0
    first_run = capfd.readouterr()
    # The list of labels lies beside the images.
    assert "left out" not in first_run.err
    project = project_of(first_run.out)
    # Again: the same project, one backend, no image twice. A file that Label Studio cannot show holds up nothing.
    Image.new("RGB", (8, 8)).save(scenes / "scan.tif")
    assert run(["label-studio", *words]) == 1
    printed = capfd.readouterr()
    assert project_of(printed.out) == project and "0 images uploaded, 1 were there already" in printed.out
    assert f"failed: {scenes / 'scan.tif'}: Label Studio does not take it (.tif extension" in printed.err
    assert len(label_studio.api("GET", "/api/ml/", params={"project": project})) == 1
    # The list of tasks does not wait for predictions; the task that is opened gets its own.
    (listed,) = label_studio.api("GET", "/api/tasks/", params={"project": project})["tasks"]
    task = listed["id"]
    assert label_studio.api("GET", "/api/predictions/", params={"task": task}) == []
    if "/projects" not in browser.current_url:
        log_in(browser, label_studio.url)
    browser.get(f"{label_studio.url}/projects/{project}/data?task={task}")
    wait(lambda: bool(regions(browser)), "regions on opening")
    (predicted,) = label_studio.api("GET", "/api/predictions/", params={"task": task})
    drawn = sorted(r["value"]["labels"][0] for r in predicted["result"] if r["type"] == "labels")
    assert drawn and all(r["type"] in ("polygon", "labels") for r in predicted["result"])
    wait(lambda: sorted(regions(browser)) == drawn, "all regions")
    toggle = "[data-testid=bottombar-auto-annotation-toggle]"
    switch = wait(lambda: browser.find_elements(By.CSS_SELECTOR, toggle), "the switch of Auto-Annotation")[0]
    if not switch.is_selected():
        browser.execute_script("arguments[0].click()", switch)

    # The labels stand once, and the image, the prompt field and the smart tool are seen without scrolling.
    assert len(browser.find_elements(By.CSS_SELECTOR, ".lsf-label")) == LABELS
    bottom = browser.find_element(By.CSS_SELECTOR, toggle).location["y"]
    wait(lambda: browser.find_elements(By.CSS_SELECTOR, ".lsf-tool_smart"), "the smart tools")
    for seen in (
        canvas_of(browser),
        *(browser.find_elements(By.CSS_SELECTOR, "input[name=prompt], .lsf-tool_smart")[:2]),
    ):
        assert seen.rect["y"] >= 0 and seen.rect["y"] + seen.rect["height"] <= bottom, seen.get_attribute("class")
    assert canvas_of(browser).rect["y"] < bottom / 3
    # Nor does anything of the image lie outside: the toolbar takes its width before the image is scaled.
    assert image_zoom(browser) == 1
    keep_screenshot(browser, "annotator-1-opened.png")
    # Regions are called what their label is called, and the keyboard goes from the prompt field to the tools.
    assert {title.text for title in region_titles(browser)} <= set(drawn)
    browser.find_element(By.CSS_SELECTOR, "input[name=prompt]").click()
    for _ in range(3):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached = browser.switch_to.active_element.get_attribute("aria-label")
        if reached:
            break
    assert reached == "polygon-tool"

    # First prompt, second prompt: no click between answer and next prompt but the one that accepts.
    first, second = surest_objects(predicted["result"])[:2]
    for number, label in enumerate((first, second), start=1):
        type_prompt(browser, label)
        wait(lambda label=label: set(suggestions(browser)) == {label}, f"an answer to {label!r}")  # type: ignore[misc]
        keep_screenshot(browser, f"annotator-2-prompt-{number}.png")
        before = len(suggestions(browser))
        accept(browser)
        # Regions that were there are replaced; more can only come where the prompt found more.
        assert regions(browser).count(label) <= max(before, drawn.count(label))
        assert len(browser.find_elements(By.CSS_SELECTOR, "input[name=prompt]")) == 1

    # Smart box: label, last tool, drag. The box itself is no annotation.
    count = len(regions(browser))
    left, top, right, below = box_of(predicted["result"], first)
    left, top, right, below = max(left - 0.02, 0.01), max(top - 0.02, 0.01), min(right + 0.02, 0.99), min(below, 0.98)
    choose_label(browser, first)
    choose_smart_tool(browser, "RectangleTool")
    action = ActionChains(browser, duration=50).key_down(Keys.CONTROL)
    action.move_to_element_with_offset(canvas_of(browser), *place(browser, (left, top))).click_and_hold()
    for step in range(1, 5):
        at = left + (right - left) * step / 4, top + (below - top) * step / 4
        action.move_to_element_with_offset(canvas_of(browser), *place(browser, at))
    action.release().key_up(Keys.CONTROL).perform()
    wait(lambda: set(suggestions(browser)) == {first}, "an answer to the box")
    keep_screenshot(browser, "annotator-3-box.png")
    accept(browser)
    assert len(regions(browser)) <= count + 1

    # Point: the label is still chosen.
    choose_smart_tool(browser, "KeyPointTool")
    action = ActionChains(browser).key_down(Keys.CONTROL)
    action.move_to_element_with_offset(canvas_of(browser), *place(browser, inner_point(predicted["result"], first)))
    action.click().key_up(Keys.CONTROL).perform()
    wait(lambda: set(suggestions(browser)) == {first}, "an answer to the point")
    keep_screenshot(browser, "annotator-4-point.png")
    accept(browser)

    # A correction: a corner of a region that is picked in the list is dragged, and the others stay.
    kept = len(regions(browser))
    choose_tool_to_draw(browser)
    corrected = select_region(browser, drawn, 1)
    corners = selected_polygon(browser)
    # One with room around it: what is pressed is the corner alone.
    number = max(range(len(corners)), key=lambda at: room(corners, at))
    start = corners[number][0] / 100, corners[number][1] / 100
    end = start[0] + (0.08 if start[0] < 0.5 else -0.08), start[1] + (0.06 if start[1] < 0.5 else -0.06)
    action = ActionChains(browser, duration=50)
    action.move_to_element_with_offset(canvas_of(browser), *place(browser, start)).click_and_hold()
    for step in range(1, 5):
        at = tuple(a + (b - a) * step / 4 for a, b in zip(start, end, strict=True))
        action.move_to_element_with_offset(canvas_of(browser), *place(browser, at))  # type: ignore[arg-type]
    action.release().perform()
    wait(lambda: selected_polygon(browser) not in ([], corners), "moving a corner")
    moved = selected_polygon(browser)
    assert moved[:number] + moved[number + 1 :] == corners[:number] + corners[number + 1 :]
    assert moved[number] == pytest.approx([100 * end[0], 100 * end[1]], abs=1)
    keep_screenshot(browser, "annotator-5-corner.png")

    # Another one: the region is deleted, by the key that the page names.
    deleted = select_region(browser, drawn, 0)
    ActionChains(browser).send_keys(Keys.BACKSPACE).perform()
    wait(lambda: len(regions(browser)) == kept - 1, "deleting a region")
    keep_screenshot(browser, "annotator-6-corrected.png")

    submit = browser.find_element(By.CSS_SELECTOR, "[data-testid=bottombar-submit-button]")
    browser.execute_script("arguments[0].click()", submit)
    (annotation,) = wait(
        lambda: label_studio.api("GET", f"/api/tasks/{task}/annotations/"), "the annotation on the server"
    )
    shapes = [r["type"] for r in annotation["result"] if r["type"] not in ("labels", "textarea")]
    if corrected != deleted:
        exported = [r["value"]["points"] for r in annotation["result"] if r["type"] == "polygon"]
        assert any(points[number] == pytest.approx(moved[number]) for points in exported if len(points) > number)
    assert shapes == ["polygon"] * (kept - 1)
    out = tmp_path / "coco.json"
    assert run(["label-studio", "export", *server, "--project", str(project), "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["annotations"]) >= kept - 1
    assert run(["validate-coco", str(out)]) == 0
