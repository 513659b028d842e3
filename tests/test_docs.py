"""The documents keep their word: every test they name exists, every file they point to is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_TEST = re.compile(r"`([a-z0-9_/]+\.py)::(test_\w+)(…?)")
_LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_a_document_names_exists(document: Path) -> None:
    missing = []
    for file, name, shortened in _TEST.findall(document.read_text()):
        known = functions_in(ROOT / "tests" / file) if (ROOT / "tests" / file).exists() else set()
        if not any(test.startswith(name) if shortened else test == name for test in known):
            missing.append(f"{file}::{name}")
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_points_to_exists(document: Path) -> None:
    targets = _LINK.findall(document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_semantics_name_a_test_for_every_claim() -> None:
    rows = [line for line in (ROOT / "docs/SEMANTICS.md").read_text().splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith("| claim |")]
    assert len(claims) > 30
    assert [claim for claim in claims if "::test_" not in claim] == []
