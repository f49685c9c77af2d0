"""Licenses as the Hub names them in a card: `license`, and for `other` also `license_name` and `license_link`."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from idc_hub.errors import RecipeError

LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
"""Names of a license's text in a repository folder; it is pushed and pulled with the set."""

_IDENTIFIERS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
"""

LICENSES = frozenset(_IDENTIFIERS.split())
"""The Hub's identifiers: https://huggingface.co/docs/hub/repositories-licenses"""

_LIST = "https://huggingface.co/docs/hub/repositories-licenses lists all identifiers."


@dataclass(frozen=True)
class License:
    """The license on a card.

    Attributes:
        identifier: The Hub's identifier, or several in a list.
        name: Name of a license that the Hub does not list; only for `other`.
        link: Its address, or its file in the repository.
    """

    identifier: str | list[str]
    name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> "License | None":
        """The license that a card's metadata names; None if there is none."""
        identifier = metadata.get("license")
        return cls(identifier, metadata.get("license_name"), metadata.get("license_link")) if identifier else None

    def metadata(self) -> dict[str, Any]:
        """The card's keys."""
        keys = {"license": self.identifier, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in keys.items() if value}

    def check(self) -> None:
        """Check it as the Hub does, before anything is sent.

        Raises:
            RecipeError: The Hub has no such identifier, or `other` has no valid name and link.
        """
        for identifier in self.identifier if isinstance(self.identifier, list) else [self.identifier]:
            if identifier not in LICENSES:
                near = get_close_matches(str(identifier).lower().replace(" ", "-"), sorted(LICENSES), 1)
                meant = f"Did you mean {near[0]}? " if near else ""
                raise RecipeError(f"The Hub has no license {identifier!r}.", meant + _LIST)
        if self.identifier == "other":
            if not (self.name and self.link):
                raise RecipeError(
                    "The license `other` needs a name and a link.",
                    "Add --license-name and --license-link: an address, or LICENSE if that file is in the repository.",
                )
            if not re.fullmatch("[a-z0-9.-]+", self.name):
                raise RecipeError(
                    f"{self.name!r} is not allowed as --license-name.", 'Use lower-case letters, digits, "-" and ".".'
                )
            if self.link not in LICENSE_FILES and not re.fullmatch(r"https?://\S+", self.link):
                raise RecipeError(
                    f"{self.link!r} is not allowed as --license-link.", "Give an https:// address, or LICENSE."
                )


def choose(given: License | None, *cards: dict[str, Any]) -> License | None:
    """The license to publish: the one given, completed from the first card that names the same, or that card's.

    Args:
        given: The arguments; None: none were given.
        cards: Metadata of the present cards.
    """
    for found in filter(None, map(License.of, cards)):
        if given is None:
            return found
        if found.identifier == given.identifier:
            return License(given.identifier, given.name or found.name, given.link or found.link)
    return given
