"""idc train, evaluate: what a set is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idc_cli import output
from idc_cli.options import JsonOption, QuietOption, ScaleOption, examples

if TYPE_CHECKING:
    from idc_hub.judging.pairs import Pair
    from idc_hub.judging.training import TrainingRecipe

app = typer.Typer()


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc train edsr-small --data runs/quickstart --out networks/mine",
        "idc train edsr-baseline --data photos --out networks/whole steps=20000",
        "idc train edsr --data org/condensed-x4 --hr-version swinir-m --out networks/mine",
    ),
)
def train(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name for a fresh network; a folder or a Hub id for one to train further.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="A folder or zip of photographs, a Run, or a dataset on the Hub.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained network.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value ...", help="How to train: steps=20000, crop=48, learning_rate=2e-4 ..."),
    ] = None,
    scale: ScaleOption = 4,
    hr_version: Annotated[
        str | None, typer.Option(help="HR version of a condensed set.", show_default="the set's own default")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network on pairs; photographs become pairs by bicubic downscaling.

    The same command continues a training that was interrupted.
    """
    recipe = _training_recipe(overrides or [])

    import torch

    from idc_hub.judging.training import train as train_network
    from idc_hub.networks import NETWORKS, create, load

    pairs = _read_pairs(data, scale, hr_version)
    torch.manual_seed(recipe.seed)
    student = create(network, scale=scale) if network in NETWORKS else load(network, scale=scale)

    def progress(step: int, loss: float) -> None:
        output.note(f"step {step}/{recipe.steps}  loss {loss:.5f}")

    train_network(student, pairs, out, recipe, progress=None if quiet else progress)
    result = {"network": str(out), "pairs": len(pairs), "scale": scale, "recipe": recipe.model_dump(mode="json")}
    if as_json:
        output.print_json(result)
        return
    output.print_facts(result)


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc evaluate networks/mine --testset Set14/HR",
        "idc evaluate bicubic --testset Set14/HR --lr Set14/LR_x4 --border 2",
    ),
)
def evaluate(
    network: Annotated[
        str,
        typer.Argument(metavar="NETWORK_OR_PATH", help="A name, `bicubic`, a folder or a Hub id.", show_default=False),
    ],
    testset: Annotated[str, typer.Option(help="HR images: a folder, a zip, a Hub dataset.", show_default=False)],
    lr: Annotated[
        str | None, typer.Option(help="LR images of the same names.", show_default="HR, downscaled bicubically")
    ] = None,
    scale: ScaleOption = 4,
    border: Annotated[
        int | None, typer.Option(min=0, help="Pixels left out on each side.", show_default="the scale")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure PSNR and SSIM on a test set, in RGB and in luma, each number under its protocol."""
    import torch

    from idc_hub.images.metrics import Protocol
    from idc_hub.judging.evaluation import evaluate as evaluate_network
    from idc_hub.networks import load
    from idc_hub.networks.teachers import load_teacher

    cut = scale if border is None else border
    protocols = [Protocol("rgb", cut, scale), Protocol("y", cut, scale)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    upscaler = load_teacher(network, scale=scale) if network == "bicubic" else load(network, scale=scale).to(device)
    result = {"network": network, **evaluate_network(upscaler, testset, protocols, lr_location=lr)}
    if as_json:
        output.print_json(result)
        return
    output.print_facts({key: result[key] for key in ("network", "testset", "images")})
    rows = [
        (protocol, f"{table['psnr']:.3f}", f"{table['ssim']:.4f}") for protocol, table in result["protocols"].items()
    ]
    output.print_table(("protocol", "PSNR (dB)", "SSIM"), rows)


def _training_recipe(overrides: list[str]) -> TrainingRecipe:
    """Read `key=value` as the settings of a training; raises RecipeError with everything that is wrong."""
    from pydantic import ValidationError

    from idc_hub.judging.training import TrainingRecipe
    from idc_hub.recipe_reader import Draft, explain

    draft = Draft("training", sections=())
    for override in overrides:
        draft.override(override)
    try:
        recipe = TrainingRecipe.model_validate(draft.values)
    except ValidationError as error:
        for key, sentence in explain(error, TrainingRecipe):
            draft.complain(key, sentence)
        draft.raise_problems()
        raise
    draft.raise_problems()
    return recipe


def _read_pairs(data: str, scale: int, hr_version: str | None) -> list[Pair]:
    """Open what `--data` names: a Run or repository tree, a condensed set on the Hub, or photographs."""
    from idc_hub.errors import RecipeError
    from idc_hub.images.sources import PACKAGE_PREFIX
    from idc_hub.judging.pairs import read_pairs

    path = Path(data)
    for tree in (path / "repo", path):
        if (tree / "idc.json").is_file():
            return _pairs_of_tree(tree, hr_version)
    if not path.exists() and data.count("/") == 1 and not data.startswith(PACKAGE_PREFIX):
        pairs = _pairs_of_hub_set(data, hr_version)
        if pairs is not None:
            return pairs
    if hr_version:
        raise RecipeError(f"{data} is no condensed set: it has no HR version {hr_version}.", "Leave --hr-version out.")
    return list(read_pairs(data, scale).values())


def _pairs_of_tree(tree: Path, hr_version: str | None) -> list[Pair]:
    from idc_hub.errors import RunError
    from idc_hub.images.files import decode_png
    from idc_hub.storage.manifest import Manifest
    from idc_hub.storage.parquet import read_rows

    manifest = Manifest.load(tree)
    version = hr_version or manifest.default
    if version not in manifest.hr_versions:
        names = ", ".join(manifest.hr_versions) or "none yet"
        raise RunError(f"{tree} has no HR version {version}.", f"Its HR versions: {names}.")
    return [(decode_png(row.lr_png), decode_png(row.hr_png)) for row in read_rows(tree / "data" / version)]


def _pairs_of_hub_set(repo_id: str, hr_version: str | None) -> list[Pair] | None:
    """The pairs of a dataset on the Hub, None if it has no columns `lr` and `hr`."""
    import datasets
    import numpy as np

    from idc_hub.errors import HubError

    try:
        rows = datasets.load_dataset(repo_id, hr_version, split="train")
    except Exception as error:  # network, config, broken files: the library has no common class for them
        raise HubError(
            f"The dataset {repo_id} could not be loaded from the Hub ({error}).", "Check its name and --hr-version."
        ) from error
    if not {"lr", "hr"} <= set(rows.column_names):
        return None
    return [(np.asarray(row["lr"].convert("RGB")), np.asarray(row["hr"].convert("RGB"))) for row in rows]
