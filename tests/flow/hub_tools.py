"""Tools for tests of the Hub: clients in their own processes, and small handmade repository folders."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).parents[2]
INSTANCES = {"bird": 3, "house": 1, "zebra": 2}


class Refused(Exception):
    """An exception in the client's process: its class, its message and its exit code."""

    def __init__(self, kind: str, message: str, exit_code: int | None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.exit_code = kind, message, exit_code


class Client:
    """The real client in a fresh process with a fresh HF_HOME: `client("push", folder=…, repo_id=…)`."""

    def __init__(self, environment: dict[str, str], home: Path) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        python_path = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        home.mkdir()
        self.stderr = home / "stderr.txt"
        with self.stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("hub_client.py"))],
                env=inherited | python_path | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=home,
                text=True,
            )

    def start(self, verb: str, **arguments: Any) -> None:
        """Sends a request and does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, arguments], default=str) + "\n")
        self._process.stdin.flush()

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """Sends a request and waits for its result.

        Raises:
            Refused: The process raised an exception.
        """
        self.start(verb, **arguments)
        return self.answer()

    def answer(self) -> Any:
        """Waits for the result of a request that was started.

        Raises:
            Refused: The process raised an exception.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client died: {self.stderr.read_text()[-2000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"], answer["message"], answer["exit_code"])
        return answer["result"]

    def kill(self) -> None:
        """Ends the process as `kill -9` does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def lr_patches(seed: int) -> dict[str, np.ndarray]:
    """uint8 [n, 3, 8, 8] for every instance."""
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8) for name, count in INSTANCES.items()}


def hr_patch(lr: np.ndarray, teacher: int) -> np.ndarray:
    """The HR patch that teacher number `teacher` makes from an LR patch: uint8 [3, 16, 16]."""
    return lr.repeat(2, axis=1).repeat(2, axis=2) ^ np.uint8(teacher)


def pixels(lr: dict[str, np.ndarray], teacher: int) -> str:
    """SHA-256 of all pixels of an HR version in row order, as `hub_client.load` computes it from images."""
    digest = hashlib.sha256()
    for patches in lr.values():
        for patch in patches:
            for image in (patch, hr_patch(patch, teacher)):
                digest.update(image.transpose(1, 2, 0).tobytes())
    return digest.hexdigest()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(folder: Path, lr: dict[str, np.ndarray], teacher: int) -> int:
    """Two shards of an HR version; returns their size."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [("instance_id", pa.string()), ("patch_index", pa.int32()), ("lr", image), ("hr", image)]
    features = {
        "instance_id": {"dtype": "string", "_type": "Value"},
        "patch_index": {"dtype": "int32", "_type": "Value"},
        "lr": {"_type": "Image"},
        "hr": {"_type": "Image"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = [
        {
            "instance_id": name,
            "patch_index": k,
            "lr": {"bytes": _png(patch), "path": f"{name}-{k}-lr.png"},
            "hr": {"bytes": _png(hr_patch(patch, teacher)), "path": f"{name}-{k}-hr.png"},
        }
        for name, patches in lr.items()
        for k, patch in enumerate(patches)
    ]
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:4], rows[4:])):
        path = folder / f"train-{number:05d}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=pa.schema(columns, metadata)), path)
    return sum(path.stat().st_size for path in folder.iterdir())


def make_repository(folder: Path, versions: dict[str, int], *, seed: int = 0) -> Path:
    """Write a repository folder by hand from the documented format, without code of idc-hub.

    Args:
        folder: `repo/`; must not exist.
        versions: HR versions and the number of the teacher of each; the first is the default.
        seed: Which LR patches.
    """
    lr = lr_patches(seed)
    digest = hashlib.sha256()
    for name, patches in lr.items():
        digest.update(f"{name}\0{','.join(map(str, patches.shape))}\0".encode() + patches.tobytes())
    facts = {"format": "idc", "format_version": 1, "scale": 2, "lr_recipe_hash": "ab" * 8}
    shard, index = "lr-00001-of-00001.safetensors", "lr.safetensors.index.json"
    (folder / "lr").mkdir(parents=True)
    save_file(lr, folder / "lr" / shard, metadata={"idc": json.dumps(facts, sort_keys=True)})
    total = sum(patches.nbytes for patches in lr.values())
    about = {"total_size": total, "lr_digest": digest.hexdigest()}
    (folder / "lr" / index).write_text(json.dumps({"metadata": about, "weight_map": dict.fromkeys(lr, shard)}))
    manifest: dict[str, Any] = facts | {
        "name": "tiny-x2",
        "patch_size": 8,
        "lr_digest": digest.hexdigest(),
        "instances": len(lr),
        "patches": 6,
        "default": next(iter(versions)),
        "hr_versions": {},
        "packages": {"idc-hub": "0.1.0"},
        "condensation": {},
    }
    for name, teacher in versions.items():
        size = _write_parquet(folder / "data" / name, lr, teacher)
        about_teacher = {"name": name, "kind": "network", "scale": 2, "weights_sha256": None, "license": None}
        manifest["hr_versions"][name] = {
            "teacher": about_teacher,
            "lr_digest": digest.hexdigest(),
            "date": f"2026-01-0{teacher + 1}",
            "patches": 6,
            "bytes": size,
        }
    (folder / "idc.json").write_text(json.dumps(manifest, sort_keys=True, indent=2) + "\n")
    (folder / "recipe.yaml").write_text("name: tiny-x2\nscale: 2\n")
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"data/{name}/train-*"}]} for name in versions
    ]
    configs[0]["default"] = True
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def write_prose(card: str, prose: str) -> str:
    """The card with a user's paragraph at the end."""
    return f"{card.rstrip()}\n\n{prose}\n"


def files_below(folder: Path) -> dict[str, bytes]:
    """Contents of all files by relative path, without the empty lock file of a repository folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".repo.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def sha256(path: Path) -> str:
    """The digest under which an LFS file is stored."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
