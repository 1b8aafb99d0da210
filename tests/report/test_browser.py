"""The report in a real browser: Debian's chromium, driven over chromedriver, with the network watched."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
from make_run import make_run, remember
from PIL import Image as PILImage
from screenshot import screenshot

from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.report.report import build_report
from segsmith.review.decisions_file import read_answers

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium with chromedriver (apt install chromium chromium-driver)",
    ),
]


class Browser:
    """A new chromium process that shows one page."""

    def __init__(self, downloads, page, *arguments):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            *arguments,
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.page = page
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.get(page.as_uri())

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def until(self, code, seconds=8):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(f"return {code}")):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.05)
        return value

    def press(self, *keys):
        """Send keys to the element that has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def requests(self):
        """Addresses requested since the last call, without the page and the data inside it."""
        log = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in log if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if url != self.page.as_uri() and not url.startswith(("data:", "blob:"))]

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    run, ledger, config = make_run(root, size=64, prompts_per_class=8)
    remember(run, ledger)
    page = build_report(run, ledger, config)
    verdicts = ledger.verdicts()
    ledger.close()
    return page, verdicts


@pytest.fixture
def browser(made, tmp_path):
    page, _ = made
    one = Browser(tmp_path, page)
    yield one
    try:
        assert one.requests() == []
        assert one.errors() == []
    finally:
        one.driver.quit()


def painted(browser):
    return browser.until("document.querySelectorAll('#grid canvas.photo').length")


def test_paging_shows_every_image_once(browser, made):
    _, verdicts = made
    painted(browser)
    seen = set()
    while True:
        shown = browser.js("return [...document.querySelectorAll('#grid .thumb')].map(b => b.dataset.id)")
        assert not seen & set(shown)
        seen |= set(shown)
        if browser.js("return document.querySelector('[data-turn=next]').disabled"):
            break
        browser.js("document.querySelector('[data-turn=next]').click()")
    assert seen == set(verdicts)
    # The canvas is not empty.
    painted(browser)
    assert browser.js("""
        const c = document.querySelector('#grid canvas.photo');
        return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 2""")


def test_masks_can_be_hidden_and_shown_alone(browser):
    painted(browser)
    style = "getComputedStyle(document.querySelector('#grid canvas.%s')).opacity"
    assert float(browser.js(f"return {style % 'mask'}")) == pytest.approx(0.6)
    for view, mask, photo in (("photo", 0, 1), ("mask", 1, 0)):
        browser.js(f"document.querySelector('label[for=view-{view}]').click()")
        assert float(browser.js(f"return {style % 'mask'}")) == mask
        assert float(browser.js(f"return {style % 'photo'}")) == photo


def test_filters_agree_with_the_ledger(browser, made):
    _, verdicts = made
    browser.js("""
        const f = document.querySelector('#filters');
        f.elements.verdict.value = 'rejected';
        f.dispatchEvent(new Event('input'))""")
    rejected = sum(not v.accepted for v in verdicts.values())
    assert browser.js("return document.querySelector('#count').textContent").endswith(f"of {rejected}")


def test_marks_by_key_survive_a_reload_and_download_as_decisions(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    painted(browser)
    browser.js("document.querySelector('#grid .thumb').focus()")
    focused = "return document.activeElement.dataset.id"
    first = browser.js(focused)
    browser.press("r", Keys.ARROW_RIGHT, "a")
    second = browser.js(focused)
    browser.press(Keys.ARROW_RIGHT, "r", "u")
    assert len({first, second, browser.js(focused)}) == 3
    browser.driver.refresh()
    painted(browser)
    browser.js("document.querySelector('#download').click()")
    path = tmp_path / "decisions.jsonl"
    end = time.monotonic() + 8
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"kind": "verdict", "subject": first, "action": "reject", "note": ""},
        {"kind": "verdict", "subject": second, "action": "accept", "note": ""},
    ]
    ledger = Ledger(RunFolder(browser.page.parent).ledger)  # and `step --answers` reads them
    read = read_answers(SimpleNamespace(ledger=ledger), path)
    ledger.close()
    assert [(row.subject, row.action) for row in read] == [(first, "reject"), (second, "accept")]
    browser.requests()  # the reload of the page itself


def test_lightbox_works_by_keyboard_and_returns_the_focus(browser):
    from selenium.webdriver.common.keys import Keys

    painted(browser)
    browser.js("document.querySelector('#grid .thumb').focus()")
    browser.press(Keys.ENTER)
    browser.until("document.querySelector('#lightbox').open && document.querySelector('#lightbox dl div')")
    before = browser.js("return document.querySelector('#lightbox').dataset.row")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.js("return document.querySelector('#lightbox').dataset.row") != before
    browser.press(Keys.ESCAPE)
    browser.until("!document.querySelector('#lightbox').open")
    assert browser.js("return document.activeElement.matches('#grid .thumb')")


def test_a_note_typed_before_the_mark_is_kept_with_it(browser):
    painted(browser)
    browser.js("document.querySelector('#grid .thumb').click()")
    browser.until("document.querySelector('#lightbox').open")
    browser.js("document.querySelector('#lightbox-note').focus()")
    browser.press("two cats")
    browser.js("document.querySelector('#lightbox [data-mark=reject]').click()")
    (note,) = browser.js("return [...marks.values()].map((mark) => mark.note)")
    assert note == "two cats"


def test_words_of_tables_stay_whole_on_a_phone(browser):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    tall = browser.js("""
        return [...document.querySelectorAll('.list thead th, .classes thead th')]
            .filter((cell) => cell.offsetHeight > 40).map((cell) => cell.textContent)""")
    assert tall == []


def test_the_screenshot_for_the_readme_has_the_size_asked_for(made, tmp_path):
    screenshot(made[0], tmp_path / "page.png", 640, 480)
    with PILImage.open(tmp_path / "page.png") as image:
        assert image.size == (640, 480)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 100


def test_first_tab_stop_skips_the_navigation_and_the_map_reacts_to_keys(browser):
    from selenium.webdriver.common.keys import Keys

    browser.press(Keys.TAB)
    assert browser.js("return document.activeElement.className") == "skip"
    browser.js("document.querySelector('#map-frame').focus()")
    browser.press(Keys.ARROW_RIGHT)
    first = browser.js("return document.querySelector('#map-prompt').textContent")
    browser.press(Keys.ARROW_RIGHT)
    assert first.strip() != ""
    assert browser.js("return document.querySelector('#map-prompt').textContent") != first


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_is_not_wider_than_the_window(browser, width):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    painted(browser)
    assert browser.js("return document.documentElement.scrollWidth") <= width


def test_on_a_phone_legends_wrap_between_words_and_names_stay_on_their_images(browser):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    painted(browser)
    broken = browser.js("""
        const tall = [...document.querySelectorAll('.legend span')].filter((s) => s.offsetHeight > 32);
        const out = [...document.querySelectorAll('.thumb .tag')].filter((tag) => {
            const [t, p] = [tag, tag.closest('.thumb')].map((e) => e.getBoundingClientRect());
            return t.left < p.left - 1 || t.right > p.right + 1 || t.top < p.top - 1 || t.bottom > p.bottom + 1;
        });
        return [document.querySelectorAll('.thumb .tag').length, [...tall, ...out].map((e) => e.textContent)]""")
    assert broken[0] > 0
    assert broken[1] == []


def test_without_storage_the_page_says_so_and_still_works(made, tmp_path):
    page, _ = made
    one = Browser(tmp_path, page)
    try:
        one.driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument",
            {
                "source": "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied') }})"
            },
        )
        one.driver.refresh()
        painted(one)
        one.js("document.querySelector('#grid [data-mark=accept]').click()")
        assert "1 marked" in one.js("return document.querySelector('#mark-count').textContent")
        assert "does not store marks" in one.js("return document.querySelector('#mark-note').textContent")
    finally:
        one.driver.quit()


def test_dark_mode_is_dark(browser):
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    paper = browser.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(paper) < 60
