"""A tiny model's folder, and a way to run commands on it."""

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.cli.main import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-Instruct")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def tinyqwen(capsys, monkeypatch):
    """Run a command in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leave:  # argparse
            code = leave.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
