"""idc train, evaluate, benchmark: measure what a set is worth; idc networks: import published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from idc_cli import completion
from idc_cli.options import (
    ColumnOption,
    ConfigOption,
    DryRunOption,
    ExcludeOption,
    HRVersionOption,
    IncludeOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    ScaleOption,
    SplitOption,
    TrackerOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()
networks = typer.Typer(no_args_is_help=True, help="Import published weights.")
app.add_typer(networks, name="networks", rich_help_panel="Judge")


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc train edsr-small --data runs/quickstart --out networks/mine",
        "idc train swinir-light --data DIV2K_train_HR --recipe swinir-light-x4 --out networks/light accumulate=2",
        "idc train edsr --data DIV2K_train_HR --lr DIV2K_train_LR_bicubic/X4 --out networks/given",
        "idc train edsr --data org/condensed-x4 --hr-version swinir-m --out networks/mine --num-processes 4",
    ),
)
def train(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name for a new network, or a folder or Hub id of a network to train further.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder or zip of photographs, a Run, or a dataset on the Hub.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained network.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value ...", help="Values that override the recipe's: steps=20k, crop=48 ..."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Training recipe: a name (edsr-baseline-x4, ...; see recipes/README.md) or a YAML file.",
            show_default="20,000 steps of 16 crops",
        ),
    ] = None,
    scale: ScaleOption = 4,
    lr: Annotated[
        str | None,
        typer.Option(
            help="LR images of photographs: 0001.png or 0001x4.png for 0001.png, a_LR.png for a_HR.png.",
            show_default="the photographs, downscaled bicubically",
        ),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    column: ColumnOption = None,
    hr_version: HRVersionOption = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.", show_default="one per GPU, or 1 on the CPU")
    ] = None,
    tracker: TrackerOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Train a network on pairs; for photographs, LR is given with --lr or made by bicubic downscaling.

    All pixels are decoded once, into a temporary file in --out. If interrupted, run the same command again.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    training_recipe = idc_hub.TrainingRecipe.load(recipe, overrides or ())
    result = idc_hub.train(
        network,
        _photographs(data, include=include, exclude=exclude, config=config, split=split, column=column),
        out,
        recipe=training_recipe,
        scale=scale,
        lr=lr,
        hr_version=hr_version,
        num_processes=num_processes,
        trackers=tracker or (),
        progress=sink.reporting,
    )
    sink.result(result)
    sink.note(
        f"\nTrained {network} on {result.pairs:,} pairs for {training_recipe.steps:,} steps; this call took "
        f"{result.seconds:,.1f} s.\nLook at    {out}/metrics.jsonl and {out}/training.yaml"
    )
    sink.hint(f"Evaluate   idc evaluate {out} --scale {scale} --testset FOLDER --save")
    sink.hint(f"Publish    idc push {out} YOUR_NAME/NAME --license LICENSE")


@app.command(
    rich_help_panel="Judge",
    epilog=examples(
        "idc evaluate networks/mine --testset Set14 --save",
        "idc evaluate bicubic --testset Set14/HR --lr Set14/LR_bicubic/X4 --border 2 --border 4",
        "idc evaluate bicubic --testset Set5/image_SRF_4 --include '*_HR.png'",
        "idc evaluate bicubic --testset org/testsets --config Set5 --split validation --column hr",
    ),
)
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK_OR_PATH", help="A network or any other teacher (`idc teachers ls`).", show_default=False
        ),
    ],
    testset: Annotated[str, typer.Option(help="HR images: a folder, a zip or a Hub dataset.", show_default=False)],
    lr: Annotated[
        str | None,
        typer.Option(
            help="LR images: 0001.png or 0001x4.png for 0001.png, a_LR.png for a_HR.png.",
            show_default="HR, downscaled bicubically",
        ),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    column: ColumnOption = None,
    scale: ScaleOption = 4,
    border: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Pixels cropped from each side before measuring; repeatable.", show_default="2 and the scale"
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=32, help="Side of the tiles, in LR pixels, in which a network upscales.", show_default="no tiles"
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Save the result in the network's folder, for its model card.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Measure PSNR and SSIM on a test set, in RGB and in luma, under one or more protocols."""
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    photographs = _photographs(testset, include=include, exclude=exclude, config=config, split=split, column=column)
    result = idc_hub.evaluate(
        network,
        photographs,
        lr=lr,
        scale=scale,
        borders=border or (),
        tile=tile,
        save=save,
        progress=sink.reporting,
    )
    sink.result(result, leave_out=("protocols", "sha256"))
    tables = result.protocols.values()
    names = next(iter(tables))["per_image"]
    rows = [(name, *(_figures(table["per_image"][name]) for table in tables)) for name in names]
    rows.append(("mean", *map(_figures, tables)))
    sink.text()
    sink.table(("PSNR (dB) / SSIM", *result.protocols), rows)
    if save:
        sink.hint(f"\nPublish    idc push {network} YOUR_NAME/NAME --license LICENSE")


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
    out: Annotated[Path, typer.Option(help="Folder for sets, students, tables and plots.", show_default=False)],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Compare sets: train the same students on each, with several seeds and ratios, and evaluate them.

    If interrupted, run the same command again to continue.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    result = idc_hub.benchmark(plan, out=out, dry_run=dry_run, progress=sink.reporting)
    sink.result(result, leave_out=("states",))
    states = getattr(result, "states", {})
    if states:
        stages = ("set", "hr", "student", "evaluation", "problem")
        sink.text()
        sink.table(("run", *stages), [(name, *map(state.get, stages)) for name, state in states.items()])
        sink.hint("\nStart      the same command without --dry-run")


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
        str | None, typer.Option(help="License of the weights; saved with them.", show_default="none")
    ] = None,
) -> None:
    """Convert a published state dict to a network's folder; no code in the file is executed."""
    from idc_hub.networks.published import import_weights

    left_out = import_weights(file, network, out, scale=scale, **({"license": license} if license else {}))
    sink = Sink()
    if left_out:
        sink.note(f"Left out of {file}: {', '.join(left_out)}.")
    sink.note(f"{out} is a network for x{scale}: use it as a teacher, as an extractor, or with `idc evaluate`.")


def _photographs(path: str, **chosen: Any) -> Any:
    """The place of photographs; with what chooses among them, if anything is given, as a recipe's section."""
    from idc_hub.recipe import Source

    given = {key: value for key, value in chosen.items() if value}
    return Source(path=path, **given) if given else path


def _figures(measured: dict[str, Any]) -> str:
    return f"{measured['psnr']:.3f} / {measured['ssim']:.4f}"
