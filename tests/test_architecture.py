"""The rules of the house that a program can check (import-linter's are in .importlinter)."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "datas3tfs").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MODULE_LINES = 400
FUNCTION_LINES = 50
EMPTY_NAMES = {"util", "utils", "common", "helper", "helpers", "manager", "misc"}
READS_ENVIRONMENT = {"datas3tfs/config.py"}
# A pyfuse3 handler is async because the library awaits it; a Protocol's stub has no body.
ASYNC_BY_CONTRACT = {"Protocol", "Operations"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Walk what *function* itself does, not what functions defined in it do."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def base_names(node: ast.ClassDef) -> set[str]:
    return {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}


@every(MODULES)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(parsed(path)), "no docstring"


@every(MODULES)
def test_a_module_is_one_idea(path: Path) -> None:
    assert path.stem not in EMPTY_NAMES, "the name says nothing"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES


@every(MODULES)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    long = [
        f"{function.name}: {length}"
        for function in functions(parsed(path))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


@every(MODULES)
def test_no_import_is_for_type_checking_only(path: Path) -> None:
    names = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
    assert "TYPE_CHECKING" not in names | attributes


@every([path for path in MODULES if name(path) not in READS_ENVIRONMENT])
def test_only_config_reads_the_environment(path: Path) -> None:
    tree = parsed(path)
    read = {"environ", "environb", "getenv", "getenvb", "expandvars"}
    used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in read]
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
        if alias.name in read
    ]
    assert not used + imported


@every(MODULES)
def test_async_means_it_may_wait(path: Path) -> None:
    tree = parsed(path)
    exempt = {
        function
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and base_names(node) & ASYNC_BY_CONTRACT
        for function in node.body
        if isinstance(function, Function)
    }
    never_wait = [
        function.name
        for function in functions(tree)
        if isinstance(function, ast.AsyncFunctionDef) and function not in exempt and not may_wait(function)
    ]
    assert not never_wait


def may_wait(function: ast.AsyncFunctionDef) -> bool:
    """Tell whether *function* waits, lets its caller wait (a context manager), or does nothing at all."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return not body or any(
        isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Yield)
        or (isinstance(node, ast.comprehension) and node.is_async)
        for node in own_nodes(function)
    )


@every(MODULES + TESTS)
def test_every_ignore_has_its_reason(path: Path) -> None:
    # As in `type: ignore[code]  # why` and `noqa: CODE why`; a bare one silences what nobody looked at.
    marker = re.compile(r"#\s*(?:type:\s*ignore|noqa)\b(?P<rest>.*)")
    reasoned = re.compile(r"(?:\[[\w, -]+\]|:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)\W+\w+.*\w")
    bare = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if path != Path(__file__).resolve()
        and (match := marker.search(line))
        and not reasoned.match(match["rest"])
    ]
    assert not bare


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(found)
