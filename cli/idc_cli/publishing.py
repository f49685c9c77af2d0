"""idc regenerate, push, pull: add HR versions, publish on the Hub, download from it."""

from pathlib import Path
from typing import Annotated

import typer

from idc_cli.options import DryRunOption, JsonOption, QuietOption, RunDirOption, TokenOption, examples
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
    run_or_repo: Annotated[
        str, typer.Argument(metavar="RUN_OR_REPO", help="A Run, or a dataset repository on the Hub.")
    ],
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
            "--set-default/--no-set-default",
            help="Make it the version that `load_dataset` gives without a config name.",
        ),
    ] = True,
    steps: Annotated[int | None, typer.Option(min=1, help="Diffusion teachers: denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Diffusion teachers: guidance scale.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Diffusion teachers: text prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="Diffusion teachers: seed of the noise.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add an HR version made by another teacher; the LR patches do not change."""
    import idc_hub

    given = {"steps": steps, "guidance": guidance, "prompt": prompt, "seed": seed}
    result = idc_hub.regenerate(
        run_or_repo,
        teacher=teacher,
        name=name,
        run_dir=run_dir,
        set_default=set_default,
        progress=not quiet,
        **{key: value for key, value in given.items() if value is not None},
    )
    Sink(as_json, quiet).result(result)


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc push runs/mine you/condensed-mine --license cc-by-4.0 --dry-run",
        "idc push runs/mine you/condensed-mine --license cc-by-4.0",
        "idc push runs/div2k-x4 org/condensed-div2k-x4 --license other --license-name div2k --license-link LICENSE",
        "idc push networks/mine you/swinir-light-x4 --license apache-2.0 --public",
    ),
)
def push(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A Run, or a network's folder.", show_default=False)],
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
    commit_message: Annotated[
        str | None, typer.Option(help="First line of the commit message.", show_default=False)
    ] = None,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a set or a trained network and publish it on the Hub in one commit."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.push(
        path,
        repo_id,
        license=license,
        license_name=license_name,
        license_link=license_link,
        public=public,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
    )
    uploads = set(result.uploads)
    rows = [("+" if name in uploads else "=", name, f"{size:,}") for name, size in result.files.items()]
    sink.table(("", "file", "bytes"), rows + [("-", name, "") for name in result.deletions])
    sink.text(f"\n{result.card_diff}\n" if result.card_diff else "")
    empty = {key for key in ("private", "commit", "tag", "pull_request") if not getattr(result, key)}
    sink.result(result, leave_out={"repo_id", "files", "uploads", "deletions", "card_diff", *empty})
    if dry_run:
        sink.note("Dry run: nothing was changed. Files marked + would be uploaded, those marked - deleted.")
    elif result.commit is None:
        sink.note("The repository is up to date: no commit was made.")


@app.command(
    rich_help_panel="Publish",
    epilog=examples(
        "idc pull org/condensed-div2k-x4 --run-dir runs/div2k-x4",
        "idc pull org/condensed-div2k-x4 --run-dir runs/div2k-x4 --revision v1.0.0",
    ),
)
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hub.", show_default=False)],
    run_dir: Annotated[Path, typer.Option(help="Directory for the new Run.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="the main branch")] = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a condensed set into a Run, to verify it, add HR versions or push it again."""
    import idc_hub

    Sink(as_json).result(idc_hub.pull(repo_id, run_dir=run_dir, revision=revision, token=token))
