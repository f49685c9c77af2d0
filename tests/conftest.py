"""Fixtures that all tests share."""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]

# In the background, or under nohup, these are ignored, and the processes that tests start would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def _import_spandrel() -> None:
    """Import spandrel where torchvision is not installed, as it cannot be beside the CPU build of torch.

    spandrel needs three of its names, for architectures that no test uses. They are lent while it is imported, and no
    longer: other packages must not believe that there is a torchvision.
    """
    functional = ModuleType("torchvision.transforms.functional")
    functional.InterpolationMode = functional.normalize = functional.rotate = None  # type: ignore[attr-defined]
    lent = {"torchvision": ModuleType("torchvision"), "torchvision.transforms": ModuleType("torchvision.transforms")}
    lent[functional.__name__] = functional
    sys.modules |= lent
    try:
        import spandrel  # noqa: F401
    finally:
        for name in lent:
            del sys.modules[name]


if find_spec("spandrel") and not find_spec("torchvision"):
    _import_spandrel()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The photographs, test sets and weights that stand beside the repository where the project is developed."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs ../shared (photographs and weights that are not part of the repository)")
    return folder
