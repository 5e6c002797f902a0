"""Files and folders written whole or not at all: through links, into pipes, onto full disks."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from flopprof.errors import UsageError
from flopprof.files import replacing, write_atomically, writing


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there.md").write_text("old")
    (tmp_path / "link.md").symlink_to("there.md")

    write_atomically(tmp_path / "link.md", "new")

    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "there.md").read_text() == "new"


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")

    with writing(tmp_path / "link") as folder:
        (folder / "new").touch()

    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["new"]


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()

    write_atomically(pipe, "all of it")

    reader.join(timeout=10)
    assert read == [b"all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_that_is_full_says_so_and_stays_a_device(tmp_path):
    before = Path("/dev/full").stat()
    if not stat.S_ISCHR(before.st_mode):
        pytest.skip("no /dev/full here")
    (tmp_path / "out.md").symlink_to("/dev/full")  # were it replaced, only the link would be

    with pytest.raises(UsageError, match="the disk is full"):
        write_atomically(tmp_path / "out.md", "text")
    with pytest.raises(UsageError, match="exists and is no folder"), writing("/dev/full"):
        pass

    assert Path("/dev/full").stat().st_rdev == before.st_rdev


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_users_mask_is_honoured(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "text")
        with writing(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("none/x.md", "make its folder first"), (".", "name a file in it"), ("n" * 300, "shorter")],
)
def test_each_refusal_has_its_own_remedy(tmp_path, name, remedy):
    with pytest.raises(UsageError) as raised, replacing(tmp_path / name):
        pass

    assert remedy in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_while_a_folder_is_written_is_not_blamed_on_the_folder(tmp_path):
    def read_nothing():
        with writing(tmp_path / "x"):
            raise UsageError("none.json cannot be read", remedy="name another") from OSError(
                errno.ENOENT, "no such file"
            )

    with pytest.raises(UsageError, match="cannot be read"):
        read_nothing()
