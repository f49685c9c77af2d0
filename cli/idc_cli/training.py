"""idc train, evaluate, benchmark: what a set is worth; idc networks: weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from idc_cli.options import DryRunOption, JsonOption, QuietOption, ScaleOption, examples
from idc_cli.output import Sink

app = typer.Typer()
networks = typer.Typer(no_args_is_help=True, help="Bring in weights that others have published.")
app.add_typer(networks, name="networks", rich_help_panel="Judge")


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc train edsr-small --data runs/quickstart --out networks/mine",
        "idc train swinir-light --data DIV2K_train_HR --recipe swinir-light-x4 --out networks/light accumulate=2",
        "idc train edsr --data org/condensed-x4 --hr-version swinir-m --out networks/mine --num-processes 4",
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
        typer.Argument(metavar="key=value ...", help="Values that win over the recipe's: steps=20k, crop=48 ..."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How to train: a name (edsr-baseline-x4, swinir-light-x4, ...: recipes/README.md) or a YAML file.",
            show_default="20,000 steps of 16 crops",
        ),
    ] = None,
    scale: ScaleOption = 4,
    hr_version: Annotated[
        str | None, typer.Option(help="HR version of a condensed set.", show_default="the set's own default")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="one for each GPU, or 1 on the CPU")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, trackio or wandb, besides metrics.jsonl; may be repeated.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network on pairs; photographs become pairs by bicubic downscaling.

    The same command continues a training that was interrupted.
    """
    import idc_hub

    sink = Sink(as_json, quiet)
    settings = idc_hub.TrainingRecipe.load(recipe, overrides or ())
    result = idc_hub.train(
        network,
        data,
        out,
        recipe=settings,
        scale=scale,
        hr_version=hr_version,
        num_processes=num_processes,
        trackers=tracker or (),
        progress=not quiet,
    )
    sink.result(result)
    sink.note(f"\nMeasure  idc evaluate {out} --scale {scale} --testset FOLDER --save")
    sink.note(f"Publish  idc push {out} YOUR_NAME/NAME --license LICENSE")


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc evaluate networks/mine --testset Set14 --save",
        "idc evaluate bicubic --testset Set14/HR --lr Set14/LR_x4 --border 2 --border 4",
    ),
)
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK_OR_PATH", help="A network or any other teacher (`idc teachers ls`).", show_default=False
        ),
    ],
    testset: Annotated[str, typer.Option(help="HR images: a folder, a zip, a Hub dataset.", show_default=False)],
    lr: Annotated[
        str | None, typer.Option(help="LR images of the same names.", show_default="HR, downscaled bicubically")
    ] = None,
    scale: ScaleOption = 4,
    border: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Pixels left out on each side; may be repeated.", show_default="2, and the scale"),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the tiles, in LR pixels, that bound the memory.", show_default="no tiles"),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the result in the network's folder, for its model card.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure PSNR and SSIM on a test set, in RGB and in luma side by side, each number under its protocol."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.evaluate(network, testset, lr=lr, scale=scale, borders=border or (), tile=tile, save=save)
    sink.result(result, leave_out=("protocols",))
    tables = result.protocols.values()
    names = next(iter(tables))["per_image"]
    rows = [(name, *(_figures(table["per_image"][name]) for table in tables)) for name in names]
    rows.append(("mean", *map(_figures, tables)))
    sink.text()
    sink.table(("PSNR (dB) / SSIM", *result.protocols), rows)


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc benchmark plan.yaml --out ladder --dry-run",
        "idc benchmark plan.yaml --out ladder",
    ),
)
def benchmark(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A YAML file (benchmarks/README.md).", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for sets, students, tables and pictures.", show_default=False)],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare sets: train the same students on all of them, with several seeds and sizes, and measure.

    The same command continues a benchmark that was interrupted.
    """
    import idc_hub

    sink = Sink(as_json, quiet)
    result = idc_hub.benchmark(plan, out=out, dry_run=dry_run, progress=not quiet)
    sink.result(result, leave_out=("states",))
    states = getattr(result, "states", {})
    if states:
        stages = ("set", "hr", "student", "evaluation", "problem")
        sink.text()
        sink.table(("run", *stages), [(name, *map(state.get, stages)) for name, state in states.items()])


@networks.command(
    "import",
    epilog=examples(
        "idc networks import 002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4.pth swinir-light --out weights/swinir-light-x4",
        "idc networks import swinir_x2.safetensors swinir-m --out weights/swinir-m-x2 --scale 2 --license apache-2.0",
    ),
)
def import_network(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .safetensors, or a .pth of tensors only.", show_default=False)
    ],
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="The name of the network.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the network.", show_default=False)],
    scale: ScaleOption = 4,
    license: Annotated[
        str | None, typer.Option(help="License of the weights, noted beside them.", show_default="not noted")
    ] = None,
) -> None:
    """Make a network's folder from a published state dict; nothing in the file is run."""
    from idc_hub.networks.published import import_weights

    import_weights(file, network, out, scale=scale, **({"license": license} if license else {}))
    Sink().note(f"{out} is a network for x{scale}: name it as a teacher, as an extractor, or for `idc evaluate`.")


def _figures(measured: dict[str, Any]) -> str:
    return f"{measured['psnr']:.3f} / {measured['ssim']:.4f}"
