"""What the launchers hand to an engine, without the engine."""

import importlib.metadata
import io
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from torch import nn

from idc_hub.clusters import hf_jobs, slurm
from idc_hub.clusters.ray import condense_by_ray
from idc_hub.clusters.wheel import build_wheel
from idc_hub.errors import ClusterError, HubError, RecipeError
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(name="far", source={"path": str(tmp_path)}, workers={"threads": 3})


def test_slurm_scripts_are_shell_and_quote_every_path(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "a run; touch x"
    wanted = slurm.scripts(run, recipe, 4, {"partition": "gpu", "comment": "two words", "signal": "USR1@600"})
    for script in (wanted.workers, wanted.finish):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        directives = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
        assert {"--cpus-per-task=3", "--requeue", "--partition=gpu", "--comment=two words"} <= set(directives)
        assert [line for line in directives if "signal" in line] == ["--signal=USR1@600"]
        command = next(shlex.split(line) for line in script.splitlines() if line.startswith("srun "))
        assert str(run) in command
    assert "#SBATCH --array=0-3" in wanted.workers
    assert "--array" not in wanted.finish


def test_without_sbatch_an_error_says_where_to_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no sbatch"):
        slurm.submit(tmp_path, slurm.scripts(tmp_path, recipe, 1, {}))


def test_without_ray_an_error_says_what_to_install(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'idc-hub\[ray\]'"):
        condense_by_ray(Run(tmp_path, recipe, []), nn.Identity(), 1)


def test_a_job_cannot_use_what_is_on_this_machine(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="hf upload OWNER/NAME FOLDER"):
        hf_jobs.require_reachable(recipe)
    with pytest.raises(RecipeError, match="hf upload"):
        hf_jobs.require_reachable(Recipe(name="far", source={"path": "package:skimage/data"}))
    for network in ("my_package.nets:build", recipe.source.path):
        far = Recipe(name="far", source={"path": "alice/walk"}, features={"network": network})
        with pytest.raises(RecipeError, match=r"features\.network=OWNER/NAME"):
            hf_jobs.require_reachable(far)
    hf_jobs.require_reachable(Recipe(name="far", source={"path": "alice/walk"}))


def test_every_photograph_is_in_one_job_and_few_uploads_are_planned(recipe: Recipe) -> None:
    left = [Instance(f"photo {n}", f"photo {n}.png", f"{n:064}", 96, 96, 4, 1) for n in range(7)]
    wanted = hf_jobs.plan("alice/x", recipe, left, count=50, flavor="a10g-small", timeout="12h")
    assert len(wanted.specifications) == 7, "no job without a photograph"
    many = [Instance(f"{n}", f"{n}.png", f"{n:064}", 96, 96, 4, 1) for n in range(64)]
    (minutes,) = {
        float(job["command"][job["command"].index("--upload-minutes") + 1])
        for job in hf_jobs.plan("alice/x", recipe, many, count=64, flavor="a10g-small", timeout="12h").specifications
    }
    assert 64 * 60 / minutes < 128, "commits of an hour"
    with pytest.raises(RecipeError, match="no time limit"):
        hf_jobs.plan("alice/x", recipe, left, count=1, flavor="a10g-small", timeout="half a day")


def test_the_wheel_is_the_running_code_and_pip_installs_it(tmp_path: Path) -> None:
    name, content = build_wheel()
    assert build_wheel() == (name, content)
    (tmp_path / name).write_bytes(content)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "in"),
    ]
    subprocess.run([*pip, str(tmp_path / name)], check=True)
    assert (tmp_path / "in/idc_hub/clusters/wheel.py").read_bytes() == Path(
        build_wheel.__code__.co_filename
    ).read_bytes()
    assert (tmp_path / "in/idc_hub/recipes/quickstart.yaml").is_file()
    assert (tmp_path / "in/idc_hub/recipes/ablations").is_dir()
    assert (tmp_path / "in/bin/idc").is_file()
    assert not [path for path in zipfile.ZipFile(io.BytesIO(content)).namelist() if path.endswith(".pyc")]


def test_without_an_installation_an_error_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", classmethod(lambda *_, **__: iter(())))
    with pytest.raises(ClusterError, match="pip install --editable"):
        build_wheel()


class ApiOfArchives:
    """The two methods of the client that `collect` needs, for archives in a folder."""

    def __init__(self, archives: dict[str, bytes]) -> None:
        self.archives = archives

    def list_repo_files(self, repo_id: str, *, repo_type: str) -> list[str]:
        return [*self.archives, "launches/1/run.json", "finished/../../evil.zip"]

    def hf_hub_download(self, repo_id: str, name: str, *, repo_type: str, local_dir: Path) -> None:
        (local_dir / "finished").mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(self.archives[name])


def test_an_archive_gives_a_run_its_own_photographs_only(recipe: Recipe, tmp_path: Path) -> None:
    instance = Instance("a", "a.png", "0" * 64, 96, 96, 4, 1)
    run = Run.create(tmp_path / "run", recipe, [instance], {})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("instances/b.safetensors", "../evil", "/evil", "recipe.yaml", "failed/a.json"):
            file.writestr(name, '{"error": "cold"}')
    before = (run.path / "recipe.yaml").read_bytes()
    hf_jobs.collect(ApiOfArchives({"finished/1-0.zip": archive.getvalue()}), run, "alice/x")  # type: ignore[arg-type]
    assert run.failure(instance) == "cold"
    assert not list(run.path.glob("instances/*"))
    assert (run.path / "recipe.yaml").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    cut = ApiOfArchives({"finished/2-0.zip": archive.getvalue()[:-30]})
    with pytest.raises(HubError, match=r"2-0\.zip arrived damaged"):
        hf_jobs.collect(cut, run, "alice/x")  # type: ignore[arg-type]
    assert not (run.path / "hf-jobs/finished/2-0.zip").exists(), "it is downloaded again"
