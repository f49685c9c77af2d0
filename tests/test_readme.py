"""Every command and every snippet of the README and of docs/, in order, as a newcomer would type them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hub_server import HubServer

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("cli", "publishing", "teachers", "training", "export", "python", "formats")),
]
OTHER_PAGES = ["docs/clusters.md", "recipes/README.md", "benchmarks/README.md", "CONTRIBUTING.md", "AGENTS.md"]
TAGS = {"README.md": ["v1.0.0", "v1.1.0"], "docs/publishing.md": ["v1.0.0", "v1.1.0"], "docs/training.md": ["v1.0.0"]}
"""The releases that the pushes of a page make, in order."""
IDC = [sys.executable, "-m", "idc_cli.main"]


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Callable[[list[str]], str]:
    """Runs a command in a folder with three photographs and the finished quickstart, and returns what it says.

    The Hub that it reaches is the one on loopback.
    """
    folder = tmp_path_factory.mktemp("desk")
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    (folder / "photos").mkdir()
    for name in ("astronaut.png", "coffee.png", "chelsea.png"):
        shutil.copy(Path(spec.origin).parent / "data" / name, folder / "photos")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "IDC_"))}
    environment = inherited | hub.environment("hf_alice", folder / "home") | {"OMP_NUM_THREADS": "1"}

    def run(arguments: list[str]) -> str:
        result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    run([*IDC, "condense", "quickstart"])
    return run


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
def test_every_command_and_snippet_of_a_page_runs_in_order(page: str, run: Callable[[list[str]], str]) -> None:
    tags = []
    for kind, block in blocks(page):
        block = block.replace("your-name/", f"alice/{Path(page).stem}-")
        if kind == "python":
            run([sys.executable, "-c", block])
            continue
        for command in commands(block):
            if command in ("make install", "source .venv/bin/activate"):
                continue
            assert command.startswith("idc "), f"{page} says {command!r}, which this test does not know"
            said = run([*IDC, *command.split()[1:]])
            if command.startswith("idc push ") and "--dry-run" not in command:
                tags += re.findall(r"^tag\s+(\S+)$", said, re.MULTILINE)
    assert tags == TAGS.get(page, [])


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_files_that_a_page_points_to_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", text_of(page)):
        assert ((REPOSITORY / page).parent / target).exists(), target
