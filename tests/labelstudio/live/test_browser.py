"""In a real browser: regions are there, a typed prompt adds more, they are accepted, submitted and exported."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Plan
from tcl_core.cli.main import run
from tests.labelstudio.live.environment import EMAIL, PASSWORD, REPOSITORY, LabelStudioServer
from tests.labelstudio.live.test_server import (
    LABELS,
    SIZE,
    data_url,
    encoded,
    project_of,
    retrieve,
    tasks_of,
    write_images,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

SECONDS = 300
T = TypeVar("T")


def wait(condition: Callable[[], T], what: str) -> T:
    """The first true value of a condition."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if value := condition():
                return value
        except StaleElementReferenceException:
            pass
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.5)


def log_in(browser: webdriver.Chrome, url: str) -> None:
    """Sign in, unless an earlier test of the same browser has."""
    browser.get(f"{url}/user/login/")
    wait(lambda: browser.find_elements(By.NAME, "email") or "/user/login" not in browser.current_url, "the login page")
    if "/user/login" not in browser.current_url:
        return
    browser.find_element(By.NAME, "email").send_keys(EMAIL)
    browser.find_element(By.NAME, "password").send_keys(PASSWORD)
    browser.find_element(By.CSS_SELECTOR, "form [type=submit]").click()
    wait(lambda: "/user/login" not in browser.current_url, "the login")


def regions(browser: webdriver.Chrome) -> list[str]:
    """Labels of the regions in the list beside the image."""
    return browser.execute_script(
        "const s = window.Htx && window.Htx.annotationStore && window.Htx.annotationStore.selected;"
        "return s ? s.regions.map(r => (r.labels || []).join()).filter(label => label) : [];"
    )


def suggestions(browser: webdriver.Chrome) -> list[str]:
    """Labels of the regions that wait to be accepted."""
    return browser.execute_script(
        "const s = window.Htx && window.Htx.annotationStore && window.Htx.annotationStore.selected;"
        "return s ? Array.from(s.suggestions.values()).map(r => (r.labels || []).join()) : [];"
    )


def keep_screenshot(browser: webdriver.Chrome, name: str) -> None:
    folder = REPOSITORY / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)

    def taken() -> bool:
        try:
            return browser.save_screenshot(str(folder / name))
        except TimeoutException:
            # A busy machine may need longer for a frame than the driver waits.
            return False

    wait(taken, "the screenshot")


def test_from_regions_to_export(
    browser: webdriver.Chrome,
    label_studio: LabelStudioServer,
    backend_url: str,
    secrets: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "images", range(2))
    server = ["--url", label_studio.url, "--token-file", str(secrets / "token.txt")]
    words = ["setup", *server, *LABELS, "--backend-url", backend_url, "--auth-file", str(secrets / "users.txt")]
    assert run(["label-studio", *words, "--upload", str(tmp_path / "images"), "--title", "from regions to export"]) == 0
    project = project_of(capfd.readouterr().out)
    body: dict[str, Any] = {"selectedItems": {"all": True, "excluded": []}}
    label_studio.api("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=body)
    task = label_studio.api("GET", "/api/tasks/", params={"project": project})["tasks"][0]["id"]
    (predicted,) = label_studio.api("GET", "/api/predictions/", params={"task": task})

    log_in(browser, label_studio.url)
    browser.get(f"{label_studio.url}/projects/{project}/data?task={task}")
    drawn = sorted(r["value"]["labels"][0] for r in predicted["result"] if r["type"] == "labels")
    wait(lambda: drawn and sorted(regions(browser)) == drawn, "drawing the regions of the prediction")
    keep_screenshot(browser, "label-studio-task.png")

    toggle = "[data-testid=bottombar-auto-annotation-toggle]"
    switch = wait(lambda: browser.find_elements(By.CSS_SELECTOR, toggle), "the switch of Auto-Annotation")[0]
    if not switch.is_selected():
        # The page remembers it from the tests before.
        browser.execute_script("arguments[0].click()", switch)
    wait(lambda: browser.find_element(By.CSS_SELECTOR, toggle).is_selected(), "auto-annotation")
    field = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "input[name=prompt]"), "the prompt field")[0]
    # A label that was found is found again, whatever the weights are.
    label = drawn[0]
    field.send_keys(label)
    field.send_keys(Keys.ENTER)
    suggested = [label] * drawn.count(label)
    wait(lambda: suggestions(browser) == suggested, "suggesting regions of the prompt's label and no other")
    keep_screenshot(browser, "label-studio-prompt.png")

    browser.execute_script("window.Htx.annotationStore.selected.acceptAllSuggestions()")
    # They were drawn already, and are not drawn twice.
    wait(lambda: suggestions(browser) == [], "accepting the regions")
    assert sorted(regions(browser)) == drawn
    # The field is still there for the next prompt, and holds only the one that was answered.
    field = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "input[name=prompt]"), "the prompt field")[0]
    field.send_keys("/list")
    field.send_keys(Keys.ENTER)
    wait(lambda: prompt_field(browser) == "no typed prompts yet", "the answer to a command")

    before = interactive_requests(browser)
    submit = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "[data-testid=bottombar-submit-button]"), "Submit")
    browser.execute_script("arguments[0].click()", submit[0])
    annotations = wait(
        lambda: label_studio.api("GET", f"/api/tasks/{task}/annotations/"), "the annotation on the server"
    )
    accepted = [r for r in annotations[0]["result"] if r["type"] == "labels"]
    assert len(accepted) == len(drawn)
    # The page asks once more, with an empty context: all regions would be suggested a second time (issue 6312).
    wait(lambda: interactive_requests(browser) > before, "the request after Submit")
    time.sleep(1)
    assert suggestions(browser) == []

    out = tmp_path / "coco.json"
    assert run(["label-studio", "export", *server, "--project", str(project), "--out", str(out)]) == 0
    coco = json.loads(out.read_text())
    # The other task has no annotation.
    assert len(coco["images"]) == 1 and len(coco["annotations"]) == len(accepted)
    assert run(["validate-coco", str(out)]) == 0


def interactive_requests(browser: webdriver.Chrome) -> int:
    """How many answers of the backend the page has had."""
    return browser.execute_script(
        "return performance.getEntriesByType('resource')"
        ".filter(e => e.name.includes('interactive-annotating') && e.responseEnd).length;"
    )


def offered_smart_tools(browser: webdriver.Chrome) -> list[str]:
    """Kinds of the tools that ask the backend when something was drawn with them."""
    return browser.execute_script(
        "const names = window.Htx.annotationStore.selected.names; const kinds = new Set();"
        "for (const tag of names.values()) if (tag.type === 'image')"
        "  for (const tool of tag.getToolsManager().allTools()) if (tool.dynamic) kinds.add(tool.control.type);"
        "return Array.from(kinds).sort();"
    )


def prompt_field(browser: webdriver.Chrome) -> str:
    """What stands below the prompt field on the page."""
    found = browser.find_elements(By.CSS_SELECTOR, "[data-testid=textarea-regions]")
    return "\n".join(element.text for element in found)


def draw(browser: webdriver.Chrome, kind: str, label: str, corners: tuple[float, float, float, float]) -> None:
    """Draw with a smart tool, from one corner of the image to another, as shares of its size."""
    browser.execute_script(
        "const [kind, label] = arguments; const annotation = window.Htx.annotationStore.selected;"
        "const names = annotation.names; annotation.unselectAll(true);"
        "for (const tag of names.values()) if (tag.type === 'image') {"
        "  const manager = tag.getToolsManager();"
        "  const tool = manager.allTools().find(t => t.dynamic && t.control.type === kind);"
        "  manager.selectTool(tool, true);"
        "  names.get('labels').unselectAll();"
        "  names.get('labels').findLabel(label).setSelected(true); }",
        kind,
        label,
    )
    canvas = wait(lambda: browser.find_elements(By.CSS_SELECTOR, ".konvajs-content canvas"), "the image")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    size = canvas.size
    x, y, right, bottom = (share - 0.5 for share in corners)
    action = ActionChains(browser, duration=50)
    # Without Ctrl, what is pressed on a region moves that region.
    action.key_down(Keys.CONTROL)
    action.move_to_element_with_offset(canvas, int(x * size["width"]), int(y * size["height"])).click_and_hold()
    for step in range(1, 5):
        across, down = x + (right - x) * step / 4, y + (bottom - y) * step / 4
        action.move_to_element_with_offset(canvas, int(across * size["width"]), int(down * size["height"]))
    action.release().key_up(Keys.CONTROL).perform()


def test_the_page_says_what_cannot_be_answered(
    browser: webdriver.Chrome,
    label_studio: LabelStudioServer,
    backend_url: str,
    secrets: Path,
    predictor: Predictor,
    capfd: pytest.CaptureFixture[str],
) -> None:
    labels = ["--label", "cat", "--label", "sky"]
    seed, label, area = largest_region(predictor)
    server = ["--url", label_studio.url, "--token-file", str(secrets / "token.txt")]
    words = ["setup", *server, *labels, "--backend-url", backend_url, "--auth-file", str(secrets / "users.txt")]
    assert run(["label-studio", *words, "--title", "what cannot be answered"]) == 0
    project = project_of(capfd.readouterr().out)
    images = ["http://169.254.169.254/a.png", data_url(seed), turned_url(seed)]
    label_studio.api("POST", f"/api/projects/{project}/import", json=[{"image": url} for url in images])
    retrieve(label_studio, project)
    bad, good, turned = sorted(task["id"] for task in tasks_of(label_studio, project))
    regions_of = {task["id"]: task["predictions"][0]["result"] for task in tasks_of(label_studio, project)}
    assert [without_id(each) for each in regions_of[good]] == [without_id(each) for each in regions_of[turned]] != []

    if "/projects" not in browser.current_url:
        log_in(browser, label_studio.url)
    browser.get(f"{label_studio.url}/projects/{project}/data?task={bad}")
    wait(lambda: "not in allow_hosts" in prompt_field(browser), "the reason of the task that failed")

    browser.get(f"{label_studio.url}/projects/{project}/data?task={turned}")
    wait(lambda: shown_size(browser) == list(SIZE[::-1]), "the image as its EXIF orientation turns it")

    browser.get(f"{label_studio.url}/projects/{project}/data?task={good}")
    wait(lambda: bool(regions(browser)), "drawing the regions of the prediction")
    toggle = "[data-testid=bottombar-auto-annotation-toggle]"
    switch = wait(lambda: browser.find_elements(By.CSS_SELECTOR, toggle), "the switch of Auto-Annotation")[0]
    if not switch.is_selected():
        browser.execute_script("arguments[0].click()", switch)
    field = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "input[name=prompt]"), "the prompt field")[0]
    field.send_keys("zebra")
    field.send_keys(Keys.ENTER)
    wait(lambda: "does not know" in prompt_field(browser) and "zebra" in prompt_field(browser), "the reason")

    # Nothing is offered in vain.
    assert offered_smart_tools(browser) == ["keypoint", "rectangle"]
    (top, left), (bottom, right) = area
    draw(browser, "rectangle", label, (left, top, right, bottom))
    wait(lambda: label in suggestions(browser), "suggestions for what was drawn")
    # A second rectangle is answered, not the first one again (issue 6082).
    other = "sky" if label == "cat" else "cat"
    draw(browser, "rectangle", other, (0.05, 0.05, 0.95, 0.95))
    wait(
        lambda: set(suggestions(browser)) == {other} or f"no region of '{other}' was found" in prompt_field(browser),
        "an answer for the second rectangle",
    )


def shown_size(browser: webdriver.Chrome) -> list[int]:
    """Width and height of the image on the page."""
    return browser.execute_script(
        "const s = window.Htx && window.Htx.annotationStore && window.Htx.annotationStore.selected; if (!s) return [];"
        "for (const tag of s.names.values()) if (tag.type === 'image') return [tag.naturalWidth, tag.naturalHeight];"
    )


def turned_url(seed: int) -> str:
    """An image whose pixels lie on their side, and whose EXIF orientation sets it upright."""
    with Image.open(io.BytesIO(encoded(seed))) as upright:
        return exif_url(upright.transpose(Image.Transpose.ROTATE_90), "PNG")


def exif_url(image: Image.Image, kind: str) -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def without_id(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "id"}


@pytest.mark.parametrize(("kind", "turns"), [("JPEG", True), ("PNG", True), ("WEBP", False)])
def test_which_orientations_browsers_ignore(browser: webdriver.Chrome, kind: str, turns: bool) -> None:
    """The backend refuses those images that browsers show in another orientation than it predicts them."""
    size = browser.execute_async_script(
        "const [url, done] = arguments; const image = new Image();"
        "image.onload = () => done([image.naturalWidth, image.naturalHeight]); image.src = url;",
        exif_url(Image.new("RGB", (40, 20)), kind),
    )
    assert size == ([20, 40] if turns else [40, 20])


def largest_region(predictor: Predictor) -> tuple[int, str, tuple[tuple[float, float], tuple[float, float]]]:
    """An image, a label, and where its largest region is: two corners as shares of the height and width."""
    config = parse_labeling_config(
        '<View><Image name="image" value="$image"/><RectangleLabels name="r" toName="image"><Label value="cat"/>'
        '<Label value="sky"/></RectangleLabels></View>'
    )
    found = []
    for seed in range(30):
        for result in predictor.predict(encoded(seed), Plan(config)).results:
            box = result["value"]
            corner, end = (box["y"], box["x"]), (box["y"] + box["height"], box["x"] + box["width"])
            place = (corner[0] / 100, corner[1] / 100), (end[0] / 100, end[1] / 100)
            found.append((box["height"] * box["width"], seed, box["rectanglelabels"][0], place))
    _, seed, label, place = max(found)
    return seed, label, place
