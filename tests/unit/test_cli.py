"""The command line: what it accepts, prints and ends with. What the verbs do is tested where they live."""

import errno
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jsonschema
import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console

import idc_hub
from idc_cli import output
from idc_cli.main import app, main
from idc_cli.output import Sink
from idc_hub import errors
from idc_hub.baselines import SelectionMethod
from idc_hub.errors import (
    HubError,
    IDCError,
    ImageError,
    IncompleteError,
    Interrupted,
    NetworkError,
    RecipeError,
    RunError,
)
from idc_hub.hub.push import PushResult
from idc_hub.recipe import Recipe, recipe_schema
from idc_hub.recipe_reader import bundled_recipes
from idc_hub.runs.progress import Progress, _takes_bars
from idc_hub.verbs.condense import CondenseResult
from idc_hub.verbs.delete_version import DeleteVersionResult
from idc_hub.verbs.diff import DiffResult, DiffSide, HRDifference
from idc_hub.verbs.export import ExportResult
from idc_hub.verbs.logs import LogsResult
from idc_hub.verbs.pull import PullResult
from idc_hub.verbs.quality import QualityResult
from idc_hub.verbs.regenerate import RegenerateResult
from idc_hub.verbs.report import ReportResult
from idc_hub.verbs.select import SelectResult
from idc_hub.verbs.status import StatusResult
from idc_hub.verbs.verify import VerifyResult

ROOT = Path(__file__).parents[2]

Result = tuple[int, str, str]
"""Exit code, stdout, stderr."""


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The JSON schemas of all results, as `idc schema` prints them."""
    code = "import sys; sys.argv = ['idc', 'schema']; from idc_cli.main import main; main()"
    return json.loads(in_a_fresh_python(code).stdout)


@pytest.fixture
def idc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], schemas: dict[str, Any]
) -> Callable[..., Result]:
    """Runs `idc` with arguments, as the installed command does. All JSON must follow its schema."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CI", raising=False)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["idc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code, (out, err) = int(ended.value.code or 0), capsys.readouterr()
        if code == 0 and "--json" in arguments:
            name = next(name for name in schemas if " ".join(map(str, arguments)).startswith(f"{name} "))
            for text in out.splitlines() if "--watch" in arguments else [out]:
                jsonschema.validate(json.loads(text), schemas[name])
        return code, out, err

    return run


def fill(kind: type[Any], **values: Any) -> Any:
    """A result of a verb, with something of the right type in every field that is not given."""
    samples = {str: "x", int: 3, float: 0.5, bool: True, dict: {}, list: []}
    filled = {
        name: samples.get(get_origin(hint) or hint) for name, hint in get_type_hints(kind).items() if name not in values
    }
    return kind(**filled, **values)


def photograph_entry(**values: Any) -> dict[str, Any]:
    entry = {"id": "0001", "patches": 15, "step": 400, "steps": 20000, "host": "node-7", "pid": 99, "error": None}
    return entry | dict.fromkeys(("steps_per_second", "eta_seconds", "silent_seconds")) | values


RESULTS = {
    "condense": fill(CondenseResult, run="runs/x"),
    "select": fill(SelectResult, run="runs/x"),
    "status": fill(StatusResult),
    "verify": VerifyResult(photographs=2, finished=2),
    "quality": fill(QualityResult),
    "regenerate": fill(RegenerateResult),
    "report": fill(ReportResult),
    "push": PushResult(
        repo_id="org/x",
        url="http://hub/org/x",
        private=True,
        files={"idc.json": 1200, "README.md": 5},
        uploads=["idc.json"],
        deletions=["lr/old"],
        card_diff="+ new line",
    ),
    "pull": fill(PullResult, repair=""),
    "delete_version": DeleteVersionResult("org/x", "edsr", "bicubic", "c0ffee", "v2.0.0"),
    "diff": DiffResult(
        a=fill(DiffSide, place="runs/x", default=None),
        b=fill(DiffSide, place="runs/y", default=None),
        recipe={"seed": [0, 3]},
        only_a=[],
        only_b=["cat"],
        hr=[HRDifference("edsr", "edsr", 1, {"x4, Y, border 4, 8-bit": 31.5})],
    ),
    "export": ExportResult("out", "basicsr", "x", 3, 9, {"BasicSR": "scale: 4\n", "KAIR": "{}"}),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces every verb by one that notes its arguments and returns a result of the real type."""
    noted: dict[str, Any] = {}

    def stand_in(verb: str) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> Any:
            noted[verb] = args, kwargs
            return RESULTS[verb]

        return call

    for verb in RESULTS:
        monkeypatch.setattr(idc_hub, verb, stand_in(verb))
    return noted


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands under a group, with the words that call them."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def in_a_fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)


class TestStart:
    @pytest.mark.parametrize("arguments", [["--help"], ["condense", "--help"], ["--version"], ["recipes", "ls"]])
    def test_nothing_heavy_is_imported(self, arguments: list[str]) -> None:
        code = f"""
import sys, idc_hub, idc_cli.main
sys.argv = ["idc", *{arguments!r}]
try:
    idc_cli.main.main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {{"torch", "datasets", "accelerate", "diffusers", "pyarrow", "skimage", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
        result = in_a_fresh_python(code)
        assert result.returncode == 0, result.stderr

    def test_help_names_all_exit_codes(self, idc: Callable[..., Result]) -> None:
        code, out, _ = idc("--help")
        assert code == 0
        for error in (RunError, ImageError, NetworkError, RecipeError, IncompleteError, HubError):
            assert f"  {error.exit_code}  " in out
        assert "129, 130, 143  stopped by SIGHUP, Ctrl-C, or SIGTERM" in out

    def test_the_exit_codes_of_the_pages_are_those_of_the_code(self) -> None:
        subclasses = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IDCError)]
        signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
        expected = {0, *(kind.exit_code for kind in subclasses), *signals}
        for page in ("docs/cli.md", "AGENTS.md"):
            rows = re.findall(r"^\| ([\d, ]+) \| ", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            assert {int(code) for row in rows for code in row.split(",")} == expected, page

    def test_the_version(self, idc: Callable[..., Result]) -> None:
        from importlib.metadata import version

        assert idc("--version") == (0, f"idc-hub {version('idc-hub')}\n", "")

    def test_slips_of_commands_and_options_are_named(self, idc: Callable[..., Result]) -> None:
        for slip, meant in (
            (["condens"], "Did you mean 'condense'?"),
            (["recipes", "lss"], "Did you mean 'ls'?"),
            (["condense", "quickstart", "--dryrun"], "--dry-run"),
        ):
            code, _, err = idc(*slip)
            assert code == 2
            assert meant in err

    def test_without_a_command_there_is_help(self, idc: Callable[..., Result]) -> None:
        code, out, err = idc()
        assert code == 2
        assert "condense" in out + err


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("recip", ["recipes"]),
            ("condense quicks", ["quickstart"]),
            ("recipes cp small-", ["small-x4"]),
            ("status ", ["here/a", "here/b"]),
            ("push here/b", ["here/b"]),
            ("diff here/a here/", ["here/a", "here/b"]),
            ("delete-version here/b bi", ["bicubic"]),
            ("quality here/b --hr-version ", ["bicubic", "edsr"]),
            ("train edsr --data here/b/repo --out x --hr-version e", ["edsr"]),
            ("export here/a --hr-version ", []),  # no set yet
            ("export org/x --hr-version ", []),
        ],
    )
    def test_names_without_torch(self, line: str, expected: list[str], tmp_path: Path) -> None:
        for run in ("a", "b", "notes"):
            (tmp_path / "here" / run).mkdir(parents=True)
        (tmp_path / "here" / "a" / "run.json").touch()
        (tmp_path / "here" / "b" / "repo").mkdir()
        (tmp_path / "here" / "b" / "repo" / "idc.json").write_text('{"hr_versions": {"bicubic": {}, "edsr": {}}}')
        code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
import idc_cli.main
try:
    idc_cli.main.main()
finally:
    assert not {{"torch", "datasets"}} & set(sys.modules)
"""
        words = ["idc", *line.split(" ")]
        completing = {"_IDC_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words) - 1), "IDC_RUNS": "here"}
        result = in_a_fresh_python(code, COMP_WORDS=" ".join(words), **completing)
        assert "Traceback" not in result.stderr
        assert result.stdout.split() == expected


class TestHelpPages:
    @pytest.mark.parametrize(
        ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
    )
    def test_examples_can_be_typed(self, path: tuple[str, ...], command: Any) -> None:
        heading, *lines = command.epilog.splitlines()
        assert heading == "[bold]Examples[/bold]"
        assert lines
        for line in lines:
            words = shlex.split(line)
            assert words[: len(path) + 1] == ["idc", *path]
            command.make_context(path[-1], words[len(path) + 1 :])  # ends with a usage error if it is wrong

    @pytest.mark.parametrize(
        ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
    )
    def test_every_option_is_explained(self, path: tuple[str, ...], command: Any) -> None:
        assert command.help
        assert all(parameter.help for parameter in command.params if hasattr(parameter, "help"))

    def test_a_page(self, idc: Callable[..., Result]) -> None:
        code, out, _ = idc("condense", "-h")
        assert code == 0
        assert "[default: (the name, in $IDC_RUNS or ./runs)]" in out
        assert "section.key=value" in out


class TestUsageErrors:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["condens"],
            ["condense"],
            ["condense", "quickstart", "--bogus"],
            ["condense", "quickstart", "--num-processes", "0"],
            ["pull", "org/x"],  # no directory
            ["regenerate", "runs/x", "--teacher", "bicubic"],  # no name
            ["evaluate", "bicubic", "--testset", "x", "--scale", "5"],
            ["recipes", "cp", "quickstart"],
        ],
    )
    def test_exit_code_2_before_anything_starts(
        self, arguments: list[str], idc: Callable[..., Result], calls: dict[str, Any]
    ) -> None:
        code, out, err = idc(*arguments)
        assert (code, out) == (2, "")
        assert "Error" in err
        assert not calls

    def test_recipe_errors_list_everything(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, err = idc("condense", "small-x4", "loss.alhpa=1", "patches.size=big")
        assert (code, out) == (2, "")
        first, second, third = err.splitlines()
        assert first.startswith("error: small-x4.yaml  source.path is missing. ")
        assert second == "       override loss.alhpa=1  loss.alhpa is not a recipe key. Did you mean loss.alpha?"
        assert third == "       override patches.size=big  patches.size is big; it should be a number."
        assert not calls

    def test_training_settings_are_checked_first(self, idc: Callable[..., Result]) -> None:
        code, _, err = idc("train", "edsr-small", "--data", "nowhere", "--out", "x", "stps=3", "crop=big")
        assert code == 2
        assert "stps is not a recipe key. Did you mean steps?" in err
        assert "override crop=big  crop is big; it should be a number." in err


class TestEndings:
    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (RunError("runs/x is damaged.", "Pull it again."), 1, "error: runs/x is damaged. Pull it again.\n"),
            (ImageError("a.png is cut off."), 1, "error: a.png is cut off.\n"),
            (NetworkError("No such network."), 1, "error: No such network.\n"),
            (RecipeError("one\ntwo"), 2, "error: one\n       two\n"),
            (IncompleteError("2 of 9 failed."), 3, "error: 2 of 9 failed.\n"),
            (HubError("The Hub said [no]."), 4, "error: The Hub said [no].\n"),
            (Interrupted(signal.SIGINT), 130, "error: interrupted (SIGINT)."),
            (Interrupted(signal.SIGTERM), 143, "error: interrupted (SIGTERM)."),
            (KeyboardInterrupt(), 130, ""),
            (OSError(errno.EDQUOT, "Full", "a/b"), 3, "error: a/b: Full. Make room within your quota. Run the same"),
            (FileNotFoundError(errno.ENOENT, "Gone", "a/b"), 1, "error: a/b: Gone.\n"),
            (MemoryError(), 3, "error: There is not enough memory (MemoryError). Free some"),
            (ImportError("a.so: failed to map segment"), 3, "error: There is not enough memory (a.so: failed"),
            (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero\n"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_errors_become_sentences_and_exit_codes(
        self,
        error: BaseException,
        code: int,
        message: str,
        idc: Callable[..., Result],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(run_dir: Path) -> None:
            raise error

        monkeypatch.delenv("IDC_DEBUG", raising=False)
        monkeypatch.setattr(idc_hub, "status", fail)
        found, out, err = idc("status", "runs/x")
        assert (found, out) == (code, "")
        assert err.startswith(message)
        assert "Traceback" not in err
        assert ("IDC_DEBUG=1" in err) == isinstance(error, ZeroDivisionError)

    def test_an_interrupt_that_a_package_swallowed_is_no_bug(
        self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted_import(run_dir: Path) -> None:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            raise RecursionError("maximum recursion depth exceeded")

        monkeypatch.setattr(idc_hub, "status", interrupted_import)
        code, _, err = idc("status", "runs/x")
        assert (code, err.startswith("error: interrupted (SIGINT).")) == (130, True)

    @pytest.mark.parametrize("as_json", [True, False])
    def test_control_characters_and_tokens_never_reach_the_terminal(
        self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_json: bool
    ) -> None:
        evil = "\x1b]0;title\x07\x9b2J\r hf_secretTOKEN"
        monkeypatch.setattr(idc_hub, "verify", lambda path: VerifyResult(name=evil, checked={evil: evil}))
        code, out, err = idc("verify", "runs/x", *(["--json"] if as_json else []))
        assert (code, out.count("\\u001b]0;title\\u0007\\u009b2J\\r hf_…")) == (0, 3)

        def fail(path: Path) -> None:
            warnings.warn(evil, stacklevel=1)
            Sink().note(evil)
            logging.getLogger("huggingface_hub").error("%s", evil)
            Sink().warn(evil)
            raise ZeroDivisionError(evil)

        monkeypatch.setattr(idc_hub, "verify", fail)
        for debug in ("0", "1"):
            monkeypatch.setenv("IDC_DEBUG", debug)
            code, more, more_err = idc("verify", "runs/x")
            out, err = out + more, err + more_err
        (tmp_path / "evil.yaml").write_text(f"# {evil}\nname: x\nsource: {{path: x}}\n")
        out += idc("recipes", "show", tmp_path / "evil.yaml")[1]
        err += idc("recipes", "check", tmp_path / "evil.yaml", f"nothing={evil}")[2]
        assert out.count("\\u001b") == 4
        assert err.count("\\u001b") >= 8
        assert not set("\x1b\x07\x9b\r") & set(out + err)
        assert "secretTOKEN" not in out + err

    def test_debugging_shows_the_traceback(self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IDC_DEBUG", "1")
        code, _, err = idc("recipes", "show", "nothing")
        assert (code, err.count("Traceback"), err.count("idc_hub.errors.RecipeError: There is no recipe")) == (2, 1, 1)


class TestVerbs:
    def test_condense(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, err = idc(
            *("condense", "quickstart", "seed=3", "optimizer.steps=1k", "--run-dir", "here"),
            *("--num-processes", "4", "--restart", "--dry-run", "--price-per-hour", "2.5", "-q"),
            *("--tracker", "trackio", "--tracker", "wandb"),
        )
        assert code == 0
        (recipe,), options = calls["condense"]
        assert recipe == Recipe.load("quickstart", ["seed=3", "optimizer.steps=1000"])
        assert options == {
            "run_dir": Path("here"),
            "num_processes": 4,
            "restart": True,
            "dry_run": True,
            "trackers": ["trackio", "wandb"],
            "price_per_hour": 2.5,
            "progress": False,
        }
        assert out.splitlines()[:4] == ["run\truns/x", "photographs\t3", "real_patches\t3", "patches\t3"]
        assert err == ""

    def test_select(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        arguments = ["--ratio", "0.05", "--seed", "3", "--scale", "2", "--teacher", "bicubic", "--run-dir", "runs/x"]
        code, _, err = idc("select", "k-center", "photos", "patches.size=48", *arguments)
        assert code == 0
        (recipe,), options = calls["select"]
        chosen = {"ratio": 0.05, "seed": 3, "scale": 2, "teacher": "bicubic", "overrides": ["patches.size=48"]}
        assert recipe == idc_hub.selection_recipe("k-center", "photos", **chosen)
        assert (recipe.patches.size, recipe.patches.complexity) == (48, "all")
        assert options == {"run_dir": Path("runs/x"), "progress": True}
        assert "idc push runs/x YOUR_NAME/x --license LICENSE" in err

    def test_select_as_usual(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, err = idc("select", "random", "photos", "--json", "--quiet")
        assert (code, err) == (0, "")
        assert json.loads(out) == asdict(RESULTS["select"])
        (recipe,), options = calls["select"]
        assert (recipe.method, recipe.patches.ratio, recipe.seed, recipe.scale) == ("random", 0.1, 0, 4)
        assert (recipe.name, recipe.teacher.network) == ("photos-random", "real")
        assert options == {"run_dir": None, "progress": False}

    def test_the_selections_are_those_of_the_recipe(self, idc: Callable[..., Result]) -> None:
        assert ("idc", *get_args(SelectionMethod)) == get_args(Recipe.model_fields["method"].annotation)
        code, _, err = idc("select", "nearest", "photos")
        assert code == 2
        assert all(f"'{method}'" in err for method in get_args(SelectionMethod))

    def test_a_price_is_only_predicted(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, _, err = idc("condense", "quickstart", "--price-per-hour", "2.5")
        assert code == 2
        assert "only --dry-run predicts a price" in " ".join(err.split())
        assert not calls

    def test_condense_as_usual(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, _, err = idc("condense", "quickstart")
        assert code == 0
        assert calls["condense"][1] == {
            "run_dir": None,
            "num_processes": None,
            "restart": False,
            "dry_run": False,
            "trackers": (),
            "price_per_hour": None,
            "progress": True,
        }
        assert "idc push runs/x YOUR_NAME/quickstart --license LICENSE" in err
        assert "runs/x/repo/report/patches.png" in err

    def test_regenerate(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        assert idc("regenerate", "org/x", "--teacher", "t", "--name", "n")[0] == 0
        options = {"teacher": "t", "name": "n", "run_dir": None, "set_default": False, "progress": True}
        assert calls["regenerate"] == (("org/x",), options)

    def test_push(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        assert "idc.json" not in idc("push", "runs/x", "org/x", "--license", "mit")[1]
        code, out, err = idc("push", "runs/x", "org/x", "--license", "mit", "--verbose")
        assert code == 0
        assert [line.split("\t") for line in out.splitlines()[1:4]] == [
            ["+", "idc.json", "1,200"],
            ["=", "README.md", "5"],
            ["-", "lr/old", ""],
        ]
        assert "+ new line" in out
        assert "no commit was made" in err
        args, options = calls["push"]
        assert args == (Path("runs/x"), "org/x")
        assert options["license"] == "mit"
        assert not options["public"]  # private unless somebody says otherwise
        assert not options["dry_run"]
        idc("push", "runs/x", "org/x", "--license", "mit", "--public", "--dry-run", "--create-pr", "--token", "t")
        options = calls["push"][1]
        assert options["public"]
        assert options["dry_run"]
        assert options["create_pr"]
        assert options["token"] == "t"

    def test_delete_version(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, _ = idc("delete-version", "org/x", "edsr", "--default", "bicubic")
        assert code == 0
        assert "tag\tv2.0.0" in out
        assert calls["delete_version"] == (("org/x", "edsr"), {"default": "bicubic", "token": None})

    def test_what_a_pull_repaired_is_a_warning(
        self, idc: Callable[..., Result], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(RESULTS, "pull", fill(PullResult, repair="idc.json was gone."))
        assert idc("pull", "org/x", "--run-dir", "d")[2].startswith("warning: idc.json was gone.\n")

    def test_pull(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        assert idc("pull", "org/x", "--run-dir", "d", "--revision", "v1.0.0")[0] == 0
        options = {"run_dir": Path("d"), "only": None, "revision": "v1.0.0", "token": None}
        assert calls["pull"] == (("org/x",), options)

    def test_diff(self, idc: Callable[..., Result], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, err = idc("diff", "runs/x", "runs/y", "-q")
        assert (code, err) == (0, "")
        assert calls["diff"] == (("runs/x", "runs/y"), {"token": None, "progress": False})
        for line in (
            "only_b\tcat",
            "place\truns/x\truns/y",
            "recipe: seed\t0\t3",
            "PSNR (dB), x4, Y, border 4, 8-bit\t31.5",
        ):
            assert line in out.replace("only_b\t\n  cat", "only_b\tcat").splitlines()
        other = replace(RESULTS["diff"], b=replace(RESULTS["diff"].b, lr_digest="y"), hr=[])
        monkeypatch.setitem(RESULTS, "diff", other)
        assert "The LR patches differ" in idc("diff", "runs/x", "runs/y")[2]

    def test_export_prints_what_to_paste(self, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, err = idc("export", "org/x", "--out", "d", "--hr-version", "v", "--lmdb", "--run-dir", "r", "-q")
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == "scale: 4"
        options = {"format": "basicsr", "hr_version": "v", "lmdb": True, "run_dir": Path("r"), "progress": False}
        assert calls["export"] == (("org/x", Path("d")), options)
        assert "BasicSR, KAIR: see d/README.md" in idc("export", "org/x", "--out", "d")[2]
        assert idc("export", "org/x", "--out", "d", "--format", "zip")[0] == 2

    @pytest.mark.parametrize(
        "line",
        [
            "condense quickstart --json",
            "status runs/x --json",
            "verify runs/x --json",
            "quality runs/x --json",
            "report runs/x --json",
            "regenerate runs/x --teacher t --name n --json",
            "push runs/x org/x --license mit --json",
            "pull org/x --run-dir d --json",
            "diff runs/x runs/y --json",
            "export runs/x --out d --json",
        ],
    )
    def test_json(self, line: str, idc: Callable[..., Result], calls: dict[str, Any]) -> None:
        code, out, err = idc(*line.split())
        assert code == 0
        assert json.loads(out) == asdict(RESULTS[line.split()[0]])
        assert err == ""

    def test_status_is_a_table(self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        entry = photograph_entry(state="failed", error="no [memory]")
        monkeypatch.setattr(idc_hub, "status", lambda run: fill(StatusResult, run=str(run), instances=[entry]))
        lines = idc("status", "runs/x")[1].splitlines()
        assert lines[0] == "run\truns/x"
        assert lines[-3:] == [
            "",
            "photograph\tstate\tpatches\tsteps\tworker\tsteps/s\tleft\terror",
            "0001\tfailed\t15\t400/20000\tnode-7:99\t\t\tno [memory]",
        ]

    def test_watching_ends_with_the_work(self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        running = photograph_entry(state="running", steps_per_second=2.5, eta_seconds=7840, silent_seconds=900)
        failed = photograph_entry(state="failed", error="no [memory]")
        counts = {"photographs": 3, "finished": 1, "running": 1, "failed": 0, "workers": 1, "eta_seconds": 7840.0}
        looks = [fill(StatusResult, **counts, instances=[entry]) for entry in (running, running, failed)]
        monkeypatch.setattr(idc_hub, "watch", lambda run, every: iter(looks))
        code, out, err = idc("status", "runs/x", "--watch")
        assert (code, err) == (0, "")
        line = "1/3 finished, 1 running, 3 interrupted, 3 waiting, 3 damaged, 1 worker, about 2 h 11 min left"
        assert out.splitlines() == [line, "0001 failed: no [memory]"]
        lines = idc("status", "runs/x", "--watch", "--json", "--every", "1")[1].splitlines()
        assert [json.loads(line) for line in lines] == [asdict(look) for look in looks]

    def test_logs(self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(idc_hub, "logs", lambda run, **_: LogsResult({"workers.log": ["a", "\x1b[31mb"]}))
        assert idc("logs", "runs/x")[1] == "==> workers.log <==\na\n\\u001b[31mb\n\n"
        monkeypatch.setattr(idc_hub, "logs", lambda run, **_: LogsResult({}))
        assert "This Run has no logs" in idc("logs", "runs/x")[2]

    def test_what_is_wrong_with_the_patches_is_told_on_stderr_and_is_no_failure(
        self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = fill(CondenseResult, quality={"residual": {"set": 1}}, warnings=["too [red]: noise"])
        monkeypatch.setattr(idc_hub, "condense", lambda *_, **__: result)
        code, out, err = idc("condense", "quickstart", "--quiet")
        assert (code, err) == (0, "warning: too [red]: noise.\n")
        assert "residual" not in out
        assert "red" not in out
        code, out, err = idc("condense", "quickstart", "--json")
        assert (code, err) == (0, "warning: too [red]: noise.\n")
        assert json.loads(out) == asdict(result)

    def test_quality_is_a_table(self, idc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        figures = {
            "held_out": {
                "set": 0.09,
                "real": 0.08,
                "real_range": [0.07, 0.09],
                "at_least": None,
                "at_most": 0.08,
                "passed": False,
            },
            "copied": {
                "set": 0.5,
                "real": 0.0,
                "real_range": [0.0, 0.0],
                "at_least": None,
                "at_most": None,
                "passed": None,
            },
        }
        measured = fill(QualityResult, passed=False, warnings=["too far"], figures=figures)
        asked = []
        monkeypatch.setattr(idc_hub, "quality", lambda *args, **options: asked.append((args, options)) or measured)
        code, out, err = idc("quality", "runs/x", "--hr-version", "v", "--teacher", "t", "-q")
        assert (code, err) == (0, "warning: too far.\n")
        assert asked == [((Path("runs/x"),), {"hr_version": "v", "teacher": "t", "progress": False})]
        assert out.splitlines()[-4:] == [
            "",
            "figure\tset\trandom real\twanted\tverdict",
            "held-out discrepancy\t0.09\t0.08\tat most 0.08\tfailed",
            "share of copied patches\t0.5\t0\t\t",
        ]


class TestNotes:
    @pytest.mark.parametrize(
        ("line", "hint"),
        [
            ("condense quickstart", "idc quality runs/x"),
            ("select random photos", "idc quality runs/x"),
            ("regenerate runs/x --teacher t --name n", "idc push x YOUR_NAME/NAME --license LICENSE"),
            ("status runs/x", "idc quality runs/x"),
            ("verify runs/x", "idc push runs/x YOUR_NAME/x --license LICENSE"),
            ("quality runs/x", "idc report runs/x"),
            ("report runs/x", "Open x in a browser."),
            ("pull org/x --run-dir d", "idc verify d"),
            ("recipes ls", "idc recipes cp NAME my.yaml"),
        ],
    )
    def test_the_next_command_is_named_once_and_not_in_ci(
        self,
        line: str,
        hint: str,
        idc: Callable[..., Result],
        calls: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(RESULTS, "verify", VerifyResult(name="x"))
        code, _, err = idc(*line.split())
        assert (code, err.count(hint)) == (0, 1)
        monkeypatch.setenv("CI", "true")
        assert hint not in idc(*line.split())[2]

    def test_summaries_say_what_was_made_how_long_it_took_and_where_to_look(
        self, idc: Callable[..., Result], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CI", "true")
        look = "Look at    runs/x/repo/report/patches.png and runs/x/repo/README.md\n"
        monkeypatch.setitem(RESULTS, "condense", replace(RESULTS["condense"], warnings=[]))
        assert idc("condense", "quickstart")[2] == (
            f"\nCondensed 3 patches of 3 photographs to 3, and made HR version x; this call took 0.5 s.\n{look}"
        )
        assert idc("select", "random", "photos")[2] == (
            f"\nChose 3 of 3 patches of 3 photographs, and made HR version x; this call took 0.5 s.\n{look}"
        )
        assert idc("regenerate", "runs/x", "--teacher", "t", "--name", "n")[2] == (
            "\nMade HR version n, 3 patches; this call took 0.5 s.\nLook at    x/report/patches.png\n"
        )

    def test_progress_for_programs(
        self, idc: Callable[..., Result], calls: dict[str, Any], photographs: Path, tmp_path: Path
    ) -> None:
        code, _, err = idc("condense", "quickstart", "--progress", "json")
        assert (code, err) == (0, "")
        assert callable(calls["condense"][1]["progress"])
        code, out, err = idc("evaluate", "bicubic", "--testset", photographs, "--progress", "json", "--json")
        assert code == 0
        events = [json.loads(line) for line in err.splitlines()]
        evaluating = {"stage": "evaluating", "total": 2, "figures": {}}
        assert [event for event in events if event["stage"] == "evaluating"] == [
            {**evaluating, "done": done} for done in (1, 2)
        ]
        assert json.loads(out)["images"] == 2
        line = ["train", "edsr-small", "--data", photographs, "--out", tmp_path / "net", "--progress", "json"]
        code, _, err = idc(*line, "steps=2", "crop=8", "batch_size=2")
        assert code == 0
        last = [json.loads(line) for line in err.splitlines()][-1]
        assert (last["stage"], last["done"], last["total"], list(last["figures"])) == ("training", 2, 2, ["loss"])
        assert idc("evaluate", "bicubic", "--testset", photographs, "--progress", "json", "-q")[2] == ""
        assert idc("evaluate", "bicubic", "--testset", photographs, "--progress", "xml")[0] == 2

    def test_progress_stays_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        report: Any = Sink(progress="json").reporting
        report(Progress("training", 1, 2, {"loss": float("nan")}))
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line, parse_constant=pytest.fail)["figures"] == {"loss": None}

    @pytest.mark.parametrize("arguments", [["status", "nothing"], ["condens"], ["--help"]])
    def test_no_color(self, arguments: list[str]) -> None:
        code = f"import sys; sys.argv = ['idc', *{arguments!r}]; from idc_cli.main import main; main()"
        color = re.compile(r"\x1b\[(?:\d+;)*[39][0-7]m")
        shown = [in_a_fresh_python(code, FORCE_COLOR="1", NO_COLOR=no_color) for no_color in ("", "1")]
        colorful, plain = (result.stdout + result.stderr for result in shown)
        assert color.search(colorful)
        assert not color.search(plain)

    def test_bars_are_for_terminals_outside_ci(self, monkeypatch: pytest.MonkeyPatch) -> None:
        console = Console(force_terminal=True)
        monkeypatch.delenv("CI", raising=False)
        assert _takes_bars(console)
        monkeypatch.setenv("CI", "true")
        assert not _takes_bars(console)


class TestTerminal:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output, "stdout", Console(force_terminal=True, no_color=True, width=30, highlight=False))

    def test_facts_are_aligned_and_long_lists_cut(self, capsys: pytest.CaptureFixture[str]) -> None:
        Sink().result({"a": 1234567, "long": "x [y] " * 9, "b": 0.123456, "c": None, "d": True, "e": list(range(25))})
        lines = [re.sub(r"\x1b\[\d*m", "", line) for line in capsys.readouterr().out.splitlines()]
        assert lines[:5] == ["a     1,234,567", "long  " + "x [y] " * 9, "b     0.1235", "c     -", "d     yes"]
        assert lines[5:7] == ["e     ", "  0"]
        assert lines[-1] == "  and 5 more (all of them with --json)"
        assert len(lines) == 27

    def test_tables_fold_and_keep_brackets(self, capsys: pytest.CaptureFixture[str]) -> None:
        Sink().table(("id", "error"), [("0001", "CUDA out of [memory] once more")])
        out = capsys.readouterr().out
        assert "[memory]" in out
        assert "\t" not in out
        assert max(map(len, re.sub(r"\x1b\[\d*m", "", out).splitlines())) <= 30


class TestRecipes:
    def test_ls(self, idc: Callable[..., Result]) -> None:
        code, out, _ = idc("recipes", "ls", "--json")
        assert code == 0
        assert [entry["name"] for entry in json.loads(out)] == list(bundled_recipes())
        assert "quickstart\tFive photographs" in idc("recipes", "ls")[1]

    def test_show_keeps_the_comments(self, idc: Callable[..., Result]) -> None:
        text = bundled_recipes()["quickstart"].read_text(encoding="utf-8")
        assert "#" in text
        assert idc("recipes", "show", "quickstart") == (0, text, "")

    def test_check(self, idc: Callable[..., Result], tmp_path: Path) -> None:
        recipe = Recipe.load("small-x4", ["source.path=photos"])
        code, out, _ = idc("recipes", "check", "small-x4", "source.path=photos", "--json")
        assert code == 0
        assert json.loads(out) == {"lr_recipe_hash": recipe.lr_recipe_hash, "recipe": recipe.model_dump(mode="json")}
        _, out, _ = idc("recipes", "check", "small-x4", "source.path=photos")
        assert out.startswith(f"# lr_recipe_hash: {recipe.lr_recipe_hash}\n")
        (tmp_path / "full.yaml").write_text(out, encoding="utf-8")
        assert Recipe.load(tmp_path / "full.yaml") == recipe

    def test_check_says_what_is_wrong(self, idc: Callable[..., Result]) -> None:
        code, out, err = idc("recipes", "check", "small-x4")
        assert (code, out) == (2, "")
        assert "source.path is missing" in err

    @pytest.mark.parametrize("name", [name for name in bundled_recipes() if "2k" in name])
    def test_what_a_recipe_lacks_is_one_sentence_that_says_where_it_is_looked_for(
        self, name: str, idc: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        recipe = Recipe.load(name)
        given: list[str] = []
        for missing, instead in (
            (recipe.features.network, "features.network=edsr-small"),
            (recipe.teacher.network, "teacher.network=bicubic"),
            (recipe.source.path, ""),
        ):
            code, out, err = idc("condense", name, *given, "--dry-run")
            assert (code, out) == (1, "")
            assert missing in err
            assert len(err.splitlines()) == 1
            given.append(instead)
        text = bundled_recipes()[name].read_text(encoding="utf-8")
        assert "# Terms. " in text
        assert "research" in text
        for needed in (recipe.features.network, recipe.teacher.network, recipe.source.path):
            assert f"#   {needed.removeprefix('./')} " in text, "the header says what is needed"

    def test_cp(self, idc: Callable[..., Result], tmp_path: Path) -> None:
        target = tmp_path / "new" / "my.yaml"
        original = bundled_recipes()["small-x4"].read_text(encoding="utf-8")
        assert idc("recipes", "cp", "small-x4", target)[0] == 0
        copy = target.read_text(encoding="utf-8")
        first, rest = copy.split("\n", 1)
        assert rest == original
        schema = target.parent / first.removeprefix("# yaml-language-server: $schema=")
        assert (
            json.loads(schema.read_text(encoding="utf-8")) == json.loads(idc("recipes", "schema")[1]) == recipe_schema()
        )
        target.write_text("mine")
        code, _, err = idc("recipes", "cp", "small-x4", target)
        assert code == 2
        assert f"{target} exists already." in err
        assert target.read_text() == "mine"
        assert idc("recipes", "cp", "small-x4", target, "--force")[0] == 0
        assert target.read_text(encoding="utf-8") == copy
        assert idc("recipes", "cp", target, tmp_path / "again.yaml")[0] == 0
        assert (tmp_path / "again.yaml").read_text(encoding="utf-8") == copy  # one line for the editor, not two

    def test_only_text_is_shown_and_copied(self, idc: Callable[..., Result], tmp_path: Path) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"name: \xff")
        (tmp_path / "marked.yaml").write_bytes("\ufeffname: marked\nsource: {path: photos}\n".encode())
        for arguments in (["show", tmp_path / "binary.yaml"], ["cp", tmp_path / "binary.yaml", tmp_path / "copy.yaml"]):
            code, _, err = idc("recipes", *arguments)
            assert code == 2
            assert "binary.yaml is not UTF-8 text." in err
        assert not (tmp_path / "copy.yaml").exists()
        assert idc("recipes", "cp", tmp_path / "marked.yaml", tmp_path / "copy.yaml")[0] == 0
        assert Recipe.load(tmp_path / "copy.yaml").name == "marked"

    def test_cp_into_a_folder(self, idc: Callable[..., Result], tmp_path: Path) -> None:
        assert idc("recipes", "cp", "quickstart", tmp_path)[0] == 0
        assert Recipe.load(tmp_path / "quickstart.yaml").name == "quickstart"


class TestSurroundings:
    def test_env_tells_no_secret(self) -> None:
        result = in_a_fresh_python(
            "import sys; sys.argv = ['idc', 'env', '--json']; from idc_cli.main import main; main()",
            HF_TOKEN="hf_topsecret",
            HF_ENDPOINT="https://me:password@hub.example/path?key=hidden",
        )
        assert result.returncode == 0, result.stderr
        facts = json.loads(result.stdout)
        assert facts["token"] is True
        assert facts["hub"] == "https://hub.example/path"
        assert facts["packages"]["torch"]
        for secret in ("topsecret", "password", "hidden"):
            assert secret not in result.stdout + result.stderr

    def test_every_json_has_a_schema(self, idc: Callable[..., Result], schemas: dict[str, Any]) -> None:
        with_json = {" ".join(path) for path, command in commands() if any(p.name == "as_json" for p in command.params)}
        assert set(schemas) == with_json
        for found in schemas.values():
            jsonschema.Draft202012Validator.check_schema(found)
        assert json.loads(idc("schema", "recipes", "check")[1]) == schemas["recipes check"]
        required = schemas["status"]["required"]
        assert required == list(get_type_hints(StatusResult))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"run": 3}, schemas["status"])
        code, _, err = idc("schema", "recipes", "show")
        assert code == 2
        assert "recipes show has no --json." in err

    def test_every_command_that_can_be_quiet_has_progress_for_programs(self) -> None:
        options = {" ".join(path): {p.name for p in command.params} for path, command in commands()}
        quiet = {name for name, found in options.items() if "quiet" in found and "hf-jobs-worker" not in name}
        assert quiet == {name for name, found in options.items() if "progress" in found}

    def test_env_without_a_token(self, tmp_path: Path) -> None:
        result = in_a_fresh_python(
            "import sys; sys.argv = ['idc', 'env']; from idc_cli.main import main; main()",
            HF_TOKEN="",
            HF_HOME=str(tmp_path),
        )
        assert "token\tno\n" in result.stdout

    def test_teachers(self, idc: Callable[..., Result]) -> None:
        code, out, _ = idc("teachers", "ls", "--json")
        assert code == 0
        found = json.loads(out)
        assert {"bicubic", "edsr-small"} <= {entry["name"] for entry in found}
        code, out, _ = idc("teachers", "show", "edsr-small", "--json")
        assert code == 0
        assert json.loads(out) in found
        code, _, err = idc("teachers", "show", "edsr-smal")
        assert code == 1
        assert "Did you mean 'edsr-small'?" in err


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two photographs of noise."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (65, 70, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_a_real_set_is_made_checked_and_given_a_second_version(
    photographs: Path, tmp_path: Path, idc: Callable[..., Result]
) -> None:
    run = tmp_path / "run"
    small = ["patches.size=8", "patches.stride=4", "transform.kernel_size=3", "loss.frequencies=8", "loss.bank_size=2"]
    code, out, err = idc("select", "random", photographs, "--ratio", "0.5", "--run-dir", run, "-q", "--json", *small)
    assert code == 0, err
    made = json.loads(out)
    assert made["real_patches"] == 2 * 3 * 4  # 16 x 17 LR pixels: 3 rows, 4 columns, the last flush with the edge
    assert made["patches"] == 12
    code, out, err = idc("regenerate", run, "--teacher", "bicubic", "--name", "bicubic", "-q", "--json")
    assert code == 0, err
    assert json.loads(out)["patches"] == 12
    code, out, err = idc("verify", run, "--json")
    assert code == 0, err
    assert json.loads(out)["hr_versions"] == ["bicubic", "real"]
    assert json.loads(out)["lr_digest"] == made["lr_digest"]
    assert json.loads(idc("status", run, "--json")[1])["finished"] == 2
    code, out, err = idc("diff", f"{run}:real", f"{run}:bicubic", "--json", "-q")
    assert code == 0, err
    assert list(json.loads(out)["hr"][0]["psnr"]) == ["x4, RGB, border 4, 8-bit", "x4, Y, border 4, 8-bit"]
    code, out, err = idc("export", run, "--out", tmp_path / "out", "--json", "-q")
    assert code == 0, err
    assert json.loads(out)["pairs"] == 12


class TestTraining:
    def test_photographs(self, photographs: Path, tmp_path: Path, idc: Callable[..., Result]) -> None:
        line = ["train", "edsr-small", "--data", photographs, "--out", tmp_path / "net", "--json"]
        code, out, err = idc(*line, "steps=2", "crop=8", "batch_size=2", "learning_rate=1e-4")
        assert code == 0, err
        assert json.loads(out)["pairs"] == 2
        assert json.loads(out)["recipe"]["learning_rate"] == 1e-4
        assert "step 2/2" in err
        assert json.loads((tmp_path / "net" / "config.json").read_text())["scale"] == 4

        code, out, err = idc("evaluate", tmp_path / "net", "--testset", photographs, "--border", "2", "--json")
        assert code == 0, err
        assert list(json.loads(out)["protocols"]) == ["x4, RGB, border 2, 8-bit", "x4, Y, border 2, 8-bit"]

    def test_evaluate_bicubic(self, photographs: Path, idc: Callable[..., Result]) -> None:
        """The numbers are those of the library's own pieces, put together by hand."""
        from idc_hub.images.metrics import Protocol, psnr
        from idc_hub.images.resize import imresize

        protocol = Protocol("y", 4, 4)
        values = []
        for path in sorted(photographs.iterdir()):
            hr = np.asarray(Image.open(path))[:64, :68]
            values.append(psnr(imresize(imresize(hr, 1 / 4), 4), hr, protocol))
        code, out, err = idc("evaluate", "bicubic", "--testset", photographs)
        assert code == 0, err
        head, *rows = [line.split("\t") for line in out.splitlines() if "\t" in line][6:]
        protocols = [f"x4, {channel}, border {border}, 8-bit" for border in (2, 4) for channel in ("RGB", "Y")]
        assert head[1:] == [f"{protocol}, upscaled by imresize" for protocol in protocols]
        assert [row[0] for row in rows] == ["a.png", "b.png", "mean"]
        found = [float(row[head.index(f"{protocol}, upscaled by imresize")].split(" / ")[0]) for row in rows]
        assert found == pytest.approx([*values, sum(values) / 2], abs=1e-3)

    def test_results_are_kept_beside_the_network(
        self, photographs: Path, tmp_path: Path, idc: Callable[..., Result]
    ) -> None:
        code, _, err = idc("evaluate", "bicubic", "--testset", photographs, "--save")
        assert code == 2
        assert "bicubic is not a folder in which a result can be kept. Leave --save out." in err
        line = ["train", "edsr-small", "--data", photographs, "--out", tmp_path / "net", "-q"]
        assert idc(*line, "steps=1", "crop=8", "batch_size=1")[0] == 0
        assert idc("evaluate", tmp_path / "net", "--testset", photographs, "--save")[0] == 0
        (kept,) = json.loads((tmp_path / "net" / "results.json").read_text())["results"]
        assert (kept["testset"], kept["images"], len(kept["protocols"])) == ("photographs", 2, 4)

    def test_a_recipe_by_name_and_its_overrides(
        self, photographs: Path, tmp_path: Path, idc: Callable[..., Result]
    ) -> None:
        line = ["train", "edsr-small", "--data", photographs, "--out", tmp_path / "net", "--recipe", "edsr-baseline-x4"]
        code, out, err = idc(*line, "steps=1", "crop=8", "batch_size=1", "--json", "-q")
        assert (code, err) == (0, "")
        settings = json.loads(out)["recipe"]
        assert (settings["decay"], settings["learning_rate"], settings["steps"]) == ("milestones", 1e-4, 1)
        code, _, err = idc(*line, "--tracker", "wandb")
        assert code == 2
        assert "wandb is not installed: `pip install wandb`." in err

    def test_a_published_state_dict_becomes_a_network(
        self, photographs: Path, tmp_path: Path, idc: Callable[..., Result]
    ) -> None:
        import torch

        from idc_hub import networks

        torch.save({"params": networks.load("edsr-small").state_dict()}, tmp_path / "published.pth")
        line = ["networks", "import", tmp_path / "published.pth", "edsr-small", "--out", tmp_path / "net"]
        code, out, err = idc(*line, "--license", "mit")
        assert (code, out) == (0, ""), err
        config = json.loads((tmp_path / "net" / "config.json").read_text())
        assert (config["name"], config["license"]) == ("edsr-small", "mit")
        assert networks.weights_sha256(tmp_path / "net") == networks.weights_sha256("edsr-small")

    def test_a_condensed_set(self, tmp_path: Path, idc: Callable[..., Result]) -> None:
        from idc_hub.dataset.manifest import Manifest
        from idc_hub.dataset.parquet import Row, write_rows
        from idc_hub.images.files import encode_png

        repo = tmp_path / "run" / "repo"
        lr, hr = np.full((8, 8, 3), 9, np.uint8), np.full((32, 32, 3), 9, np.uint8)
        size = write_rows(repo / "data" / "v", [Row("a", k, encode_png(lr), encode_png(hr)) for k in range(3)])
        teacher = {"name": "t", "kind": "bicubic", "scale": 4, "weights_sha256": None, "license": None}
        version = {
            "teacher": teacher,
            "lr_digest": "0" * 64,
            "date": "2026-01-01",
            "patches": 3,
            "bytes": size.file_bytes,
        }
        Manifest.model_validate(
            {"name": "mine", "scale": 4, "patch_size": 8, "lr_recipe_hash": "0" * 64, "lr_digest": "0" * 64}
            | {"instances": 1, "patches": 3, "default": "v", "hr_versions": {"v": version}}
        ).save(repo)
        settings = ["steps=1", "crop=8", "batch_size=1"]
        for number, path in enumerate((tmp_path / "run", repo)):
            line = ["train", "edsr-small", "--data", path, "--out", tmp_path / str(number), *settings, "--json"]
            code, out, err = idc(*line)
            assert code == 0, err
            assert json.loads(out)["pairs"] == 3
        code, _, err = idc(
            "train", "edsr-small", "--data", repo, "--hr-version", "w", "--out", tmp_path / "x", *settings
        )
        assert code == 1
        assert "has no HR version 'w'. Its HR versions: v." in err

    def test_photographs_have_no_hr_version(
        self, photographs: Path, tmp_path: Path, idc: Callable[..., Result]
    ) -> None:
        line = ["train", "edsr-small", "--data", photographs, "--out", tmp_path / "x", "--hr-version", "v"]
        code, _, err = idc(*line)
        assert code == 2
        assert "is no condensed set" in err
