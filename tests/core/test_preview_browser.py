"""The preview page in a real browser: what is switched on is shown, found by the search box, and enlarged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from shapely import Polygon, box

from tcl_core.preview.page import PreviewWriter
from tcl_core.types import Region, Unlabeled
from tcl_core.vocabulary import Label, Vocabulary
from tests.chromium import chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    image = np.full((30, 40, 3), 128, dtype=np.uint8)
    names = tuple(f"thing {number}" for number in range(10))
    winner = np.repeat(np.arange(1, 11, dtype=np.int32), 120).reshape(30, 40)
    with PreviewWriter(tmp_path / "p", Vocabulary((Label("Sofa"),))) as writer:
        writer.add_image("a.png", image, [], Unlabeled(names, winner))
        writer.add_image("b.png", image, [])
        index = writer.finish("t", {}, ["a.png", "b.png"])
    browser.get(index.as_uri())
    return browser


def shown(page: webdriver.Chrome, selector: str) -> int:
    return sum(element.is_displayed() for element in page.find_elements(By.CSS_SELECTOR, selector))


def press(page: webdriver.Chrome, key: str) -> None:
    page.switch_to.active_element.send_keys(key)


def test_the_layer_is_off_until_its_button_or_key_is_pressed(page: webdriver.Chrome) -> None:
    button = page.find_element(By.CSS_SELECTOR, "[data-layer=unlabeled]")
    for switch, on in ((None, False), (button.click, True), (lambda: press(page, "n"), False)):
        if switch is not None:
            switch()
        assert button.get_attribute("aria-pressed") == str(on).lower()
        assert shown(page, ".overlay") == shown(page, ".unlabeled") == on
    press(page, "n")
    assert shown(page, ".unlabeled .tag") == 8
    assert page.find_element(By.CSS_SELECTOR, ".unlabeled").text.endswith("and 2 more")
    press(page, "h")
    assert shown(page, ".overlay") == 0


def test_the_overlay_covers_the_image_exactly(page: webdriver.Chrome) -> None:
    press(page, "n")
    overlay = page.find_element(By.CSS_SELECTOR, ".overlay")
    assert overlay.rect == page.find_element(By.CSS_SELECTOR, ".shot img").rect
    assert page.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", overlay) == 40


def test_names_are_found_only_while_they_are_shown(page: webdriver.Chrome) -> None:
    search = page.find_element(By.ID, "search")
    search.send_keys("thing 9")
    assert shown(page, "main .card") == 0
    page.find_element(By.CSS_SELECTOR, "[data-layer=unlabeled]").click()
    assert shown(page, "main .card") == 1
    search.clear()
    search.send_keys("b.png")
    assert [card.text.split()[0] for card in page.find_elements(By.CSS_SELECTOR, "main .card:not(.hide)")] == ["b.png"]


def test_the_enlarged_image_has_the_layer_and_all_names(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, ".shot").click()
    assert shown(page, "dialog .overlay") == shown(page, "dialog .unlabeled") == 0
    press(page, "n")
    assert shown(page, "dialog .overlay") == 1
    assert shown(page, "dialog .unlabeled .tag") == 10 and shown(page, "dialog .unlabeled .more") == 0
    press(page, Keys.ARROW_RIGHT)
    assert "b.png" in page.find_element(By.CSS_SELECTOR, "dialog figcaption").text
    assert shown(page, "dialog .overlay") == 0


@pytest.fixture
def outlined(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    """A triangle and a square with a hole, twice, in two columns."""
    image = np.full((60, 80, 3), 128, dtype=np.uint8)
    triangle = Polygon([(1, 1), (1, 21), (21, 1)])
    ring = box(30, 10, 60, 40).difference(box(40, 20, 50, 30))
    regions = [
        Region(2, "Lamp", 0.71, 200, (1, 1, 20, 20), np.ones((20, 20), bool), triangle),
        Region(1, "Sofa", 0.5, 1800, (30, 10, 30, 30), np.ones((30, 30), bool), ring),
    ]
    with PreviewWriter(tmp_path / "p", Vocabulary((Label("Sofa"), Label("Lamp")))) as writer:
        for column in ("one", "two"):
            writer.add_image("a.png", image, regions, column=column)
        index = writer.finish("t", {}, ["a.png"], ["one", "two"])
    browser.get(index.as_uri())
    return browser


def vertices(page: webdriver.Chrome, place: str) -> set[tuple[float, float]]:
    paths = page.find_elements(By.CSS_SELECTOR, f"{place} .v")
    points = "".join(path.get_attribute("d") or "" for path in paths if path.value_of_css_property("display") != "none")
    return {(float(x), float(y)) for x, y in (point.split() for point in points.replace("h0", "").split("M")[1:])}


def test_vertices_are_those_of_the_polygons_and_follow_their_labels(outlined: webdriver.Chrome) -> None:
    corners = {(x, y) for low, high in ((10, 40), (20, 30)) for x in (low + 20, high + 20) for y in (low, high)}
    assert vertices(outlined, "main") == set()
    press(outlined, "v")
    assert vertices(outlined, "main") == corners | {(1, 1), (1, 21), (21, 1)}
    outlined.find_element(By.CSS_SELECTOR, ".chip.l2").click()
    assert vertices(outlined, "main") == corners
    outlined.find_element(By.CSS_SELECTOR, ".shot").click()
    assert vertices(outlined, "dialog") == corners
    press(outlined, "v")
    assert vertices(outlined, "dialog") == set()


def test_the_table_lists_the_regions_and_shows_where_they_are(outlined: webdriver.Chrome) -> None:
    card = outlined.find_element(By.CSS_SELECTOR, "main .card")
    rows = open_table(outlined)
    cells = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]
    assert cells == [
        ["Sofa", "0.50", "1,800", "8", "30, 10, 30, 30"],
        ["Lamp", "0.71", "200", "3", "1, 1, 20, 20"],
    ]
    ActionChains(outlined).move_to_element(rows[1]).perform()
    assert [path.get_attribute("data-area") for path in card.find_elements(By.CSS_SELECTOR, ".hot")] == ["200"]
    # The page has scrolled, and the bar with the labels may lie over the image.
    card.find_element(By.CSS_SELECTOR, ".shot").send_keys(Keys.ENTER)
    assert shown(outlined, "dialog .regions tbody tr") == 2


def open_table(page: webdriver.Chrome) -> list[WebElement]:
    """The rows of the first card's table, which the page makes soon after the click."""
    page.find_element(By.CSS_SELECTOR, ".regions summary").click()
    return WebDriverWait(page, 20).until(lambda _: page.find_elements(By.CSS_SELECTOR, ".regions tbody tr"))


def test_columns_stand_side_by_side(outlined: webdriver.Chrome) -> None:
    left, right = (card.rect for card in outlined.find_elements(By.CSS_SELECTOR, "main .card"))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]


def test_a_table_that_is_cut_says_so(browser: webdriver.Chrome, tmp_path: Path) -> None:
    dots = [Region(1, "Sofa", 0.5, 1, (k % 40, k // 40, 1, 1), np.ones((1, 1), bool)) for k in range(501)]
    with PreviewWriter(tmp_path / "p", Vocabulary((Label("Sofa"),))) as writer:
        writer.add_image("a.png", np.zeros((30, 40, 3), np.uint8), dots)
        browser.get(writer.finish("t", {}, ["a.png"]).as_uri())
    assert len(open_table(browser)) == 500
    assert "The largest 500 of 501 regions" in browser.find_element(By.CSS_SELECTOR, ".regions").text
