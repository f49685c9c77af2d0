"""idc regenerate, delete-version, push, pull, diff, export: add and delete HR versions, exchange and compare sets."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from idc_cli import completion
from idc_cli.options import (
    DryRunOption,
    HRVersionOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    RunDirOption,
    RunOrRepoArgument,
    TokenOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc regenerate runs/quickstart --teacher bicubic --name bicubic",
        "idc regenerate org/condensed-div2k-x4 --teacher org/swinir-m --name swinir-m",
    ),
)
def regenerate(
    run_or_repo: RunOrRepoArgument,
    teacher: Annotated[
        str,
        typer.Option(
            help="The teacher: a name (`idc teachers ls`), a folder or a Hub id; real for a Run of `idc select`.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Name of the HR version: the config name for `load_dataset`.", show_default=False)
    ],
    run_dir: RunDirOption = None,
    set_default: Annotated[
        bool,
        typer.Option(
            "--set-default",
            help="Make it the version that `load_dataset` gives without a config name.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Diffusion teachers: denoising steps.", show_default="100 for LDM, 75 for Stable Diffusion"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Diffusion teachers: scale of the guidance by the prompt; 1 turns it off.",
            show_default="9 with a prompt, 1 without",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Diffusion teachers: text prompt.", show_default="none")] = None,
    seed: Annotated[int | None, typer.Option(help="Diffusion teachers: seed of the noise.", show_default="0")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Add an HR version made by another teacher; the LR patches do not change.

    Its quality is measured too, if the photographs are where the Run's recipe says.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    given: dict[str, Any] = {"steps": steps, "guidance": guidance, "prompt": prompt, "seed": seed}
    result = idc_hub.regenerate(
        run_or_repo,
        teacher=teacher,
        name=name,
        run_dir=run_dir,
        set_default=set_default,
        progress=sink.reporting,
        **{key: value for key, value in given.items() if value is not None},
    )
    sink.result(result)
    done = f"Made HR version {name}, {result.patches:,} patches" if result.written else f"HR version {name} exists"
    sink.note(f"\n{done}; this call took {result.seconds:,.1f} s.\nLook at    {result.repo}/report/patches.png")
    sink.hint(f"Publish    idc push {result.repo} YOUR_NAME/NAME --license LICENSE")


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc delete-version runs/quickstart bicubic",
        "idc delete-version org/condensed-div2k-x4 edsr --default swinir-m",
    ),
)
def delete_version(
    run_or_repo: RunOrRepoArgument,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The HR version.", show_default=False, autocompletion=completion.hr_versions
        ),
    ],
    default: Annotated[
        str | None, typer.Option(help="The version to make the default.", show_default="the present default")
    ] = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an HR version from a set; on the Hub, released tags keep it."""
    import idc_hub

    result = idc_hub.delete_version(run_or_repo, name, default=default, token=token)
    sink = Sink(as_json)
    sink.result(result, leave_out={key for key in ("commit", "tag") if not getattr(result, key)})
    if result.commit is None:
        sink.hint(f"\nPublish    idc push {run_or_repo} YOUR_NAME/NAME --license LICENSE")


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc push runs/mine you/condensed-mine --license cc-by-4.0 --dry-run",
        "idc push runs/mine you/condensed-mine --license cc-by-4.0",
        "idc push runs/div2k-x4 org/condensed-div2k-x4 --license other --license-name div2k --license-link LICENSE",
        "idc push runs/div2k-x4 org/condensed-div2k-x4 --create-pr",
        "idc push networks/mine you/swinir-light-x4 --license apache-2.0 --public",
    ),
)
def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A Run, or a network's folder.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hub.", show_default=False)],
    license: Annotated[
        str | None,
        typer.Option(
            help="License identifier of the Hub: cc-by-4.0, other, ...",
            show_default="the license that the card names",
        ),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option(help="For other: the license's name.", show_default="the name on the card")
    ] = None,
    license_link: Annotated[
        str | None,
        typer.Option(help="For other: its https:// address, or LICENSE.", show_default="the link on the card"),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public/--private", help="Visibility of a new repository; an existing one keeps its own."),
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An HR version on the Hub to replace; can be repeated.", show_default=False),
    ] = None,
    replace_set: Annotated[
        bool, typer.Option("--replace-set", help="Replace a set on the Hub that has other LR patches.")
    ] = False,
    commit_message: Annotated[
        str | None,
        typer.Option(help="First line of the commit message.", show_default="a summary of the changes"),
    ] = None,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List all files and the change of the card.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a set or a trained network and publish it on the Hub in one commit."""
    import idc_hub

    sink = Sink(as_json)

    def announce(plan: Any) -> None:
        size = sum(plan.files[name] for name in plan.uploads)
        files = plan.uploads[0] if len(plan.uploads) == 1 else f"{len(plan.uploads)} files"
        sink.note(f"Uploading {files} ({size:,} bytes) to {plan.url}")

    result = idc_hub.push(
        path,
        repo_id,
        license=license,
        license_name=license_name,
        license_link=license_link,
        public=public,
        create_pr=create_pr,
        replace=replace or [],
        replace_set=replace_set,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
        on_start=announce,
    )
    uploads = set(result.uploads)
    rows = [("+" if name in uploads else "=", name, f"{size:,}") for name, size in result.files.items()]
    if dry_run or verbose:
        sink.table(("", "file", "bytes"), rows + [("-", name, "") for name in result.deletions])
        sink.text(f"\n{result.card_diff}\n" if result.card_diff else "")
    optional = ("private", "commit", "tag", "pull_request", "kept", "replaced", "restored", "replaces_set")
    empty = {key for key in optional if not getattr(result, key)}
    sink.result(result, leave_out={"repo_id", "files", "uploads", "deletions", "card_diff", "local_card", *empty})
    if not result.local_card:
        sink.warn(f"{path} is read-only, so its card was not updated.")
    if dry_run:
        sink.note("Dry run: nothing was changed. Files marked + would be uploaded, those marked - deleted.")
        flags = ["--replace-set"] if result.replaces_set else []
        flags += [f"--replace {name}" for name in [*result.replaced, *result.restored]]
        if flags:
            sink.note(f"This push needs {' '.join(flags)}.")
    elif result.commit is None:
        sink.note("The repository is up to date: no commit was made.")
    elif result.pull_request:
        sink.hint(
            "If another pull request is merged first, run the same command again: it opens one that can be merged."
        )
    elif "/datasets/" in result.url:
        sink.hint(f'\nLoad       load_dataset("{repo_id}", split="train", revision="{result.tag}")')
    else:
        sink.hint(f"\nEvaluate   idc evaluate {repo_id} --testset FOLDER")


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc pull org/condensed-div2k-x4 --run-dir runs/div2k-x4",
        "idc pull org/condensed-div2k-x4 --run-dir runs/div2k-x4 --revision v1.0.0",
        "idc pull org/condensed-div2k-x4 --run-dir runs/div2k-x4 --only lr",
    ),
)
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hub.", show_default=False)],
    run_dir: Annotated[Path, typer.Option(help="Directory for the new Run.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="the main branch")] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="VERSION|lr", help="One HR version, or only the LR patches.", show_default="everything"),
    ] = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a condensed set into a Run, to verify it, add HR versions or push it again."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.pull(repo_id, run_dir=run_dir, only=only, revision=revision, token=token)
    if result.repair:
        sink.warn(result.repair)
    sink.result(result, leave_out={"repair"})
    sink.hint(f"\nVerify     idc verify {run_dir}")


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc diff runs/quickstart:edsr-small runs/quickstart:bicubic",
        "idc diff runs/mine org/condensed-mine",
        "idc diff org/condensed-div2k-x4@v1.0.0 org/condensed-div2k-x4@v2.0.0 --json",
    ),
)
def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="The first set.", show_default=False, autocompletion=completion.runs),
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="The second set.", show_default=False, autocompletion=completion.runs),
    ],
    token: TokenOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Compare two sets: recipes, photographs, LR patches, and the PSNR between HR versions of the same LR patches.

    A set is a Run, a repository's folder, or a repository on the Hub (org/name or org/name@v1.0.0), which is downloaded
    to a temporary folder. SET:NAME compares the HR version NAME.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    result = idc_hub.diff(a, b, token=token, progress=sink.reporting)
    sink.result(result, leave_out=("a", "b", "recipe", "hr"))
    sink.text()
    facts = [(key, value, getattr(result.b, key)) for key, value in vars(result.a).items()]
    sink.table(("", "A", "B"), facts + [(f"recipe: {key}", *values) for key, values in result.recipe.items()])
    if result.a.lr_digest != result.b.lr_digest:
        sink.note("\nThe LR patches differ, so their HR versions were not compared.")
        return
    sink.text()
    for found in result.hr:
        figures = [(f"PSNR (dB), {protocol}", value) for protocol, value in found.psnr.items()]
        rows = [("equal patches", f"{found.equal} of {result.a.patches}"), *figures]
        sink.table((f"{found.a} and {found.b}", "difference"), rows)


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc export runs/quickstart --out exports/quickstart --format basicsr",
        "idc export org/condensed-div2k-x4 --out exports/div2k --format webdataset --hr-version swinir-m",
    ),
)
def export(
    run_or_repo: RunOrRepoArgument,
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    format: Annotated[
        Literal["basicsr", "webdataset", "folder"],
        typer.Option(
            help="basicsr: folders gt and lq, for BasicSR, traiNNer-redux, neosr and KAIR; webdataset: tar files; "
            "folder: HR and LR."
        ),
    ] = "basicsr",
    hr_version: HRVersionOption = None,
    lmdb: Annotated[bool, typer.Option("--lmdb", help="With basicsr: LMDBs instead of folders.")] = False,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Write an HR version as image files for other trainers; prints what to paste into their options."""
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    result = idc_hub.export(
        run_or_repo,
        out,
        format=format,
        hr_version=hr_version,
        lmdb=lmdb,
        run_dir=run_dir,
        progress=sink.reporting,
    )
    sink.result(result, leave_out=("options",))
    if "BasicSR" in result.options:
        sink.text(f"\n{result.options['BasicSR'].rstrip()}")
        sink.note(f"For {', '.join(result.options)}: see {out / 'README.md'}.")
