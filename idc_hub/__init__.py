"""idc-hub: condense a super-resolution training set, remake its HR patches, and publish it on the Hugging Face Hub.

`condense` and `select` make a set; `work` helps to condense; `launch_slurm`, `launch_ray` and `launch_hf_jobs` condense
on a cluster; `status`, `watch`, `logs`, `report`, `quality` and `verify` inspect it, and `diff` compares two;
`regenerate` adds an HR version and `delete_version` removes one; `push` and `pull` exchange the set with the Hub;
`train`, `evaluate` and `benchmark` measure what it is worth. `PairedPatches` and `export` feed it to other trainers.
Every verb returns a frozen dataclass and raises subclasses of `IDCError`, or `Interrupted` after a signal.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idc_hub.dataset.condensed_set import CondensedSet as CondensedSet
    from idc_hub.errors import ClusterError as ClusterError
    from idc_hub.errors import DivergedError as DivergedError
    from idc_hub.errors import HubError as HubError
    from idc_hub.errors import IDCError as IDCError
    from idc_hub.errors import ImageError as ImageError
    from idc_hub.errors import IncompleteError as IncompleteError
    from idc_hub.errors import Interrupted as Interrupted
    from idc_hub.errors import NetworkError as NetworkError
    from idc_hub.errors import RecipeError as RecipeError
    from idc_hub.errors import RunError as RunError
    from idc_hub.networks.teachers import load_teacher as load_teacher
    from idc_hub.recipe import Recipe as Recipe
    from idc_hub.runs.progress import Progress as Progress
    from idc_hub.selection.pool import selection_recipe as selection_recipe
    from idc_hub.training.paired_patches import PairedPatches as PairedPatches
    from idc_hub.training.paired_patches import StreamedPatches as StreamedPatches
    from idc_hub.training.recipe import TrainingRecipe as TrainingRecipe
    from idc_hub.verbs.benchmark import benchmark as benchmark
    from idc_hub.verbs.condense import condense as condense
    from idc_hub.verbs.delete_version import delete_version as delete_version
    from idc_hub.verbs.diff import diff as diff
    from idc_hub.verbs.evaluate import evaluate as evaluate
    from idc_hub.verbs.export import export as export
    from idc_hub.verbs.launch import launch_hf_jobs as launch_hf_jobs
    from idc_hub.verbs.launch import launch_ray as launch_ray
    from idc_hub.verbs.launch import launch_slurm as launch_slurm
    from idc_hub.verbs.logs import logs as logs
    from idc_hub.verbs.pull import pull as pull
    from idc_hub.verbs.push import push as push
    from idc_hub.verbs.quality import quality as quality
    from idc_hub.verbs.regenerate import regenerate as regenerate
    from idc_hub.verbs.report import report as report
    from idc_hub.verbs.select import select as select
    from idc_hub.verbs.status import status as status
    from idc_hub.verbs.status import watch as watch
    from idc_hub.verbs.train import train as train
    from idc_hub.verbs.verify import verify as verify
    from idc_hub.verbs.work import work as work

VERBS = (
    "benchmark",
    "condense",
    "delete_version",
    "diff",
    "evaluate",
    "export",
    "logs",
    "pull",
    "push",
    "quality",
    "regenerate",
    "report",
    "select",
    "status",
    "train",
    "verify",
    "work",
)
_ERRORS = (
    "ClusterError",
    "DivergedError",
    "HubError",
    "IDCError",
    "ImageError",
    "IncompleteError",
    "Interrupted",
    "NetworkError",
    "RecipeError",
    "RunError",
)
# Names are imported when they are first used (PEP 562): `idc --help` must not wait for torch.
_MODULES = {
    "CondensedSet": "dataset.condensed_set",
    "PairedPatches": "training.paired_patches",
    "Progress": "runs.progress",
    "Recipe": "recipe",
    "StreamedPatches": "training.paired_patches",
    "TrainingRecipe": "training.recipe",
    "load_teacher": "networks.teachers",
    "selection_recipe": "selection.pool",
    **dict.fromkeys(_ERRORS, "errors"),
    "watch": "verbs.status",
    **dict.fromkeys(("launch_hf_jobs", "launch_ray", "launch_slurm"), "verbs.launch"),
    **{verb: f"verbs.{verb}" for verb in VERBS},
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
