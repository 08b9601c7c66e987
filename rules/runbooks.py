"""The runbooks of docs/runbooks as an installation has them: one file beside the rules (runbooks.json), by class."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path

from rankscope.errors import ConfigurationError

PATH = Path(__file__).with_name("runbooks.json")
#: Where the pages are written, and what a finding names.
DIRECTORY = "docs/runbooks"


def runbook(slug: str, path: Path = PATH) -> str:
    """The page of a class, in Markdown. Raises ConfigurationError where there is none, with what is nearest."""
    pages = runbooks(path)
    if slug not in pages:
        near = ", ".join(get_close_matches(slug, pages, 3, 0.4))
        todo = f"did you mean {near}?" if near else "`rankscope runbook` lists them"
        raise ConfigurationError(f'no runbook "{slug}"', where="runbook", todo=todo)
    return pages[slug]


def runbooks(path: Path = PATH) -> dict[str, str]:
    """Every page by its class. Raises ConfigurationError."""
    try:
        pages: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot be read ({error})", where=str(path), todo="reinstall") from error
    return pages


def runbooks_json() -> str:
    """The file, from the pages of the source tree."""
    pages = Path(__file__).resolve().parent.parent / DIRECTORY
    return (
        json.dumps({page.stem: page.read_text(encoding="utf-8") for page in sorted(pages.glob("*.md"))}, indent=1)
        + "\n"
    )
