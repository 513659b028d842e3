"""`Client` is AsyncClient for programs that do not wait: the same methods, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from datas3tfs import AsyncClient, Client


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def parameters(kind: type, name: str) -> dict[str, tuple[object, object]]:
    found = inspect.signature(getattr(kind, name)).parameters.values()
    return {one.name: (one.kind, one.default) for one in found}


def test_both_have_the_same_methods() -> None:
    assert public(Client) == public(AsyncClient)


@pytest.mark.parametrize("name", [*sorted(public(AsyncClient)), "__init__"])
def test_a_method_takes_the_same(name: str) -> None:
    takes = parameters(AsyncClient, name)
    takes.pop("transport", None)  # for a server in the same process, which waits
    assert parameters(Client, name) == takes
