"""Files by strangers: networks, checkpoints, recipes and manifests that are absurd, malformed, mutated or malicious."""

import json
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import read_rows
from idc_hub.dataset.regenerate import add_version
from idc_hub.dataset.shards import read_facts
from idc_hub.errors import HubError, IDCError, NetworkError, RecipeError, RunError, one_line, printable, redacted
from idc_hub.hub.revisions import client, commit_of
from idc_hub.images.files import decode_png
from idc_hub.networks.foreign import read_checkpoint
from idc_hub.networks.registry import ARCHITECTURES, load, save
from idc_hub.networks.teachers import Teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run

MUTATIONS = 1000 if int(os.environ.get("IDC_LONG", "0")) else 40
"""Damaged copies of each kind of file."""


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A damaged copy: a bit flipped, a part cut out, doubled or replaced by other bytes of the file, or the end cut."""
    at, to = sorted(rng.randrange(len(content)) for _ in range(2))
    start = rng.randrange(len(content))
    return rng.choice(
        [
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            content[:at] + content[to:],
            content[:to] + content[at:],
            content[:at] + content[start : start + 9] + content[at + 9 :],
            content[:at],
        ]
    )


def test_the_tests_that_security_md_names_exist() -> None:
    tests = Path(__file__).parents[1]
    known = {path.name: path.read_text() for path in tests.rglob("test_*.py")}
    named = re.findall(r"`(test_\w+(?:\.py)?)", (tests.parent / "SECURITY.md").read_text())
    assert len(named) > 20
    for name in named:
        found = name in known if name.endswith(".py") else any(f"def {name}" in text for text in known.values())
        assert found, name


# Networks


def write_network(folder: Path, architecture: str, **arguments: Any) -> None:
    """A stranger's network: a config and the weights of a small EDSR."""
    save(ARCHITECTURES["EDSR"](channels=4, blocks=1), folder)
    config = {"architecture": architecture, "arguments": arguments, "name": "net", "scale": 4}
    (folder / "config.json").write_text(json.dumps(config))


SWINIR: dict[str, Any] = {"depths": [1], "dim": 4, "heads": 1, "window": 4, "upsampler": "pixelshuffledirect"}
MAMBA: dict[str, Any] = {"dim": 4, "depths": [1], "heads": 1, "d_state": 2, "inner_rank": 2, "num_tokens": 2}
MAMBA |= {"mlp_ratio": 1, "light": True, "window": 4}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("EDSR", {"channels": 4, "blocks": 1_000_000}),
        ("EDSR", {"channels": 10_000, "blocks": 1}),
        ("EDSR", {"channels": 4096, "blocks": 256}),
        ("EDSR", {"channels": 0, "blocks": 1}),
        ("EDSR", {"channels": 4, "blocks": 1, "residual_scale": float("nan")}),
        ("EDSR", {"channels": [4], "blocks": 1}),
        ("EDSR", {"channels": None, "blocks": 1}),
        ("SwinIR", SWINIR | {"window": 0}),
        ("SwinIR", SWINIR | {"window": 4096}),
        ("SwinIR", SWINIR | {"window": 64, "dim": 4096}),
        ("SwinIR", SWINIR | {"heads": 0}),
        ("SwinIR", SWINIR | {"depths": [100_000]}),
        ("SwinIR", SWINIR | {"depths": [1] * 100_000}),
        ("SwinIR", SWINIR | {"depths": [[1]]}),
        ("MambaIRv2", MAMBA | {"d_state": 10**12}),
        ("MambaIRv2", MAMBA | {"num_tokens": 10**9}),
        ("MambaIRv2", MAMBA | {"dim": 1}),
        ("MambaIRv2", MAMBA | {"mlp_ratio": 4096, "dim": 4096}),
    ],
)
def test_an_absurd_config_is_a_sentence(tmp_path: Path, architecture: str, arguments: dict[str, Any]) -> None:
    write_network(tmp_path, architecture, **arguments)
    with pytest.raises(NetworkError, match=r"no network has that|can't be built|doesn't fit") as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 3000


def test_every_architecture_fits_its_own_weights(tmp_path: Path) -> None:
    for name, network in {
        "edsr": ARCHITECTURES["EDSR"](channels=4, blocks=2),
        "swinir": ARCHITECTURES["SwinIR"](**SWINIR),
        "mamba": ARCHITECTURES["MambaIRv2"](**MAMBA),
    }.items():
        save(network, tmp_path / name)
        loaded = load(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_mutated_networks_load_or_are_refused(tmp_path: Path) -> None:
    save(ARCHITECTURES["EDSR"](channels=4, blocks=1), tmp_path)
    rng = random.Random(0)
    for file in ("config.json", "model.safetensors"):
        sound = (tmp_path / file).read_bytes()
        for _ in range(MUTATIONS):
            (tmp_path / file).write_bytes(mutated(sound, rng))
            try:
                load(tmp_path)
            except NetworkError:
                continue
        (tmp_path / file).write_bytes(sound)


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_checkpoints_are_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": {"weight": torch.rand(3, 3), "step": 3}}, path, _use_new_zipfile_serialization=zipped)
    sound, rng = path.read_bytes(), random.Random(1)
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(sound, rng))
        try:
            read_checkpoint(path)
        except NetworkError:
            continue


# Recipes


@pytest.mark.parametrize(
    "text",
    [
        "scale: !!float ''",
        "scale: !!int ''",
        "scale: !!bool x",
        "scale: !!timestamp x",
        "scale: !!binary x",
        "? [a, {b: c}]\n: 1",
        "? !!python/object/apply:os.system ['true']\n: 1",
        f"scale: {'9' * 5000}",
        f"seed: 0x{'f' * 50_000}",
        "optimizer: {steps: 1e999}",
        "optimizer: {steps: 1e300}",
        "assignment: {events: 1e8, interval: 1e-9}",
        "assignment: {events: 1e8}",
        "patches: {ratio: .nan}",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "a: " + "[" * 5000,
        "\x00",
        "name: \ud800",
        "{",
    ],
)
@pytest.mark.timeout(20)
def test_malformed_recipes_are_sentences(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(f"name: mine\nsource: {{path: x}}\n{text}\n".encode(errors="surrogatepass"))
    with pytest.raises(RecipeError):
        Recipe.load(tmp_path / "recipe.yaml")


def test_mutated_recipes_are_read_or_refused(tmp_path: Path) -> None:
    sound = Recipe.load("quickstart").to_yaml().encode()
    path, rng = tmp_path / "recipe.yaml", random.Random(2)
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(sound, rng))
        try:
            Recipe.load(path)
        except RecipeError:
            continue


@pytest.mark.parametrize("section", ["features", "teacher"])
@pytest.mark.parametrize("folder", ["repo", "snapshots/abc"])
def test_code_in_a_strangers_recipe_must_be_trusted(tmp_path: Path, section: str, folder: str) -> None:
    path = tmp_path / folder / "recipe.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"name: mine\nsource: {{path: photos}}\n{section}: {{network: antigravity:build}}\n")
    if folder == "repo":
        (path.parent / "idc.json").write_text("{}")
    named = path.parent if folder == "repo" else path
    with pytest.raises(RecipeError, match=rf"{section}\.network is antigravity:build.*--trust-recipe"):
        Recipe.load(named)
    assert "antigravity" not in sys.modules
    assert getattr(Recipe.load(named, trust_recipe=True), section).network == "antigravity:build"
    assert getattr(Recipe.load(named, [f"{section}.network=mine:build"]), section).network == "mine:build"
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {folder}/recipe.yaml\nname: own\n")
    with pytest.raises(RecipeError, match="came with a dataset"):
        Recipe.load(own)
    own.write_text(path.read_text())
    assert getattr(Recipe.load(own), section).network == "antigravity:build"


# Repositories


@pytest.fixture
def published(repo: Path, make_teacher: Callable[..., Teacher]) -> Path:
    add_version(CondensedSet(repo), make_teacher("repeat"), "nearest", set_default=True, progress=False)
    return repo


def test_mutated_files_of_a_set_are_read_or_refused(published: Path) -> None:
    rng = random.Random(3)
    readers: dict[str, Callable[[], object]] = {
        "idc.json": lambda: Manifest.load(published),
        "recipe.yaml": lambda: CondensedSet(published).recipe,
        "README.md": lambda: check_repository(CondensedSet(published)),
        "lr/lr.safetensors.index.json": lambda: read_facts(published / "lr"),
        "lr/lr-00001-of-00001.safetensors": lambda: CondensedSet(published).check_lr(again=True),
        "data/nearest/train-00000-of-00001.parquet": lambda: [
            (decode_png(row.lr_png), decode_png(row.hr_png)) for row in read_rows(published / "data/nearest")
        ],
    }
    for file, read in readers.items():
        sound = (published / file).read_bytes()
        for _ in range(MUTATIONS):
            (published / file).write_bytes(mutated(sound, rng))
            try:
                read()
            except IDCError:
                continue
        (published / file).write_bytes(sound)
    check_repository(CondensedSet(published), again=True)


@pytest.mark.parametrize("extra", ["/etc/*", "../../*", "https://example.com/x.parquet"])
def test_data_files_outside_the_repository_are_never_read(
    published: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    card = (published / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    facts["configs"][0]["data_files"].append({"split": "train", "path": extra})
    facts["configs"][0]["data_dir"] = "/etc"
    (published / "README.md").write_text(f"---\n{yaml.safe_dump(facts)}---\n{body}")
    seen = []
    load_dataset = datasets.load_dataset

    def spied(path: str, name: str, **options: Any) -> Any:
        seen.append((Path(path) / "README.md").read_text())
        return load_dataset(path, name, **options)

    monkeypatch.setattr(datasets, "load_dataset", spied)
    check_repository(CondensedSet(published), again=True)
    assert len(seen) == 1
    assert extra not in seen[0]
    assert "data_dir" not in seen[0]


def test_an_alias_bomb_in_the_recipe_of_a_set_is_a_sentence(published: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (published / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"recipe\.yaml cannot be read .*uses a YAML alias"):
        CondensedSet(published).is_selection  # noqa: B018


def test_a_photograph_of_a_run_may_not_lead_out_of_it(tmp_path: Path) -> None:
    state = {"format": "idc-run", "format_version": 1, "lr_recipe_hash": "a" * 64}
    photograph = {"id": "../../outside", "name": "x", "sha256": "a" * 64, "width": 9, "height": 9, "patches": 1}
    (tmp_path / "run.json").write_text(json.dumps(state | {"instances": [photograph | {"notes": [], "count": 1}]}))
    with pytest.raises(RunError, match=r"run\.json is damaged .*'../../outside' is no id of a photograph"):
        Run.open(tmp_path)


@pytest.mark.parametrize("sha", ["x/../../../escaped", "ab" * 19, "AB" * 20, "ab" * 20 + "\n", "", None])
def test_what_is_no_commit_never_becomes_a_path(sha: str | None) -> None:
    info: Any = type("Info", (), {"sha": sha})
    with pytest.raises(HubError, match="as a commit, which is none"):
        commit_of(info)
    info.sha = "ab" * 20
    assert commit_of(info) == "ab" * 20


# Texts


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "opaque-token")
    text = (
        "headers {'authorization': 'Bearer s3cret.t-ken'}, hf_abcDEF123, opaque-token, "
        "https://user:pass@hub.example/x, https://hub.example/file?X-Amz-Signature=abc&b=1 and http://u@h.example/y."
    )
    expected = (
        "headers {'authorization': 'Bearer …'}, hf_…, …, "
        "https://hub.example/x, https://hub.example/file and http://h.example/y."
    )
    assert redacted(text) == one_line(text) == str(HubError(text)) == expected
    assert str(HubError("x.", text)) == f"x. {expected}"
    assert redacted("see https://huggingface.co/datasets/a/b, license cc-by-4.0") == (
        "see https://huggingface.co/datasets/a/b, license cc-by-4.0"
    )


def test_a_token_on_the_command_line_is_redacted() -> None:
    assert client("given-on-the-command-line").token == "given-on-the-command-line"
    assert str(HubError("The answer: given-on-the-command-line.")) == "The answer: …."


def test_control_characters_become_escapes() -> None:
    text = "a\x1b]0;title\x07\x9b2J\u202eb\u2028\r\x7f\n\tGröße 写真 👍"
    shown = "a\\u001b]0;title\\u0007\\u009b2J\\u202eb\\u2028\\r\\u007f\n\tGröße 写真 👍"
    assert printable(text) == str(RunError(text)) == shown
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text
