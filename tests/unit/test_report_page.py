"""report.html: the right pictures beside each other, outliers first, nothing of a stranger's text as markup."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idc_hub.dataset import report_pictures as module
from idc_hub.dataset.pack import pack
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import RunError
from idc_hub.images.resize import imresize
from idc_hub.images.sources import Instance
from idc_hub.networks.teachers import Teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run
from idc_hub.verbs.report import report
from tests.browser import CHROMIUM, Browser

SIZE, SCALE = 8, 2
TRAP = "<img src=x onerror=document.title='trapped'>"
NAMES = ("0001", "0002", "0003", "0004", "0005", "0006", TRAP)
OUTLIER = "0004"


def photo(number: int) -> np.ndarray:
    """Smooth colored noise: uint8 [48, 64, 3]."""
    coarse = np.random.default_rng(number).integers(40, 215, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))


def lr_of(number: int) -> np.ndarray:
    return imresize(photo(number), 1 / SCALE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A Run with two finished patches of each photograph: nearly the real ones at (4, 8) and (12, 20) in LR pixels.

    The patches of OUTLIER are noisy.
    """
    (tmp_path / "photos").mkdir()
    instances = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / f"{name}.png"
        Image.fromarray(photo(number)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        instances.append(Instance(name, path.name, digest, 64, 48, patches=35, count=2))
    values = {"name": "tiny", "scale": SCALE, "source": {"path": str(tmp_path / "photos")}}
    recipe = Recipe.from_dict({**values, "patches": {"size": SIZE, "stride": 4}}).with_extractor("f" * 64)
    made = Run.create(tmp_path / "run", recipe, instances, {"packages": {}})
    random = np.random.default_rng(0)
    for number, instance in enumerate(instances):
        lr = lr_of(number)
        patches = np.stack([lr[4:12, 8:16], lr[12:20, 20:28]]).transpose(0, 3, 1, 2).astype(int)
        patches += random.integers(-60, 61, patches.shape) if instance.id == OUTLIER else np.array(1)
        facts = {"held_out": 0.01, "held_out_random": 0.04}
        made.write_patches(instance, torch.from_numpy(patches.clip(0, 255).astype(np.uint8)), facts)
        for step in range(20, 201, 20):
            line = {"event": "log", "step": step, "instance": 1 / step, "grouped": step / 200, "seconds": 1.0}
            made.append_metrics(instance.id, line)
    return made


@pytest.fixture
def finished(run: Run, make_teacher: Callable[..., Teacher]) -> Run:
    """With the HR versions repeat (the default) and darken."""
    condensed = pack(run, workers=1)
    for answer in ("repeat", "darken"):
        regenerate(condensed, make_teacher(answer), answer, set_default=answer == "repeat")
    return run


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture.split(",")[1])))).astype(int)


def test_a_patch_is_beside_its_own_hr_and_the_nearest_real_patch(finished: Run) -> None:
    result = report(finished.path, progress=False)
    assert Path(result.path) == finished.path / "report.html"
    assert (result.photographs, result.with_sliders, result.with_thumbnails, result.notes) == (7, 7, 0, [])
    assert result.bytes == Path(result.path).stat().st_size
    data = data_of(Path(result.path))
    assert data["versions"] == ["repeat", "darken"]
    patches = {(p["id"], patch["index"]): patch for p in data["photographs"] for patch in p["patches"]}
    assert patches.keys() == {(name, index) for name in NAMES for index in (0, 1)}
    for (name, index), patch in patches.items():
        expected = finished.read_patches(finished.instances[NAMES.index(name)])[index].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels(patch["lr"]), expected)
        large = expected.repeat(2, 0).repeat(2, 1).astype(int)
        repeat, darken = map(pixels, patch["hr"])  # lossy
        if name == OUTLIER:
            continue
        assert np.abs(repeat - large).mean() < 8
        assert np.abs(darken - large // 2).mean() < 8
        top, left = ((4, 8), (12, 20))[index]
        np.testing.assert_allclose(patch["box"], [left / 32, top / 24, 8 / 32, 8 / 24])
        assert patch["distance"] == pytest.approx(1, abs=0.2)
        real = photo(NAMES.index(name))[2 * top : 2 * top + 16, 2 * left : 2 * left + 16].astype(int)
        assert np.abs(pixels(patch["real"]) - real).mean() < 8


def test_the_most_unusual_photograph_comes_first_and_a_failed_one_before_it(finished: Run) -> None:
    result = report(finished.path, progress=False)
    assert next(iter(result.outliers)) == OUTLIER
    assert "HF" in result.outliers[OUTLIER]
    bridge = finished.instances[1]
    finished.instance_file(bridge.id).unlink()
    finished.record_failure(bridge, "CUDA out of memory </script>")
    finished.instance_file("0003").unlink()
    result = report(finished.path, progress=False)
    assert next(iter(result.outliers.items())) == ("0002", "CUDA out of memory </script>")
    first, second, *_, last = data_of(Path(result.path))["photographs"]
    assert (first["id"], first["state"], second["id"]) == ("0002", "failed", OUTLIER)
    assert (last["id"], last["state"]) == ("0003", "waiting")


def test_a_selection_shows_where_its_patches_were_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run.read_facts(run.instances[0])
    monkeypatch.setattr(run.__class__, "read_facts", lambda self, instance: facts | {"places": [(0, 4), (16, 24)]})
    photographs = data_of(Path(report(run.path, progress=False).path))["photographs"]
    for photograph in photographs:
        boxes = [patch["box"] for patch in photograph["patches"]]
        np.testing.assert_allclose(boxes, [[4 / 32, 0, 1 / 4, 1 / 3], [24 / 32, 16 / 24, 1 / 4, 1 / 3]])


def test_curves_are_medians_over_the_photographs(finished: Run) -> None:
    for step, value in ((20, 7.0), (40, 9.0)):
        finished.append_metrics("0001", {"event": "log", "step": step, "instance": value})
    curves = {chart["title"]: chart for chart in data_of(Path(report(finished.path).path))["curves"]}
    assert curves.keys() == {"Loss: instance", "Share of tiles grouped and paired"}
    (series,) = curves["Loss: instance"]["series"]
    assert series["x"] == list(range(20, 201, 20))
    np.testing.assert_allclose(series["y"], [1 / step for step in series["x"]])
    np.testing.assert_allclose(series["high"][0], np.quantile([7.0, *[1 / 20] * 6], 0.9))


class Tags(HTMLParser):
    """Counts elements, and collects attributes that run scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def test_text_of_strangers_is_no_markup(finished: Run) -> None:
    recipe = finished.path / "recipe.yaml"
    finished.record_failure(finished.instances[0], "</script><script>document.title='trapped'</script>")
    finished.instance_file("0001").unlink()
    recipe.write_text(recipe.read_text() + "# </pre><script>document.title='trapped'</script>\n")
    page = Path(report(finished.path, progress=False).path).read_text()
    tags = Tags(page)
    assert tags.found.count("script") == 2
    assert (tags.found.count("img"), tags.handlers) == (0, [])
    assert "&lt;/pre&gt;&lt;script&gt;" in page
    assert TRAP in [photograph["id"] for photograph in data_of(finished.path / "report.html")["photographs"]]
    policy = re.search(r"script-src 'sha256-([^']+)'", page)
    script = page.rsplit("<script>", 1)[1].split("</script>")[0]
    assert policy
    assert base64.b64decode(policy[1]) == hashlib.sha256(script.encode()).digest()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_run_that_is_not_finished_has_no_hr(run: Run) -> None:
    run.instance_file("0002").unlink()
    result = report(run.path, progress=False)
    data = data_of(Path(result.path))
    states = {photograph["id"]: photograph["state"] for photograph in data["photographs"]}
    assert (data["versions"], states["0001"], states["0002"]) == ([], "finished", "waiting")
    assert (result.with_sliders, result.with_thumbnails) == (6, 1)
    shown = next(photograph for photograph in data["photographs"] if photograph["id"] == "0001")
    assert (shown["patches"][0]["hr"], len(shown["patches"])) == ([], 2)
    (run.path.parent / "photos").rename(run.path.parent / "elsewhere")
    events: list[tuple[int, int]] = []
    result = report(run.path, progress=lambda event: events.append((event.done, event.total)))
    assert (result.with_sliders, result.with_thumbnails) == (6, 0)
    assert result.notes[1:] == ["Photographs without a picture on this page: 1."]
    assert events[-1] == (7, 7)


def test_a_pulled_run_and_photographs_that_are_gone(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "0001.png").unlink()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "0002.png")
    (note,) = report(finished.path, progress=False).notes
    assert note.startswith("Photographs that cannot be shown: 2. The first: ")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert "No photograph is shown: " in report(finished.path, progress=False).notes[0]
    (tmp_path / "pulled").mkdir()
    (finished.path / "repo").rename(tmp_path / "pulled" / "repo")
    result = report(tmp_path / "pulled", progress=False)
    assert result.notes == ["The set was pulled: its photographs and its losses are not here."]
    data = data_of(Path(result.path))
    assert {photograph["state"] for photograph in data["photographs"]} == {"published"}
    assert all(len(photograph["patches"][0]["hr"]) == 2 for photograph in data["photographs"])


def test_the_page_is_never_in_a_repository_folder(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"repo is a repository folder: .*Name the Run directory"):
        report(finished.path / "repo", progress=False)
    with pytest.raises(RunError, match="holds no condensed set"):
        report(tmp_path, progress=False)
    report(finished.path, progress=False)
    assert not list((finished.path / "repo").rglob("*.html"))


def test_large_runs_keep_to_the_budgets(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTLIERS", 3)
    result = report(finished.path, progress=False)
    assert (result.with_sliders, result.with_thumbnails, result.notes) == (3, 4, [])
    data = data_of(Path(result.path))
    assert [("patches" in p, "strip" in p) for p in data["photographs"]] == [(True, False)] * 3 + [(False, True)] * 4
    assert [len(p["patches"]) for p in data["photographs"][:3]] == [1] * 3
    strip = pixels(data["photographs"][3]["strip"])
    assert strip.shape == (8, 16, 3)
    monkeypatch.setattr(module, "OUTLIER_BYTES", len(json.dumps(data["photographs"][0])))
    monkeypatch.setattr(module, "THUMBNAIL_BYTES", 1)
    result = report(finished.path, progress=False)
    assert (result.with_sliders, result.with_thumbnails) == (1, 0)
    assert result.notes == ["Photographs without a picture on this page: 6."]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as from `apt install chromium`")
def test_in_a_browser(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTLIERS", 5)
    page = Path(report(finished.path, progress=False).path)
    with Browser(tmp_path / "profile") as browser:
        browser.look(width=1280, height=900)
        browser.open(page)
        first = "#cards .card:first-child"
        assert browser.evaluate(f"document.querySelector('{first} h3').textContent") == OUTLIER
        clip = f"document.querySelector('{first} .compare img:nth-child(2)').style.clipPath"
        assert browser.evaluate(clip) == "inset(0px 0px 0px 50%)"
        browser.click(f"{first} input[type=range]", at=(0.8, 0.5))
        moved = re.fullmatch(r"inset\(0px 0px 0px (\d+)%\)", browser.evaluate(clip))
        assert moved
        assert 75 < int(moved[1]) < 86
        source = f"document.querySelector('{first} .compare img:nth-child(2)')"
        assert browser.evaluate(f"{source}.decode().then(() => {source}.naturalWidth)") == SIZE * SCALE
        before = browser.evaluate(f"{source}.src")
        browser.evaluate(
            f"(() => {{ const s = document.querySelectorAll('{first} select')[1];"
            " s.selectedIndex = s.length - 1; s.dispatchEvent(new Event('change')); })()"
        )
        assert browser.evaluate(f"{source}.alt") == "HR: darken"
        assert browser.evaluate(f"{source}.src") != before

        names = "[...document.querySelectorAll('#table tbody tr:not([hidden]) td:first-child')].map(c => c.textContent)"
        assert browser.evaluate(names)[0] == OUTLIER
        browser.click("#table th:first-child button")
        assert browser.evaluate(names) == [TRAP, *sorted(NAMES[:-1])]
        browser.click("#table th:first-child button")
        assert browser.evaluate(names) == [*sorted(NAMES[:-1], reverse=True), TRAP]
        browser.click("#table th:nth-child(8) button")  # luma HF
        assert browser.evaluate(names)[0] == OUTLIER
        browser.click("#filter")
        browser.type("000")
        assert sorted(browser.evaluate(names)) == sorted(NAMES[:-1])
        browser.type("5")
        assert browser.evaluate(names) == ["0005"]
        assert browser.evaluate("document.querySelectorAll('.card, .thumb').length") == 1
        assert browser.evaluate("document.title") == "tiny: report"

        browser.evaluate("(() => { const f = document.querySelector('#filter'); f.value = ''; f.select(); })()")
        browser.type("0")
        assert browser.evaluate("document.querySelector('summary').textContent") == "Others, without sliders (2)"
        browser.evaluate("document.querySelector('#rest').scrollIntoView()")
        pictures = "document.querySelectorAll('.thumb img').length"
        look = f"(tries => {pictures} >= 4 || !tries ? done({pictures}) : setTimeout(look, 50, tries - 1))"
        assert browser.evaluate(f"new Promise(done => {{ const look = {look}; look(200); }})") == 4
        for width, dark in ((390, True), (390, False), (1280, True)):
            browser.look(width=width, height=800, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
            colors = browser.evaluate("[getComputedStyle(document.body).backgroundColor, '' + innerWidth]")
            assert colors == ["rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)", str(width)]
        assert browser.problems == []
