"""The card of a network: README.md, generated offline from the files in the network's folder.

`config.json` and `model.safetensors` define the network, `training.yaml` records how it was trained, and `results.json`
its PSNR and SSIM. `idc train` writes the first three, `idc evaluate --save` the last. `dataset.card.merge_card` keeps
what the publisher wrote.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from idc_hub.dataset.card import managed
from idc_hub.dataset.licenses import License
from idc_hub.errors import NetworkError
from idc_hub.hub_errors import page_of
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import read_config
from idc_hub.training.evaluation import RESULTS
from idc_hub.training.loop import FACTS

TASK = "image-to-image"


def render_model_card(folder: Path, *, repo_id: str, license: License) -> str:
    """The generated card of a network, without anything a user wrote.

    Args:
        folder: The network's folder; training.yaml and results.json may be missing.
        repo_id: The network's id on the Hub.
        license: The license to name.

    Returns:
        YAML front matter with `model-index`, and Markdown, with the protocol of every figure.

    Raises:
        NetworkError: The network cannot be loaded, or another file is damaged or belongs to other weights.
    """
    network, config = load(folder, scale=None), read_config(folder)
    training, results = _read_training(folder), _read_results(folder)
    front = _front_matter(config, training, results, license)
    sections = [
        _summary(network, config),
        _usage(repo_id, config["scale"]),
        _measured(results),
        _trained(training),
    ]
    body = "\n\n".join(section for section in sections if section)
    written = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{written}---\n\n{managed(body)}\n"


def _read_training(folder: Path) -> dict[str, Any]:
    """The contents of `training.yaml`; empty for imported weights."""
    path = folder / FACTS
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NetworkError(f"{path} cannot be read: {error}.") from error
    if not isinstance(facts, dict):
        raise NetworkError(f"{path} is not a training record of `idc train`.", "Remove it, or restore the original.")
    return facts


def _read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in `results.json`; raises a NetworkError if they belong to other weights."""
    path = folder / RESULTS
    if not path.exists():
        return []
    again = "Remove it, and run `idc evaluate --save` again."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        measured, results = facts["weights_sha256"], facts["results"]
        for result in results:
            for table in result["protocols"].values():
                float(table["psnr"]), float(table["ssim"]), str(result["testset"]), int(result["images"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"{path} does not hold results of `idc evaluate`.", again) from error
    if measured != weights_sha256(folder, scale=None):
        raise NetworkError(f"{path} holds results of other weights.", again)
    return results


def _front_matter(
    config: dict[str, Any], training: dict[str, Any], results: list[dict[str, Any]], license: License
) -> dict[str, Any]:
    figures = [
        EvalResult(
            task_type=TASK,
            task_name="Super-resolution",
            dataset_type=result["testset"],
            dataset_name=result["testset"],
            metric_type=metric,
            metric_value=table[metric],
            metric_name=f"{metric.upper()} ({protocol})",
        )
        for result in results
        for protocol, table in result["protocols"].items()
        for metric in ("psnr", "ssim")
    ]
    hub_set = training.get("data", {}).get("hub")
    data = ModelCardData(
        **license.metadata(),
        library_name="idc-hub",
        pipeline_tag=TASK,
        tags=["super-resolution", "idc-hub", config["architecture"].lower(), f"x{config['scale']}"],
        datasets=[hub_set] if hub_set else None,
        model_name=config["name"],
        eval_results=figures or None,
    )
    return {key: value for key, value in data.to_dict().items() if key != "model_name"}


def _summary(network: nn.Module, config: dict[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    arguments = ", ".join(f"{key} {value}" for key, value in config["arguments"].items())
    return (
        f"# {config['name']}, x{config['scale']}\n\n"
        f"{config['architecture']} ({arguments}) with {parameters:,} parameters: ×{config['scale']} super-resolution "
        "of bicubically downscaled RGB photographs."
    )


def _usage(repo_id: str, scale: int) -> str:
    return f"""\
## Use

```python
from idc_hub.networks import load

network = load("{repo_id}", scale={scale})  # float [B, 3, h, w] in [0, 1] to [B, 3, {scale}h, {scale}w], not clamped
```

On the command line of idc-hub, make an HR version of a condensed set with it, train it further, or evaluate it:

```bash
idc regenerate RUN --teacher {repo_id} --name HR_VERSION
idc train {repo_id} --data PHOTOGRAPHS --out FOLDER --scale {scale}
idc evaluate {repo_id} --testset FOLDER --scale {scale}
```"""


def _measured(results: list[dict[str, Any]]) -> str:
    """A table of the results with a column for each protocol."""
    if not results:
        return "## Measured\n\nNot measured yet."
    protocols = list(dict.fromkeys(protocol for result in results for protocol in result["protocols"]))
    lines = ["| test set | images | " + " | ".join(protocols) + " |", "| --- |" + " --- |" * (len(protocols) + 1)]
    names = [result["testset"] for result in results]
    for result in results:
        tables = (result["protocols"].get(protocol) for protocol in protocols)
        cells = (f"{table['psnr']:.2f} / {table['ssim']:.4f}" if table else "" for table in tables)
        name = result["testset"]
        if names.count(name) > 1 and "sha256" in result:  # the same name for other images, or for other LR
            name += f" ({'given LR' if result.get('lr_given') else 'bicubic LR'}, {result['sha256'][:8]})"
        lines.append(f"| {name} | {result['images']} | " + " | ".join(cells) + " |")
    return (
        "## Measured\n\nMean PSNR (dB) / SSIM over whole images, in float32. Each column is a protocol; figures under "
        "different protocols are not comparable.\n\n" + "\n".join(lines)
    )


def _trained(training: dict[str, Any]) -> str:
    if not training:
        return "## Training\n\nThere is no record of how these weights were trained."
    data = {key.replace("_", " "): value for key, value in training.get("data", {}).items()}
    if "hub" in data:
        data["hub"] = f"[{data['hub']}]({page_of(data['hub'], 'dataset')})"
    made = {"data": ", ".join(f"{key} {value}" for key, value in data.items())}
    made |= {key: training[key] for key in ("seconds", "device") if key in training}
    rates = training.get("learning_rates", {})
    made["learning rate"] = ", ".join(f"{rate} from step {step}" for step, rate in rates.items())
    made["packages"] = ", ".join(f"{name} {number}" for name, number in training.get("packages", {}).items())
    rows = "\n".join(f"| {key} | {value} |" for key, value in made.items() if value)
    recipe = yaml.safe_dump(training.get("recipe", {}), sort_keys=False, allow_unicode=True).rstrip()
    return f"## Training\n\n| | |\n| --- | --- |\n{rows}\n\nThe recipe of `idc train`:\n\n```yaml\n{recipe}\n```"
