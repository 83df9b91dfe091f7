"""Documents point at what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").rglob("*.md"),
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
PATH_IN_CODE = re.compile(r"`((?:accelerators|config|daemon|docs|examples|tests)/[\w./-]+)`")


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as the common hosts make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def resolves(link: str, document: Path) -> bool:
    """Whether a link of this document points at something."""
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_link_between_documents_resolves(document):
    links = LINK.findall(CODE.sub("", document.read_text()))

    assert [link for link in links if "://" not in link and not resolves(link, document)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_path_of_this_tree_that_is_named_exists(document):
    named = PATH_IN_CODE.findall(document.read_text())

    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_no_document_names_a_path_of_somebodys_machine(document):
    assert re.findall(r"(?:/home|/root|/work|/Users)/\w+", document.read_text()) == []
