"""Every command and every snippet of the README, in order, as a newcomer would type them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hub_server import HubServer

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("readme-hub")) as server:
        yield server


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> tuple[Path, dict[str, str]]:
    """A working folder with three photographs in it, and an environment that reaches the Hub on loopback."""
    folder = tmp_path_factory.mktemp("desk")
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    (folder / "photos").mkdir()
    for name in ("astronaut.png", "coffee.png", "chelsea.png"):
        shutil.copy(Path(spec.origin).parent / "data" / name, folder / "photos")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "IDC_"))}
    return folder, inherited | hub.environment("hf_alice", folder / "home") | {"OMP_NUM_THREADS": "1"}


def test_make_targets_of_the_readme_exist_and_say_what_they_do() -> None:
    lines = [command.split() for kind, block in BLOCKS if kind == "bash" for command in commands(block)]
    targets = {words[1] for words in lines if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    for target in targets | {"help", "install", "test-fast", "test-low", "quality", "bench"}:
        subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, check=True, capture_output=True)
    planned = subprocess.run(
        ["make", "--dry-run", "quickstart"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert "idc condense quickstart" in planned


@pytest.mark.slow
def test_every_command_and_snippet_runs_in_order(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk

    def run(arguments: list[str]) -> str:
        result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    idc = [sys.executable, "-m", "idc_cli.main"]
    said: dict[str, str] = {}
    said["quickstart"] = run([*idc, "condense", "quickstart"])
    for kind, block in BLOCKS:
        block = block.replace("your-name/", "alice/")
        if kind == "python":
            run([sys.executable, "-c", block])
            continue
        for command in commands(block):
            if not command.startswith("make"):
                assert command.startswith("idc "), f"the README says {command!r}, which this test does not know"
                said[command] = run([*idc, *command.split()[1:]])
    assert "v1.0.0" in said["idc push runs/quickstart alice/quickstart --license other"]
    assert "v1.1.0" in said["idc push runs/pulled alice/quickstart --license other"]
    assert "patches" in said["idc condense small-x4 source.path=photos --dry-run"]


def test_files_that_the_readme_points_to_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPOSITORY / target).is_file(), target
