"""The user may say where things are kept."""

import pytest

from backends.cache_folder import cache_folder


@pytest.mark.parametrize(
    ("said", "folder"),
    [
        ({"TINYQWEN_CACHE": "/own", "XDG_CACHE_HOME": "/users"}, "/own"),
        ({"TINYQWEN_CACHE": "~/own"}, "/home/me/own"),
        ({"XDG_CACHE_HOME": "/users"}, "/users/tinyqwen"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/tinyqwen"),
        ({}, "/home/me/.cache/tinyqwen"),
    ],
)
def test_where_it_is(monkeypatch, said, folder):
    for name in ("TINYQWEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **said}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == folder
