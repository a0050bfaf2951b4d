"""Runs the JavaScript tests beside this file with Node's own runner, so that one command runs everything."""
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_drawing_functions_do_what_their_tests_claim():
    files = sorted(map(str, Path(__file__).parent.glob("*.test.mjs")))
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
