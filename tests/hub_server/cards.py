"""README front matter: what the Hub accepts in it."""

from typing import Any

import yaml

from .wire import Request, Response, as_json

_CREATIVE_COMMONS = {"cc", "cc0-1.0", *(f"cc-by{rest}-4.0" for rest in ("", "-sa", "-nc", "-nd", "-nc-sa"))}
LICENSES = _CREATIVE_COMMONS | {"apache-2.0", "bsd-3-clause", "gpl-3.0", "mit", "odc-by", "odbl", "openrail"}
LICENSES |= {"other", "unknown", "unlicense"}


def front_matter(card: str) -> tuple[dict[str, Any] | None, str | None]:
    """The YAML block at the top of a README and what is wrong with it.

    Returns:
        The mapping (None without a block) and an error message (None when it can be read).
    """
    lines = card.replace("\r\n", "\n").split("\n")
    if lines[0] != "---" or "---" not in lines[1:]:
        return None, None
    try:
        block = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError as error:
        return None, f"YAML cannot be read: {error}"
    return (block, None) if isinstance(block, dict) else (None, "The YAML block is not a mapping")


def problems(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README's front matter."""
    block, error = front_matter(card)
    if error:
        return [error], []
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    licenses = block.get("license", [])
    for license in [licenses] if isinstance(licenses, str) else licenses:
        if license not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    configs = block.get("configs", [])
    if not isinstance(configs, list) or any("config_name" not in config for config in configs):
        return [*errors, '"configs" must be a list of mappings with a "config_name"'], []
    names = [config["config_name"] for config in configs]
    if len(names) != len(set(names)):
        errors.append('"configs" has a "config_name" twice')
    if sum(bool(config.get("default")) for config in configs) > 1:
        errors.append('"configs" has more than one default')
    return errors, []


def validate_yaml(request: Request) -> Response:
    """POST /api/validate-yaml: always JSON, 400 when the Hub would refuse the README."""
    errors, warnings = problems(request.json()["content"])
    answer = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return as_json(answer, 400 if errors else 200)
