"""The pages in a browser: no errors, no request to outside, tables that sort, both themes."""

import shutil

import pytest
from example_records import run_record, write_run, write_sweep

from icp_jax.report import write

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"screen": (1280, 900), "phone": (400, 800)}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install 'icp-jax[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(BROWSERS)}")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> the file of a page of each kind."""
    place = tmp_path_factory.mktemp("pages")
    texts = {"prompt": "Once", "before": "upon a time " * 30, "after": "x" * 300}
    counts = {"run": 6, "a-run-with-a-long-name-of-many-words": 32}
    runs = [write_run(place / name, run_record(n, texts=texts)) for name, n in counts.items()]
    points = [{"prune.sparsity": s, "compensate.lr": lr} for s in (0.3, 0.5) for lr in (1e-4, 1e-3)]
    sweep = write_sweep(place / "sweep", points)
    given = {"run": runs[:1], "long": runs[1:], "compare": runs, "sweep": [sweep]}
    return {name: write.report(g, place / f"{name}.html") for name, g in given.items()}


@pytest.fixture
def opened(browser, pages):
    """opened(name, ...): a page in a new tab; at the end, that it made no error and no request."""
    tabs, wrong = [], []

    def open(name, size="screen", scheme="light"):
        width, height = SIZES[size]
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tabs.append(tab)
        url = pages[name].as_uri()
        tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("request", lambda asked: asked.url == url or wrong.append(f"request: {asked.url}"))
        tab.goto(url)
        return tab

    yield open
    for tab in tabs:
        tab.close()
    assert not wrong


KINDS = ("run", "long", "compare", "sweep")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_page_fits_its_window_and_its_pictures_have_words(opened, name, size):
    tab = opened(name, size)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    pictures = tab.get_by_role("img").all()
    assert len(pictures) == tab.locator("svg").count() > 0
    for picture in pictures:
        assert len(picture.get_attribute("aria-label")) > 20
        assert picture.evaluate("e => e.querySelector('title').textContent")
        box = picture.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= SIZES[size][0]


SIZES_OF_TEXT = """() => [...document.querySelectorAll('svg text')].map(
  e => e.getBoundingClientRect().height / 1.2)"""


def test_the_words_of_pictures_can_be_read_on_a_phone(opened):
    assert min(opened("run", "phone").evaluate(SIZES_OF_TEXT)) > 8


OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll('text')].map((e) => [e, e.getBoundingClientRect()]);
  return boxes.flatMap(([e, a], k) => boxes.slice(k + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4  // lines are high
  ).map(([f]) => e.textContent + ' / ' + f.textContent));
})"""


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_words_of_pictures_are_apart(opened, name, size):
    assert opened(name, size).evaluate(OVERLAPS) == []


CONTRAST = """() => {
  const number = (c) => {
    const v = c.match(/[\\d.]+/g).map(Number).slice(0, 3).map((x) => x / 255)
      .map((x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2];
  };
  const card = number(getComputedStyle(document.querySelector('figure')).backgroundColor);
  const ratio = (c) => (Math.max(number(c), card) + .05) / (Math.min(number(c), card) + .05);
  return {
    words: Math.min(...[...document.querySelectorAll('figcaption p, td, th button, h2, .axis')].map(
      (e) => ratio(e.matches('text') ? getComputedStyle(e).fill : getComputedStyle(e).color))),
    inks: Math.min(...[...document.querySelectorAll('.swatch')].map(
      (e) => ratio(getComputedStyle(e).backgroundColor)).filter((r) => r > 1.01)),
    card,
  };
}"""


@pytest.mark.parametrize("name", ("run", "compare"))
def test_both_themes_have_contrast(opened, name):
    light, dark = (opened(name, scheme=s).evaluate(CONTRAST) for s in ("light", "dark"))
    assert light["card"] > 0.9 and dark["card"] < 0.1
    for found in (light, dark):
        assert found["words"] >= 4.5 and found["inks"] >= 3  # WCAG AA


def column(tab, k):
    return tab.locator(f"table tbody tr td:nth-child({k})").all_inner_texts()


def test_tables_sort_by_number_and_by_name(opened):
    tab = opened("run")
    heads = tab.locator("th")
    head = tab.get_by_role("columnheader", name="loss before")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    k = heads.all_inner_texts().index(head.inner_text()) + 1
    assert column(tab, k)[-1] == "–" and column(tab, 1) == ["1", "2", "3", "4", "5", "0"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(tab, 1) == ["5", "4", "3", "2", "1", "0"]  # what is unknown stays last
    tab = opened("compare")
    before = column(tab, 1)
    for expected in (sorted(before), sorted(before, reverse=True)):
        tab.get_by_role("columnheader", name="run").get_by_role("button").click()
        assert column(tab, 1) == expected


def test_a_table_sorts_by_the_keyboard(opened):
    tab = opened("sweep")
    tab.get_by_role("button", name="perplexity").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    head = tab.get_by_role("columnheader", name="perplexity")
    assert head.get_attribute("aria-sort") == "descending"


def test_it_prints_on_white(opened):
    tab = opened("run", scheme="dark")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf()[:5] == b"%PDF-"
