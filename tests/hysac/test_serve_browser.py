"""The page in a real browser: search, upload, policies, keyboard, names for screen readers, both schemes."""

import base64
import json
import shutil

import pytest
from serving import extreme, make_index, png, serving

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

from hysac.serve.app import create_app  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="there is no Chromium with its chromedriver on the PATH"
    ),
]
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--window-size=1200,1000",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def address(made):
    with serving(create_app(*made)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def until(browser, condition, seconds=60):
    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: condition())


def by_id(browser, name):
    return browser.find_element(By.ID, name)


@pytest.fixture
def page(browser, address):
    browser.get_log("browser")
    browser.get(f"{address}/")
    until(browser, lambda: by_id(browser, "map").is_displayed())
    yield browser
    errors = [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    assert not [one for one in errors if "Content Security Policy" in one["message"]]


def status(page):
    return by_id(page, "status").text


def search(page, text):
    field = by_id(page, "text")
    field.clear()
    page.execute_script("document.getElementById('status').textContent = ''")
    field.send_keys(text + Keys.ENTER)
    until(page, lambda: status(page).startswith("The query"))


def choose(page, policy):
    page.find_element(By.CSS_SELECTOR, f"input[name=policy][value={policy}]").click()


def cards(page, name="hits"):
    return page.find_elements(By.CSS_SELECTOR, f"#{name} > li")


def test_a_safe_query_finds_images_with_their_decisions(page, made):
    search(page, extreme(made[0])[0])
    assert status(page) == "The query is safe. 6 results."
    assert len(cards(page)) == 6
    told = {card.find_element(By.CSS_SELECTOR, ".verdict").text for card in cards(page)}
    assert told == {"● safe", "▲ unsafe"}
    pictures = page.find_elements(By.CSS_SELECTOR, "#hits img")
    until(page, lambda: all(page.execute_script("return arguments[0].naturalWidth", one) for one in pictures))


def test_the_policy_switch(page, made):
    safe, unsafe = extreme(made[0])
    choose(page, "block")
    search(page, unsafe)
    assert status(page) == "The query is unsafe, and was blocked."
    assert not by_id(page, "found").is_displayed()
    search(page, safe)
    assert {card.find_element(By.CSS_SELECTOR, ".verdict").text for card in cards(page)} == {"● safe"}
    choose(page, "as-asked")
    search(page, unsafe)
    assert status(page) == "The query is unsafe. 6 results."
    assert not by_id(page, "way").is_displayed()


def test_a_redirection_is_drawn(page, made):
    choose(page, "redirect")
    Select(by_id(page, "to")).select_by_value("nearest-safe")
    search(page, extreme(made[0])[1])
    until(page, lambda: by_id(page, "way").is_displayed())
    assert "and was redirected by" in status(page)
    assert len(cards(page, "steps")) == 8
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#disk polyline.way"))
    points = page.find_element(By.CSS_SELECTOR, "#disk polyline.way").get_attribute("points").split()
    assert len(points) == 8


def test_the_map(page):
    assert len(page.find_elements(By.CSS_SELECTOR, "#disk .mark")) == 30
    assert len(page.find_elements(By.CSS_SELECTOR, "#disk line.geodesic")) == 30
    by_id(page, "whole").click()
    rim = page.find_element(By.CSS_SELECTOR, "#disk .rim")
    assert rim.get_attribute("r") == "1"
    page.find_element(By.CSS_SELECTOR, "#map summary").click()
    assert len(page.find_elements(By.CSS_SELECTOR, "#rows tr")) == 30


def test_an_upload(page, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(base64.b64decode(png(3)))
    by_id(page, "image").send_keys(str(path))
    until(page, lambda: by_id(page, "preview").is_displayed())
    by_id(page, "search").click()
    until(page, lambda: status(page).startswith("The query"))
    assert " image, at " in by_id(page, "verdict").text
    assert len(cards(page)) == 10
    by_id(page, "clear").click()
    assert not by_id(page, "chosen").is_displayed()


def test_an_upload_that_is_no_image(page, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"junk")
    by_id(page, "image").send_keys(str(path))
    by_id(page, "score").click()
    problem = by_id(page, "problem")
    until(page, lambda: problem.is_displayed())
    assert "the image cannot be read" in problem.text
    by_id(page, "clear").click()


def test_unsafe_images_are_blurred_until_asked_for(page, made):
    choose(page, "as-asked")
    search(page, extreme(made[0])[0])
    card = next(card for card in cards(page) if "▲ unsafe" in card.text)
    image, button = card.find_element(By.TAG_NAME, "img"), card.find_element(By.TAG_NAME, "button")
    assert image.get_attribute("alt").endswith("unsafe, blurred")
    before = until(page, lambda: image.get_attribute("src"))
    button.click()
    until(page, lambda: image.get_attribute("src") != before)
    assert not image.get_attribute("alt").endswith("blurred")
    assert button.text.startswith("Blur image")


def test_with_the_keyboard_alone(page, made):
    """Tab reaches everything in the order of the page; arrows choose the policy; Enter searches."""
    page.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(9):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("name") or active.text)
        assert page.execute_script("return arguments[0].matches(':focus-visible')", active)
    assert reached == [
        "Skip to the results", "API", "text", "image", "policy", "modality", "k", "to", "search",
    ]  # fmt: skip
    by_id(page, "text").send_keys(extreme(made[0])[1])
    radio = page.find_element(By.CSS_SELECTOR, "input[name=policy]:checked")
    radio.send_keys(Keys.ARROW_DOWN)
    assert page.switch_to.active_element.get_attribute("value") == "block"
    by_id(page, "text").send_keys(Keys.ENTER)
    until(page, lambda: "was blocked" in status(page))


def test_names_for_a_screen_reader(page, made):
    """Chromium's accessibility tree names all that can be used, and the live regions are there."""
    choose(page, "as-asked")
    search(page, extreme(made[0])[0])
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = {}
    for node in nodes:
        if not node.get("ignored"):
            role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
            seen.setdefault(role, []).append(name)
    for role in ("button", "link", "radio", "checkbox", "searchbox", "combobox", "image", "region", "form"):
        assert seen.get(role), f"there is no {role}"
        assert all(name.strip() for name in seen[role]), f"a {role} has no name: {seen[role]}"
    assert {"status", "main", "banner", "navigation", "heading", "list"} <= set(seen)
    assert seen["searchbox"] == ["Words"]
    assert seen["heading"][0] == "hysac"
    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page, made, scheme):
    """By WCAG's contrast, 4.5 to 1, in both schemes."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    choose(page, "as-asked")
    search(page, extreme(made[0])[0])
    ratios = page.execute_script(CONTRASTS)
    assert len(ratios) > 20
    assert not [one for one in ratios if one["ratio"] < 4.5]
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(paper.removeprefix("rgb(").split(",")[0])
    assert (red > 200) == (scheme == "light")


CONTRASTS = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour.startsWith("rgb(")) return colour;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("main *, header *")]
  .filter((one) => one.checkVisibility() && !one.closest("svg") && !one.matches("option, :disabled"))
  .filter((one) => [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
  .map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return { text: one.textContent.slice(0, 40), ratio: (a + 0.05) / (b + 0.05) };
  });
"""


def test_nothing_is_asked_of_others(page, address, made):
    page.get_log("performance")  # of the pages of other tests
    page.refresh()
    until(page, lambda: by_id(page, "map").is_displayed())
    search(page, extreme(made[0])[0])
    asked = [json.loads(one["message"])["message"] for one in page.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    urls = [url for url in urls if url.startswith("http")]
    assert urls
    assert all(url.startswith(address) for url in urls)


def test_a_narrow_window_does_not_scroll_sideways(page, made):
    page.set_window_size(500, 900)
    try:
        search(page, extreme(made[0])[0])
        wide, room = page.execute_script(
            "const one = document.documentElement; return [one.scrollWidth, one.clientWidth]"
        )
        assert wide <= room
    finally:
        page.set_window_size(1200, 1000)


def test_a_token_is_asked_for(browser, made):
    with serving(create_app(*made, token="s3cret")) as address:
        browser.get(f"{address}/")
        until(browser, lambda: by_id(browser, "token-form").is_displayed())
        by_id(browser, "token").send_keys("s3cret" + Keys.ENTER)
        until(browser, lambda: by_id(browser, "map").is_displayed())
        assert not by_id(browser, "token-form").is_displayed()
        search(browser, extreme(made[0])[0])
        image = browser.find_element(By.CSS_SELECTOR, "#hits img")
        until(browser, lambda: browser.execute_script("return arguments[0].naturalWidth", image))
