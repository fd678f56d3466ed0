"""What runs write down."""

from __future__ import annotations

import os

from pamkd.runs.logs import write_atomically


def test_two_processes_write_one_file(tmp_path):
    """As two commands do that fill one table."""
    path = tmp_path / "table.md"

    def write(mine: str) -> None:
        for _ in range(300):
            write_atomically(path, 10_000 * mine)
            assert path.read_text() in ("parent" * 10_000, "child" * 10_000)

    child = os.fork()
    if child == 0:
        try:
            write("child")
            os._exit(0)
        finally:
            os._exit(1)
    write("parent")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == [path]
