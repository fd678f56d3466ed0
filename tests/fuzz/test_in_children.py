"""Wrong inputs by the thousand, in child processes: none of them crashes one, and each ends well."""

from __future__ import annotations

import pytest

from tests.fuzz.child import run_in_child


@pytest.mark.parametrize("file", ["operations.py", "configuration.py", "folders.py"])
def test_no_input_crashes(file, tmp_path):
    print(run_in_child(file, tmp_path))
