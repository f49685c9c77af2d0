"""idc-hub: condense a super-resolution training set, remake its HR side, publish it on the Hugging Face Hub."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idc_hub.api import benchmark as benchmark
    from idc_hub.api import condense as condense
    from idc_hub.api import pull as pull
    from idc_hub.api import push as push
    from idc_hub.api import quality as quality
    from idc_hub.api import regenerate as regenerate
    from idc_hub.api import select as select
    from idc_hub.api import status as status
    from idc_hub.api import verify as verify
    from idc_hub.errors import IDCError as IDCError
    from idc_hub.recipe import Recipe as Recipe

# Nothing heavy is imported before it is used (PEP 562): `idc --help` must not wait for torch.
_WHERE = {
    "IDCError": "errors",
    "Recipe": "recipe",
    **dict.fromkeys(
        ("benchmark", "condense", "pull", "push", "quality", "regenerate", "select", "status", "verify"), "api"
    ),
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
