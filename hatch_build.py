"""What the package's page needs and the repository's own files do not say: addresses.

Links and pictures in the README are relative, as a checkout and its host want them. On a package's page they would lead
nowhere, so the built package has them absolute. As long as `repository` in pyproject.toml is empty, links are plain
text there, pictures their description, and the metadata names no address.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class Addresses(MetadataHookInterface):
    """Sets the package's description and its URLs."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = self.config["repository"].rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(readme, repository)}
        metadata["urls"] = urls(repository)


def absolute(text: str, repository: str) -> str:
    """The text with addresses for its relative links and pictures, or without them where there is no repository."""

    def address(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if not repository:
            return words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return RELATIVE_LINK.sub(address, text)


def urls(repository: str) -> dict[str, str]:
    """The package's addresses by their names."""
    if not repository:
        return {}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
