"""What a file is, by its type first: what is no regular file is not opened."""

import os
from pathlib import Path

from flopprof.model.detect import detect


def test_a_pipe_or_device_is_told_without_opening_it_and_an_empty_file_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")

    assert detect(pipe).where == "special"
    assert detect(Path("/dev/null")).where == "special"
    assert detect(empty).where == "head"
