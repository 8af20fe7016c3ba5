"""The files of this tree, as git sees them."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from local.paths import ROOT


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file of the tree that git knows or would take; without git tests are skipped, on CI they fail."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"git does not list the tree: {listed.stderr}")
        pytest.skip("not a git tree")
    files = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(sorted({file for file in files if file.is_file()}))
