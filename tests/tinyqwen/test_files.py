"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from tinyqwen.errors import DiskFullError, UsageError
from tinyqwen.files import write_whole


@pytest.mark.parametrize("number, error", [
    (errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EFBIG, UsageError), (errno.EIO, UsageError),
])  # fmt: skip
@pytest.mark.parametrize("when", ["write_text", "replace"])
def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch, number, error, when):
    (tmp_path / "a").write_text("old")
    write = Path.write_text

    def fails(path, *_, **__):
        write(path, "hal")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(error, match=r"^\S+/a: (the disk is full|cannot be written)"):
        patch.setattr(Path, when, fails)
        write_whole(tmp_path / "a", "half of this")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old" or when == "replace"


def test_a_full_disk_is_said(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DiskFullError):
        write_whole("/dev/full", "x")
    write_whole("/dev/null", "x")
    assert not Path("/dev/null").is_file(), "a device stays one"


def test_a_link_stays_one(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "link").symlink_to("a")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "new"
