"""Tokens, passwords and local paths in everything that is printed, written and pushed, from photographs to the Hub."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from skimage import data

from idc_hub.images.files import write_png
from tests.flow.hub_tools import REPOSITORY, files_below
from tests.hub_server import Account, HubServer

TOKEN = "s3cret-of-alice"  # unlike hf_..., no pattern finds it
PASSWORD = "pa55word"
RECIPE = """
name: private
patches: {size: 24, stride: 12, ratio: 0.05, min_per_image: 1}
transform: {kernel_size: 3, channels: 16}
loss: {frequencies: 16, bank_size: 2}
assignment: {groups: 4, events: 2, interval: 0.2}
optimizer: {steps: 10}
"""


DRIVER = """
import json, sys
from idc_cli.main import main
commands, codes = json.loads(sys.argv[1]), []
for command in commands:
    sys.argv = ["idc", *command]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
print("codes", codes, file=sys.stderr)
"""


class Terminal:
    """Runs `idc` commands, several in one fresh process, and keeps all that they print."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        paths = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'cli'}", "OMP_NUM_THREADS": "1"}
        self.environment = inherited | paths | hub.environment(TOKEN, home)
        self.printed = ""

    def __call__(self, *commands: list[object], **environment: str) -> list[int]:
        """The exit codes."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(commands, default=str)],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.printed += done.stdout + done.stderr
        return json.loads(done.stderr.rpartition("codes ")[2])


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder with photographs, and a network that is extractor and teacher."""
    folder = tmp_path / "home" / "ada-lovelace"
    (folder / "photos").mkdir(parents=True)
    for name in ("astronaut", "coffee"):
        write_png(folder / "photos" / f"{name}.png", getattr(data, name)()[40:180, 100:250])
    (folder / "my-net").mkdir()
    for file in ("config.json", "model.safetensors"):
        bundled = files("idc_hub") / "networks/weights/edsr-small-x4" / file
        (folder / "my-net" / file).write_bytes(bundled.read_bytes())
    (folder / "private.yaml").write_text(RECIPE)
    return folder


def test_no_token_password_or_local_path_leaves_the_machine(hub: HubServer, private: Path, tmp_path: Path) -> None:
    hub.state.accounts[TOKEN] = Account("alice")
    idc = Terminal(hub, tmp_path / "hf")
    recipe, net, run, student = (private / name for name in ("private.yaml", "my-net", "run", "student"))
    chosen = [f"source.path={private / 'photos'}", f"features.network={net}", f"teacher.network={net}"]
    done = idc(
        ["condense", recipe, *chosen, "--run-dir", run, "--num-processes", 1],
        ["quality", run],
        ["regenerate", run, "--teacher", "bicubic", "--name", "bicubic"],
        *(["verify", run], ["status", run], ["env"]),
        ["push", run, "alice/private-walk", "--license", "mit", "--public"],
        ["pull", "alice/private-walk", "--run-dir", private / "pulled"],
        ["train", "edsr-tiny", "steps=2", "batch_size=1", "crop=16", "--data", run, "--out", student],
        ["push", student, "alice/private-student", "--license", "mit", "--public"],
    )
    assert done == [0] * 10, idc.printed

    # Answers that echo the request
    echo = f"{{\"error\": \"{{'authorization': 'Bearer {TOKEN}'}}\"}}".encode()
    pull: list[object] = ["pull", "alice/private-walk", "--run-dir", private / "second"]
    talks = [
        ["condense", recipe, "source.path=alice/private-walk", "--run-dir", private / "other"],
        ["train", "edsr-tiny", "--data", "alice/private-walk", "--out", private / "other-student"],
        ["push", run, "alice/private-walk", "--license", "mit"],
        pull,
    ]
    for path in ("/api/", "/tree/|/resolve/|paths-info"):
        hub.inject("status", path=path, times=10_000, status=400, body=echo)
        assert 0 not in idc(*talks, IDC_DEBUG="1")
        if path == "/api/":
            assert 0 not in idc([*pull, "--token", TOKEN], HF_TOKEN="")
        hub.forget()
    assert idc.printed.count("Bearer …") >= 4

    # Addresses with a password
    address = hub.url.replace("://", f"://ada:{PASSWORD}@")
    hub.inject("status", path="/", times=10_000, status=400)
    assert 0 not in idc(*talks, ["condense", "alice/nothing"], HF_ENDPOINT=address, IDC_DEBUG="1")
    hub.forget()
    unreachable = address.replace("127.0.0.1", "127.0.0.2")
    photographs: list[object] = ["condense", recipe, "source.path=alice/nothing", "--run-dir", private / "other"]
    assert idc(pull, photographs, ["env"], HF_ENDPOINT=unreachable, IDC_DEBUG="1") == [4, 4, 0]
    assert idc.printed.count("127.0.0.2") >= 3

    for secret in (TOKEN, PASSWORD):
        assert secret not in idc.printed
        for path, content in files_below(tmp_path).items():
            assert secret.encode() not in content, path
    pushed: dict[str, bytes] = {}
    for kind, name in (("dataset", "private-walk"), ("model", "private-student")):
        repository = hub.state.find(kind, f"alice/{name}")
        assert repository is not None
        pushed |= {f"{name}/{path}": content for path, content in files_below(repository.folder).items()}
    assert len(pushed) > 10
    for path, content in pushed.items():
        for secret in (TOKEN, PASSWORD, str(tmp_path), "ada-lovelace", str(REPOSITORY), str(Path.home())):
            assert secret.encode() not in content, path
    published = (run / "repo/recipe.yaml").read_text()
    assert "path: photos\n" in published
    assert published.count("network: my-net\n") == 2
