"""The real client in its own process: reads [verb, arguments] as JSON lines, writes one JSON line for each.

huggingface_hub and datasets take HF_ENDPOINT, HF_HOME and their like from the environment when they are imported, so
that every consumer has to be a fresh process. Looking up any other host than the loopback address is an error here.
"""

import hashlib
import json
import socket
import sys
from dataclasses import asdict
from typing import Any

_getaddrinfo = socket.getaddrinfo


def _loopback_only(host: Any, *rest: Any, **options: Any) -> Any:
    if host not in ("127.0.0.1", b"127.0.0.1"):
        raise AssertionError(f"somebody asks for the address of {host}")
    return _getaddrinfo(host, *rest, **options)


def push(folder: str, repo_id: str, **options: Any) -> dict[str, Any]:
    """`idc push`."""
    from idc_hub.verbs import push as verb

    return asdict(verb.push(folder, repo_id, **options))


def pull(repo_id: str, run_dir: str, **options: Any) -> dict[str, Any]:
    """`idc pull`."""
    from idc_hub.verbs import pull as verb

    return asdict(verb.pull(repo_id, run_dir=run_dir, **options))


def delete_version(run_or_repo: str, name: str, **options: Any) -> dict[str, Any]:
    """`idc delete-version`."""
    from idc_hub.verbs import delete_version as verb

    return asdict(verb.delete_version(run_or_repo, name, **options))


def diff(a: str, b: str) -> dict[str, Any]:
    """`idc diff`."""
    from idc_hub.verbs import diff as verb

    return asdict(verb.diff(a, b, progress=False))


def load(repo_id: str, name: str | None = None, revision: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """What a consumer gets from `load_dataset`: columns, keys, and the SHA-256 of all pixels in order."""
    import datasets
    import numpy as np

    datasets.config.USE_PARQUET_EXPORT = False  # asks a host of its own otherwise
    rows = datasets.load_dataset(repo_id, name, revision=revision, split="train", streaming=streaming)
    keys, pixels = [], hashlib.sha256()
    for row in rows:
        keys.append([row["instance_id"], row["patch_index"]])
        for column in ("lr", "hr"):
            pixels.update(np.asarray(row[column]).tobytes())
    return {"columns": list(rows.features), "keys": keys, "pixels": pixels.hexdigest()}


def delete_config(repo_id: str, name: str) -> None:
    """What a user of `datasets` does to remove a config."""
    from datasets.hub import delete_from_hub

    delete_from_hub(repo_id, name)


def configs(repo_id: str, revision: str | None = None) -> list[str]:
    """The configs of a dataset."""
    import datasets

    return sorted(datasets.get_dataset_config_names(repo_id, revision=revision))


def api(method: str, **arguments: Any) -> None:
    """Any method of HfApi, for what users do by hand; `text` stands for the content of a file."""
    from huggingface_hub import HfApi

    if "text" in arguments:
        arguments["path_or_fileobj"] = arguments.pop("text").encode()
    getattr(HfApi(), method)(**arguments)


def main() -> None:
    """Answer until the input ends. Output of libraries goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    socket.getaddrinfo = _loopback_only
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"result": globals()[verb](**arguments)}
        except Exception as error:
            kind, message = type(error).__name__, str(error)
            answer = {"error": kind, "message": message, "exit_code": getattr(error, "exit_code", None)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
