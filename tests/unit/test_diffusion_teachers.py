"""Diffusion teachers: tiny pipelines of random weights, saved to disk, through the real diffusers."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import NetworkError, RecipeError
from idc_hub.networks.teachers import load_teacher
from tests.hub_server import HubServer
from tests.unit.foreign import Explosive, noise

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers", reason="the extra diffusion is not installed")

WIDTHS = (8, 16)  # two levels: the UNet halves its input once, the autoencoder doubles it


def latent_pipeline(scheduler: Any = None) -> Any:
    """A LDMSuperResolutionPipeline for x2."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    decoder = diffusers.VQModel(
        block_out_channels=WIDTHS,
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=64,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return diffusers.LDMSuperResolutionPipeline(decoder, unet, scheduler or diffusers.DDIMScheduler())


def stable_pipeline(folder: Path) -> Any:
    """A StableDiffusionUpscalePipeline for x2, with a vocabulary of a few letters."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        num_class_embeds=1000,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    decoder = diffusers.AutoencoderKL(
        block_out_channels=WIDTHS,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.08333,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8, eos_token_id=1
        )
    )
    words = ["<|startoftext|>", "<|endoftext|>", "c", "a", "t</w>", "ca", "cat</w>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    return diffusers.StableDiffusionUpscalePipeline(
        decoder, text, tokenizer, unet, diffusers.DDPMScheduler(), diffusers.DDIMScheduler()
    )


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of saved pipelines by name; "ancestral" draws noise at every step, too."""
    folder = tmp_path_factory.mktemp("pipelines")
    made = {
        "latent": latent_pipeline(),
        "ancestral": latent_pipeline(diffusers.EulerAncestralDiscreteScheduler()),
        "stable": stable_pipeline(folder / "words"),
    }
    for name, pipeline in made.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.parquet"))]


@pytest.mark.parametrize("name", ["latent", "ancestral", "stable"])
def test_a_pipeline_makes_an_hr_version_whose_bytes_never_change(
    repo: Path, pipelines: dict[str, Path], name: str
) -> None:
    for version, batch_size in (("one", 4), ("again", 4), ("alone", 1)):
        torch.manual_seed(batch_size)  # the global generator must not matter
        teacher = load_teacher(pipelines[name], scale=2, steps=2)
        assert regenerate(CondensedSet(repo), teacher, version, batch_size=batch_size).patches == 6
    one, again, alone = (contents(repo / "data" / version) for version in ("one", "again", "alone"))
    assert one == again == alone
    other = load_teacher(pipelines[name], scale=2, steps=2, seed=1)
    regenerate(CondensedSet(repo), other, "other")
    assert contents(repo / "data" / "other") != one


def test_idc_json_tells_how_it_was_made_and_another_making_is_another_version(
    repo: Path, pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The weights are random, so that HR does not show what LR shows.
    monkeypatch.setattr("idc_hub.dataset.check.is_mismatched", lambda *_: False)
    teacher = load_teacher(pipelines["stable"], scale=2, steps=2, prompt="cat", seed=3)
    regenerate(CondensedSet(repo), teacher, "cats")
    recorded = Manifest.load(repo).hr_versions["cats"].teacher.model_dump()
    assert recorded == {
        "name": "stable",
        "kind": "diffusers",
        "scale": 2,
        "weights_sha256": teacher.weights_sha256,
        "license": None,
        "pipeline": "StableDiffusionUpscalePipeline",
        "scheduler": "DDIMScheduler",
        "steps": 2,
        "prompt": "cat",
        "guidance": 9.0,
        "seed": 3,
    }
    assert not regenerate(
        CondensedSet(repo), load_teacher(pipelines["stable"], scale=2, steps=2, prompt="cat", seed=3), "cats"
    ).written
    for change in ({"seed": 4}, {"steps": 3}, {"guidance": 2.0}):
        settings: dict[str, Any] = {"steps": 2, "prompt": "cat", "seed": 3} | change
        with pytest.raises(RecipeError, match="choose another name"):
            regenerate(CondensedSet(repo), load_teacher(pipelines["stable"], scale=2, **settings), "cats")


def test_the_defaults_are_those_of_diffusers(pipelines: dict[str, Path]) -> None:
    latent, stable = (load_teacher(pipelines[name], scale=2).describe() for name in ("latent", "stable"))
    assert (latent["steps"], latent["seed"], "guidance" in latent) == (100, 0, False)
    assert (stable["steps"], stable["guidance"], stable["prompt"]) == (75, 1.0, "")  # no prompt, nothing to guide


def test_the_pixels_are_the_pipelines_own(pipelines: dict[str, Path]) -> None:
    """Against a call of the pipeline by hand, on the mirrored patch."""
    lr = noise(1, 4, 6)
    mirrored = torch.from_numpy(np.pad(lr.numpy(), ((0, 0), (0, 0), (8, 8), (8, 8)), mode="symmetric"))
    teacher = load_teacher(pipelines["latent"], scale=2, steps=2)
    seed = hashlib.sha256(b"0\x00[3, 4, 6]\x00" + lr.numpy().tobytes()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(pipelines["latent"])
    result = pipeline(mirrored / 127.5 - 1, num_inference_steps=2, generator=generator, output_type="np").images
    expected = (result[:, 16:-16, 16:-16] * 255 + 0.5).astype("uint8").transpose(0, 3, 1, 2)
    assert abs(teacher(lr).numpy().astype(int) - expected.astype(int)).max() <= 1


def test_the_prompt_and_its_guidance_matter(pipelines: dict[str, Path]) -> None:
    def answer(**settings: Any) -> Tensor:
        return load_teacher(pipelines["stable"], scale=2, steps=2, **settings)(noise(1))

    plain, guided, strongly = answer(), answer(prompt="cat"), answer(prompt="cat", guidance=50.0)
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, strongly)


@pytest.mark.parametrize("name", ["latent", "stable"])
def test_any_size_of_patch(pipelines: dict[str, Path], name: str) -> None:
    assert load_teacher(pipelines[name], scale=2, steps=1)(noise(2, 5, 7)).shape == (2, 3, 10, 14)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("latent", {"prompt": "cat"}, "takes no prompt and no guidance"),
        ("latent", {"guidance": 2.0}, "takes no prompt and no guidance"),
        ("stable", {"guidance": 2.0}, "has no effect without a prompt"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    pipelines: dict[str, Path], name: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(NetworkError, match=sentence):
        load_teacher(pipelines[name], scale=2, **settings)


def test_other_teachers_take_no_settings_of_a_pipeline() -> None:
    with pytest.raises(NetworkError, match="edsr-small isn't a diffusion pipeline and doesn't take steps, seed"):
        load_teacher("edsr-small", scale=4, steps=3, seed=1)


def test_a_pipeline_of_another_scale_is_refused(pipelines: dict[str, Path]) -> None:
    with pytest.raises(NetworkError, match="is an x2 network, but x4 was requested"):
        load_teacher(pipelines["latent"], scale=4)


def test_without_transformers_one_sentence_says_what_to_install(
    pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NetworkError) as caught:
        load_teacher(pipelines["latent"], scale=2)
    assert "needs transformers" in caught.value.message
    assert caught.value.hint == "Install it with: pip install 'idc-hub[diffusion]'"


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    change(index)
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "which idc-hub doesn't support"),
        ({"_class_name": ["pipeline", "Mine"]}, "which idc-hub doesn't support"),
        ({"unet": ["my_unet", "Net"]}, "takes its unet from 'my_unet'"),
        ({"unet": ["diffusers", "DDIMScheduler"]}, "can't be loaded as LDMSuperResolutionPipeline"),
    ],
)
def test_an_index_that_names_anything_else_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    latent_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "my_unet.py").write_text("raise SystemExit('this code must not run')")
    (tmp_path / "pipeline.py").write_text("raise SystemExit('this code must not run')")
    change_index(tmp_path, lambda index: index.update(change))
    with pytest.raises(NetworkError, match=sentence):
        load_teacher(tmp_path, scale=2)


def test_a_pickle_in_place_of_weights_is_not_run(tmp_path: Path) -> None:
    latent_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Explosive(tmp_path / "executed")}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(NetworkError, match="can't be loaded as LDMSuperResolutionPipeline"):
        load_teacher(tmp_path, scale=2)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Explosive(tmp_path / "executed")))
    assert (tmp_path / "executed").exists(), "the pickle should have been harmful"


def test_the_license_is_what_the_card_beside_the_pipeline_states(tmp_path: Path) -> None:
    latent_pipeline().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n# A pipeline\n")
    assert load_teacher(tmp_path, scale=2).license == "openrail++"


@pytest.mark.slow
def test_a_pipeline_on_the_hub_is_a_teacher_by_its_id(tmp_path: Path, pipelines: dict[str, Path]) -> None:
    code = f"""
import torch
from huggingface_hub import HfApi
from idc_hub.networks.teachers import load_teacher
HfApi().create_repo("alice/upscaler")
HfApi().upload_folder(repo_id="alice/upscaler", folder_path=r"{pipelines["latent"]}")
teacher = load_teacher("alice/upscaler", scale=2, steps=1)
print(teacher.name, teacher.kind, teacher.weights_sha256)
"""
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment("hf_alice", tmp_path / "home")
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    digest = load_teacher(pipelines["latent"], scale=2).weights_sha256
    assert result.stdout.split() == ["upscaler", "diffusers", digest]
