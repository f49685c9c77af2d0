"""The installed package as a wheel: it carries our code to machines that can install it from nowhere else."""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from idc_hub.errors import ClusterError
from idc_hub.recipe_reader import bundled_recipes

PROJECT = "idc-hub"
PACKAGES = ("idc_hub", "idc_cli")
_TAGS = f"Wheel-Version: 1.0\nGenerator: {PROJECT}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel() -> tuple[str, bytes]:
    """The wheel of the code that is running, from an installation as well as from a clone installed as editable.

    It needs no build backend and no network: the files are those that Python imports, the metadata is that of the
    installation. Equal code makes equal bytes.

    Returns:
        The wheel's file name and its content.

    Raises:
        ClusterError: The package is not installed.
    """
    try:
        installed = distribution(PROJECT)
    except PackageNotFoundError as error:
        raise ClusterError(
            f"{PROJECT} is not installed here (its folder is only on Python's path), so no wheel can be made of it.",
            "Install it first: pip install --editable FOLDER.",
        ) from error
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ClusterError(f"The installation of {PROJECT} has no {package}.", f"Install {PROJECT} again.")
        folder = Path(spec.origin).parent
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"{package}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    for name, path in bundled_recipes().items():  # a clone has them beside the package
        files[f"{PACKAGES[0]}/recipes/{name}.yaml"] = path.read_bytes()
    stem = f"{PROJECT.replace('-', '_')}-{installed.version}"
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        if text := installed.read_text(name):
            files[f"{stem}.dist-info/{name}"] = text.encode()
    files[f"{stem}.dist-info/WHEEL"] = _TAGS.encode()
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in sorted(files.items())]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            member = zipfile.ZipInfo(name)  # dated 1980
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return f"{stem}-py3-none-any.whl", wheel.getvalue()


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
