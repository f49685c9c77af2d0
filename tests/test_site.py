"""The documentation site: it says everything, needs no network, and fits a phone."""

import functools
import html
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import idc_hub
from tests.browser import CHROMIUM, Browser
from tests.test_documentation import COMMANDS, keys

REPOSITORY = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra docs is not installed"),
]


class Parsed(HTMLParser):
    """The text of a page outside code and formulas, and what a browser would load by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.formulas = self._silent = 0
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.formulas += tag == "math"
        self._silent += tag in ("code", "pre", "math", "script", "style")
        if tag in ("script", "img", "iframe", "source") or (tag == "link" and found.get("rel") != "canonical"):
            self.loaded.append(found.get("src") or found.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("code", "pre", "math", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def headings(page: Path) -> list[str]:
    """The headings of a page, without the sign that links to each."""
    found = re.findall(r"<h[1-6].*?</h[1-6]>", page.read_text(encoding="utf-8"), re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", heading)).removesuffix("¶").strip() for heading in found]


def test_the_references_have_every_key_command_and_function(site: Path) -> None:
    recipe, others, cli, python = (
        headings(site / "docs" / "reference" / f"{page}.html")
        for page in ("recipe", "training-and-benchmarks", "cli", "python")
    )
    training = {"TrainingRecipe", "Plan", "SetPlan"}
    wanted = [name.split(".") for name, _, _ in keys()]
    assert {key for model, key in wanted if model in training} <= set(others)
    assert {key for model, key in wanted if model not in training} <= {key.rpartition(".")[2] for key in recipe}
    assert len(recipe) >= len([model for model, _ in wanted if model not in training])
    assert {name for name, command in COMMANDS.items() if " " in name and not command.hidden} <= set(cli)
    assert not {name for name, command in COMMANDS.items() if command.hidden} & set(cli)
    assert set(idc_hub.__all__) <= {heading.split()[0] for heading in python}


def test_no_page_loads_anything_from_elsewhere_or_shows_raw_formulas(site: Path) -> None:
    formulas = 0
    for path in site.rglob("*.html"):
        page = Parsed(path)
        assert [source for source in page.loaded if re.match("(https?:)?//", source)] == [], path
        assert not re.search(r"\$\$|\\\(|\\\[|\\frac", "".join(page.text)), path
        formulas += page.formulas
    assert formulas > 50


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site over HTTP on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as from `apt install chromium`")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_every_page_fits_the_window_and_follows_the_color_scheme(
    width: int, dark: bool, site: Path, address: str, tmp_path: Path
) -> None:
    with Browser(tmp_path) as browser:
        browser.look(width=width, height=844, dark=dark)
        for path in sorted(site.rglob("*.html")):
            browser.open_address(f"{address}/{path.relative_to(site)}")
            too_wide = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            scheme = browser.evaluate("document.body.dataset.mdColorScheme")
            assert (too_wide, scheme) == (0, "slate" if dark else "default"), path
        assert browser.problems == []
