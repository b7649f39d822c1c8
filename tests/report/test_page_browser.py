"""The HTML page in a real browser: laptop and phone, light and dark; it draws, it answers, it loads nothing else."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from safebench.analysis import claims
from safebench.analysis.compare import compare
from safebench.report.html.write import write_report
from tests.support.page_runs import HOSTILE, PROMPTS, STEPS, pair, write_arms

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LAPTOP, PHONE = (1280, 900), (390, 844)
PANELS = 8
OPAQUE = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Write the page of the pair with best of n and a ledger."""
    comparison = pair(tmp_path_factory.mktemp("results"))
    ledger = claims.ledger({arm: [s.run for s in found] for arm, found in comparison.summaries.items()})
    return write_report(comparison, tmp_path_factory.mktemp("page") / "page.html", ledger=ledger)


class Opened:
    """A page in the browser, with everything it complained of and asked for."""

    def __init__(self, browser, file, size=LAPTOP, scheme="light", **options):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **options
        )
        self.page = self.context.new_page()
        self.width, self.complaints, self.requests = size[0], [], []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.set_default_timeout(120_000)  # a busy machine is no fault of the page
        self.page.goto(file.as_uri())
        self._wait_until_drawn()
        self.address = file.as_uri()

    def _wait_until_drawn(self):
        try:
            self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        except sync_api.TimeoutError:
            pytest.fail(f"the page was never drawn: {self.complaints}")

    def drawn(self, place):
        """Return the kinds of trace that a chart holds, in order, and how many of them are on the paper."""
        names = self.page.eval_on_selector(place, "chart => chart.data.map(trace => trace.meta)")
        marks = ".scatterlayer .trace, .barlayer .trace"
        return names, self.page.locator(place).locator(marks).count()

    def overflow(self):
        widths = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth)"
        return self.page.evaluate(widths) - self.width

    def unharmed(self):
        assert self.complaints == []
        assert self.requests == [self.address]
        assert self.page.evaluate("window.broken") is None


@pytest.fixture
def opened(browser, file):
    one = Opened(browser, file)
    yield one
    one.unharmed()
    one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_everything_is_drawn_and_nothing_overflows(browser, file, tmp_path, size, scheme):
    one = Opened(browser, file, size, scheme)
    assert one.page.locator(".js-plotly-plot").count() == PANELS + 2
    assert one.overflow() == 0
    judge = one.drawn("[data-name=eval-judge]")
    assert judge == (["band", "band", "mean", "mean", "end"], 5)
    kl = ["band", "band", "threshold", "target", "mean", "mean", "end"]
    assert one.drawn("[data-name=kl-mean]") == (kl, 7)
    assert one.drawn("#frontier-chart") == (["reference", "mean", "mean", "ends", "ends"], 5)
    names, marks = one.drawn("#timeline-chart")
    assert names[0] == "run" and names[-2:] == ["open", "end"] and marks == len(names) > 4
    for box in one.page.eval_on_selector_all(".plot", "all => all.map(one => one.getBoundingClientRect().toJSON())"):
        assert box["width"] > 250 and box["height"] > 100 and box["x"] >= 0 and box["right"] <= size[0]
    ink = one.page.evaluate(f"[{OPAQUE}, getComputedStyle(document.body).color]")
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in ink]
    assert (light[0] > light[1] + 400) is (scheme == "light") and (light[1] > light[0] + 400) is (scheme == "dark")
    picture = tmp_path / "page.png"
    one.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    one.unharmed()
    one.context.close()


def test_texts_are_shown_as_they_are(opened):
    cells = opened.page.locator("#replies tbody tr")
    assert cells.count() == 12
    assert cells.locator("th").all_text_contents() == list(PROMPTS[:12])
    ours = cells.locator("td:nth-child(2) > :nth-child(2)").all_text_contents()
    assert tuple(ours[: len(HOSTILE)]) == HOSTILE
    assert ours[6:8] == ["empty reply", f"ppo 0 at {STEPS}"]
    assert opened.page.locator("#replies tbody img, #replies tbody b, #replies script").count() == 0
    kept = opened.page.evaluate("getComputedStyle(document.querySelector('.reply')).whiteSpace")
    assert kept == "pre-wrap"
    right = opened.page.locator(".reply", has_text="שלום").first
    look = right.evaluate("one => [getComputedStyle(one).direction, getComputedStyle(one).textAlign]")
    assert look == ["rtl", "start"]


def test_replies_follow_the_selectors(opened):
    page = opened.page
    shown = page.locator("#replies tbody tr:nth-child(8) td .reply")
    assert shown.all_text_contents() == ["ppo 0 at 40", "safe 0 at 40"]
    assert page.locator("#after").is_disabled()
    page.click("#before")
    assert shown.all_text_contents() == ["ppo 0 at 20", "safe 0 at 20"]
    page.select_option("#step", "0")
    page.select_option("#seed", "2")
    assert shown.all_text_contents() == ["ppo 2 at 0", "safe 2 at 0"] and page.locator("#before").is_disabled()
    page.select_option("#step", "40")
    page.select_option("#seed", "1")  # its ppo ended at step 25
    assert shown.all_text_contents() == ["safe 1 at 40"]
    assert page.locator("#replies tbody tr:nth-child(8) td:nth-child(2) .absent").text_content() == "not kept"


def test_seeds_bands_and_arms_are_chosen(opened):
    page = opened.page
    page.check("#seeds")
    assert opened.drawn("[data-name=eval-judge]")[0] == [*["band"] * 2, *["seed"] * 6, "mean", "mean", "end"]
    page.select_option("#band", "none")
    assert opened.drawn("[data-name=eval-judge]") == ([*["seed"] * 6, "mean", "mean", "end"], 9)
    page.uncheck("#seeds")
    page.select_option("#band", "range")
    top = page.eval_on_selector("[data-name=kl-mean]", "chart => Math.max(...chart.data[0].y.filter(y => y !== null))")
    seeds = page.evaluate("Object.values(page.curves.panels[3].arms.ppo.seeds).flat().filter(y => y !== null)")
    assert top == max(seeds)
    ppo = page.locator("#curves .legend button", has_text="ppo (n=3)")
    ppo.click()
    assert ppo.get_attribute("aria-pressed") == "false"
    assert opened.drawn("[data-name=eval-judge]") == (["band", "mean"], 2)
    assert opened.drawn("#frontier-chart")[0] == ["reference", "mean", "ends"]
    page.check("#frontier-seeds")
    assert opened.drawn("#frontier-chart")[0] == ["reference", *["seed"] * 3, "mean", "ends"]
    ppo.click()
    assert opened.drawn("#frontier-chart") == (["reference", *["seed"] * 6, "mean", "mean", "ends", "ends"], 11)


def test_the_timeline_follows_the_thresholds(opened):
    page = opened.page
    counts = {}
    for scale in ("0.5", "1", "2"):
        page.select_option("#scale", scale)
        counts[scale] = page.eval_on_selector(
            "#timeline-chart",
            "chart => chart.data.filter(t => t.meta === 'episodes').reduce((sum, t) => sum + t.x.length, 0)",
        )
        expected = page.evaluate(f"page.timeline.rows.reduce((sum, row) => sum + row.episodes['{scale}'].length, 0)")
        assert counts[scale] == expected
    assert len(set(counts.values())) > 1
    rows = page.eval_on_selector("#timeline-chart", "chart => chart.data[0].x")
    assert rows == [40, 25, 40, 40, 40, 40]  # the runs without a crash too, and where the unstable one ended


def test_hovering_tells_figures_with_units(opened):
    chart = opened.page.locator("[data-name=kl-mean]")
    chart.scroll_into_view_if_needed()
    chart.locator(".nsewdrag").first.hover()
    label = opened.page.locator("[data-name=kl-mean] .hoverlayer .legend")
    label.wait_for()
    told = label.text_content()
    assert re.search(r"step \d+", told)
    assert re.search(r"safe 0\.\d+ ± 0\.\d+ nats/token, n 3", told) and "threshold of safe: 0.3 nats/token" in told


def test_charts_follow_the_colour_scheme(opened):
    page = opened.page
    color = "chart => [chart._fullLayout.font.color, chart.data.find(t => t.meta === 'mean').line.color]"
    before = page.eval_on_selector("[data-name=kl-mean]", color)
    page.emulate_media(color_scheme="dark")
    # The charts are drawn anew behind the style sheet. The page's policy forbids Playwright's own polling.
    deadline = time.monotonic() + 30
    while page.eval_on_selector("[data-name=kl-mean]", color)[0] == before[0] and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    after = page.eval_on_selector("[data-name=kl-mean]", color)
    assert before == ["#1b1d21", "#0072b2"] and after == ["#e8eaed", "#4ba6e8"]


def test_no_button_sends_anything_away(opened):
    opened.page.hover("[data-name=kl-mean]")
    names = opened.page.eval_on_selector_all(
        ".modebar-btn", "all => [...new Set(all.map(one => one.getAttribute('data-title')))]"
    )
    assert names == ["Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    with opened.page.expect_download() as download:
        opened.page.click("[data-name=kl-mean] .modebar-btn[data-title^=Download]")
    assert download.value.suggested_filename == "safebench-kl-mean.svg"
    assert "<svg" in download.value.path().read_text(encoding="utf-8")


def test_the_keyboard_reaches_the_controls_and_shows_where_it_is(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#headline"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.focus("#seeds")
    page.keyboard.press("Space")
    assert page.is_checked("#seeds")
    for name in page.eval_on_selector_all(
        "select, button, input",
        "all => all.map(one => one.labels?.[0]?.textContent || one.ariaLabel || one.textContent)",
    ):
        assert name.strip()


def test_many_long_and_missing_things_fit_a_phone(browser, tmp_path):
    long = "ppo-with-a-name-that-somebody-made-of-every-setting-he-changed-" + "x" * 60
    comparison = compare(write_arms(tmp_path, ("ppo", long, "<b>third</b>"), range(20), steps=20))
    one = Opened(browser, write_report(comparison, tmp_path / "page.html"), PHONE, is_mobile=True, has_touch=True)
    assert one.overflow() == 0
    assert one.page.locator("#curves .legend button").all_text_contents() == [
        f"{arm} (n=20)" for arm in comparison.arms
    ]
    one.page.check("#seeds")
    assert one.drawn("[data-name=entropy-mean]")[1] == 3 * 20 + 3 + 3
    assert one.overflow() == 0
    one.page.screenshot(path=tmp_path / "page.png", full_page=True)
    one.unharmed()
    one.context.close()


def test_one_arm_with_one_seed_is_drawn(browser, tmp_path):
    one = Opened(browser, write_report(compare(write_arms(tmp_path, ("ppo",), (0,))), tmp_path / "page.html"))
    assert one.drawn("[data-name=eval-judge]") == (["mean"], 1)
    assert one.drawn("[data-name=kl-mean]") == (["threshold", "target", "mean"], 3)
    assert one.page.locator("#kinds").text_content()
    one.unharmed()
    one.context.close()
