"""What the launchers hand to an engine, without the engine."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from idc_hub.clusters import slurm
from idc_hub.clusters.ray import condense_by_ray
from idc_hub.errors import ClusterError
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
