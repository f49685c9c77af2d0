"""Every command and every snippet of the README and of docs/, in order, as a newcomer would type them.

Blocks that are fenced as `bash` or `python` are run. Indented blocks and fences without a language are not.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from skimage import data

from idc_hub.images.files import write_png
from tests import forked
from tests.hub_server import HubServer

REPOSITORY = Path(__file__).parents[1]
TUTORIAL = "docs/tutorial.md"
DOCS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))
PAGES = ["README.md", "recipes/README.md", *(page for page in DOCS if page != TUTORIAL)]
"""Pages whose commands are run in a folder with the finished quickstart; the tutorial begins in an empty one."""
OTHER_PAGES = [TUTORIAL, "benchmarks/README.md", "CONTRIBUTING.md", "AGENTS.md"]
TAGS = {
    "README.md": ["v1.0.0", "v1.1.0"],
    TUTORIAL: ["v1.0.0", "v1.0.0"],
    "docs/publishing.md": ["v1.0.0", "v1.1.0"],
    "docs/training.md": ["v1.0.0"],
}
"""The releases that the pushes of a page make, in order."""


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page that are run, as (language, text)."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("readme-hub")) as server:
        yield server


Run = Callable[[list[str]], str]


def desk(folder: Path, hub: HubServer) -> Run:
    """Runs a command in a folder and returns what it says; the Hub that it reaches is the one on loopback."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "IDC_"))}
    environment = inherited | hub.environment("hf_alice", folder / "home") | {"OMP_NUM_THREADS": "1"}

    def run(arguments: list[str]) -> str:
        if arguments[0] == "idc":
            result = forked.run(arguments[1:], cwd=folder, env=environment)
        else:
            result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    return run


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Path:
    """The folder `runs` with the finished quickstart, condensed in an empty folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    desk(folder, hub)(["idc", "condense", "quickstart"])
    return folder / "runs"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: HubServer, quickstart: Path) -> Run:
    """Runs a command in a folder with three photographs and the finished quickstart."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(quickstart, folder / "runs")
    (folder / "photos").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        write_png(folder / "photos" / f"{name}.png", getattr(data, name)()[:384, :448])
    return desk(folder, hub)


def follow(page: str, run: Run) -> Iterator[tuple[str, str]]:
    """Run what a page says, in order; yields each command or snippet, and what it printed."""
    tags = []
    for kind, block in blocks(page):
        block = block.replace("your-name/", f"alice/{Path(page).stem}-")
        if kind == "python":
            yield block, run([sys.executable, "-c", block])
            continue
        for command in commands(block):
            if command in ("make install", "source .venv/bin/activate"):
                continue
            assert command.startswith("idc "), f"{page} says {command!r}, which this test does not know"
            said = run(shlex.split(command))
            if command.startswith("idc push ") and "--dry-run" not in command:
                tags += re.findall(r"^tag\s+(\S+)$", said, re.MULTILINE)
            yield command, said
    assert tags == TAGS.get(page, [])


def test_the_site_has_every_page() -> None:
    navigation = yaml.safe_load(text_of("mkdocs.yml"))["nav"]
    pages = re.findall(r"'([^']+\.md)'", str(navigation))
    assert set(pages) >= {*PAGES, *OTHER_PAGES}


def test_make_targets_that_the_pages_name_exist() -> None:
    named = set()
    for page in (*PAGES, *OTHER_PAGES):
        lines = [line for kind, block in blocks(page) if kind == "bash" for line in commands(block)]
        named |= {line.split()[1] for line in lines if line.startswith("make ")}
        named |= set(re.findall(r"`make ([a-z-]+)`", text_of(page)))
    assert named >= {"install", "test", "test-fast", "test-low", "quality"}
    for target in named | {"help", "quickstart", "bench"}:
        subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, check=True, capture_output=True)
    planned = subprocess.run(
        ["make", "--dry-run", "quickstart"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert "idc condense quickstart" in planned


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_of_a_page_runs_in_order(page: str, run: Run) -> None:
    for _ in follow(page, run):
        pass


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_leads_from_nothing_to_a_published_set_and_a_trained_student(
    tmp_path: Path, hub: HubServer, quickstart: Path
) -> None:
    # Its first command was run for all pages, in an empty folder; here it finds its work done.
    shutil.copytree(quickstart, tmp_path / "runs")
    begun = last = time.monotonic()
    said = {}
    for step, output in follow(TUTORIAL, desk(tmp_path, hub)):
        now = time.monotonic()
        print(f"{now - last:6.1f} s  {step.strip().splitlines()[-1][:100]}")
        said[step], last = output, now
    print(f"{last - begun:6.1f} s  in all")
    student, bicubic = (
        float(re.findall(r"^mean\t([\d.]+) /", output, re.MULTILINE)[0])
        for step, output in said.items()
        if step.startswith("idc evaluate ")
    )
    assert student > bicubic


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_files_that_a_page_points_to_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", text_of(page)):
        assert ((REPOSITORY / page).parent / target).exists(), target
