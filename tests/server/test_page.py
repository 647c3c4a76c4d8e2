"""The page in a real browser: type, see, play, open at the right second, by keyboard and on a phone."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from served import HOSTILE, running

expect.set_options(timeout=60_000)  # a limit for a busy machine, not a demand
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None and "CI" not in os.environ:  # CI installs one, and fails without it
    pytest.skip("no Chromium on the path", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def problems():
    """What a page complained about, and dialogs that it opened."""
    found = []
    yield found
    assert found == []


@pytest.fixture
def page(browser, address, problems):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    watch(page, problems)
    page.goto(address)
    expect(page.locator(".card")).to_have_count(5)
    yield page
    page.close()


def watch(page, problems):
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (problems.append("dialog"), dialog.dismiss()))


def search(page, text):
    page.fill("#text", text)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(" ms")


def names(page):
    return page.locator(".card .name").all_text_contents()


def loaded(page, selector):
    """Wait until the pictures under `selector` that are on the screen are there."""
    script = "s => [...document.querySelectorAll(s)].slice(0, 3).every(i => i.complete && i.naturalWidth)"
    page.wait_for_function(script, arg=selector)


def test_all_films_are_shown_before_a_search(page):
    assert set(names(page)) == {"one.mp4", "two.mp4", "three.mp4", "old.avi", HOSTILE}
    expect(page.locator("#status")).to_have_text("5 videos, student student")


def test_typing_finds_what_the_api_finds_and_the_address_keeps_it(page, address):
    search(page, "a red circle")
    found = page.request.get(f"{address}/api/search?text=a+red+circle").json()["results"]
    assert names(page) == [Path(one["video"]["path"]).name for one in found]
    loaded(page, ".card img")
    assert page.url == f"{address}/?text=a+red+circle"
    search(page, "a blue square")
    page.go_back()
    expect(page.locator("#text")).to_have_value("a red circle")
    page.reload()
    expect(page.locator(".card")).to_have_count(5)
    assert names(page) == [Path(one["video"]["path"]).name for one in found]


def playable(page):
    """The place of a result that a browser plays and that is longer than a part."""
    return names(page).index("three.mp4")


def test_a_film_opens_at_the_frame_that_the_student_weighs_most(page, address):
    search(page, "a red circle")
    place = playable(page)
    part = page.request.get(f"{address}/api/search?text=a+red+circle").json()["results"][place]["parts"][0]
    page.locator(".card").nth(place).click()
    page.wait_for_function("() => document.getElementById('player').readyState >= 2")
    assert page.evaluate("document.getElementById('player').currentTime") == pytest.approx(part["best"], abs=0.02)
    expect(page.locator("#film-name")).to_have_text("three.mp4")
    expect(page.locator("#strip button")).to_have_count(len(part["times"]))
    loaded(page, "#strip img")
    weights = page.locator("#strip meter").evaluate_all("nodes => nodes.map(n => n.value)")
    assert weights == pytest.approx(part["weights"], abs=1e-6)
    assert page.locator("#line rect").count() >= 2
    box = page.locator("#line").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 5)  # three quarters of 16 seconds
    page.wait_for_function("() => Math.abs(document.getElementById('player').currentTime - 12) < 1.5")
    page.keyboard.press("Escape")
    expect(page.locator("#film")).to_be_hidden()


def test_digits_open_results_and_a_slash_goes_to_the_search(page):
    search(page, "a red circle")
    expected = names(page)[1]
    page.keyboard.press("2")
    expect(page.locator("#film-name")).to_have_text(expected)
    page.keyboard.press("/")
    expect(page.locator("#film")).to_be_hidden()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("2")
    expect(page.locator("#text")).to_have_value("2")  # typed, not opened
    expect(page.locator("#film")).to_be_hidden()


def test_hovering_plays_the_moment(page):
    search(page, "a red circle")
    page.locator(".card").nth(playable(page)).hover()
    page.wait_for_function("() => document.querySelector('.card video')?.currentTime > 0.2")
    assert page.evaluate("document.querySelector('.card video').muted")
    page.mouse.move(1, 1)
    expect(page.locator(".card video")).to_have_count(0)


def test_more_like_this_moment(page):
    search(page, "a red circle")
    page.locator(".card").nth(playable(page)).click()
    page.locator("#film-like").click()
    expect(page.locator("#like-name")).to_contain_text("three.mp4")
    expect(page.locator(".card .name").first).to_have_text("three.mp4")  # it is most like itself
    page.locator("#like-stop").click()
    expect(page.locator("#status")).to_contain_text("5 videos, student")


def test_filters_narrow_and_their_mistakes_are_said(page, problems):
    page.locator("#more summary").click()
    expect(page.locator("#columns")).to_contain_text("length")
    page.fill("#filters", "folder=holiday; length>=2")
    search(page, "a red circle")
    assert names(page) == ["three.mp4"]
    page.fill("#filters", "lenght>=2")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("lenght")
    assert all("400" in problem for problem in problems)  # the browser tells of the refused request
    problems.clear()


def test_a_hostile_name_is_only_text(page):
    place = names(page).index(HOSTILE)
    page.locator(".card").nth(place).click()
    expect(page.locator("#film-name")).to_have_text(HOSTILE)
    assert page.locator("img[src='x']").count() == 0
    page.wait_for_timeout(100)  # a script of the name would have run, and `problems` would tell


def test_a_film_that_no_browser_plays_says_so_and_shows_its_frames(page, problems):
    place = names(page).index("old.avi")
    page.locator(".card").nth(place).click()
    expect(page.locator("#film-problem")).to_have_text("This browser cannot play the file; download it to see it.")
    loaded(page, "#strip img")
    problems.clear()


CONTRAST = """
() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
      if (alpha > 0.6) return [r, g, b].map((v) => v * alpha + 255 * (1 - alpha));  // over a white picture, at worst
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!node.checkVisibility() || !own) continue;
    const [a, b] = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName} ${node.id} ${node.className} ${ratio.toFixed(2)}`);
  }
  return low;
}
"""
"""Texts of less contrast than 4.5 to 1 (WCAG 2, 1.4.3; relative luminance as defined there)."""

NAMELESS = """
() => [...document.querySelectorAll("button, a[href], input, [role=slider], [role=group]")].filter((node) => {
  const by = document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
  const label = node.getAttribute("aria-label") || by || node.labels?.[0]?.textContent || node.textContent;
  return node.checkVisibility() && !label.trim();
}).map((node) => node.outerHTML.slice(0, 80))
"""


@pytest.mark.parametrize(
    ("width", "scheme", "ground"), [(320, "dark", "20, 21, 23"), (390, "light", "250, 250, 250")]
)
def test_it_fits_a_phone_and_can_be_read_by_day_and_night(browser, address, problems, width, scheme, ground):
    page = browser.new_page(viewport={"width": width, "height": 640}, color_scheme=scheme, has_touch=True)
    watch(page, problems)
    page.goto(f"{address}/?text=a+circle")
    expect(page.locator(".card")).to_have_count(5)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb({ground})"
    for shown in ("#grid", "#film"):
        expect(page.locator(shown)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("document.getElementById('film').scrollWidth") <= width
        assert page.evaluate(CONTRAST) == [] and page.evaluate(NAMELESS) == []
        if shown == "#grid":
            page.locator(".card").first.tap()
            expect(page.locator("#strip button").first).to_be_visible()
    facts = page.locator("#film-facts").bounding_box()
    assert page.evaluate("document.getElementById('film-facts').scrollWidth") <= facts["width"] + 1  # long paths wrap
    page.close()


def test_what_a_screen_reader_is_told(page):
    search(page, "a red circle")
    place = playable(page)
    card = page.locator(".card").nth(place)
    assert page.title() == "a red circle – Video search"
    found = card.aria_snapshot()
    assert found.startswith('- button "three.mp4, 0:0') and ", score " in found
    assert card.get_attribute("aria-keyshortcuts") == str(place + 1)
    card.click()
    expect(page.locator("#strip button").first).to_be_visible()
    told = page.locator("#film").aria_snapshot()
    for part in (
        '- dialog "three.mp4"',
        '- button "Close"',
        '- slider "Scores along the film"',
        '- group "Frames of 0:',
        '- button "Frame at 0:',
        '- group "Moments"',
        '- link "Download"',
    ):
        assert part in told, told
    assert "meter" not in told  # its number is in the name of the frame


def test_all_of_it_works_by_keyboard_alone(page):
    page.locator("#text").focus()
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(" ms")
    order = []
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.className"))
    assert order[:2] == ["Search", "Options"] and names(page)[0] in order[2]
    for _ in range(playable(page)):
        page.keyboard.press("Tab")
    page.wait_for_function("() => document.activeElement.querySelector('video')?.currentTime > 0.2")  # as hovering
    page.keyboard.press("Enter")
    expect(page.locator("#film-close")).to_be_focused()
    expect(page.locator("#line")).to_have_attribute("aria-valuemax", "16")
    page.wait_for_function("() => document.getElementById('player').readyState >= 2")
    page.locator("#line").focus()
    for key, second in (("Home", 0), ("ArrowRight", 5), ("ArrowLeft", 0), ("End", 5)):
        page.keyboard.press(key)
        page.wait_for_function("s => Math.abs(document.getElementById('player').currentTime - s) < 1.5", arg=second)
        page.evaluate("document.getElementById('player').pause()")
    expect(page.locator("#line")).to_have_attribute("aria-valuetext", re.compile(r"^0:05, score -?0\.\d+$"))
    page.keyboard.press("Escape")
    expect(page.locator(".card").nth(playable(page))).to_be_focused()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    expect(page.locator("#film")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".card").first).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("#film")).to_be_visible()
    # the first film again before the browser has said that the second is closed: what it says is not of the first
    again = "document.getElementById('film').close(); document.querySelector('.card').click()"
    page.evaluate(f"{again}; document.activeElement.blur()")
    page.wait_for_timeout(200)
    page.wait_for_function("() => document.getElementById('player').readyState >= 1")
    page.keyboard.press("Escape")
    expect(page.locator(".card").first).to_be_focused()


def test_a_server_that_went_away_is_said_to_be_so(browser, film_index):
    with running(film_index) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator(".card")).to_have_count(5)
        page.route("**/api/search*", lambda route: route.abort())
    page.fill("#text", "a red circle")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_class("quiet problem")
    page.close()
