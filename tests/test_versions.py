"""Which code ran: the commit of the checkout that the package belongs to, never of one that it lies in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lit_atex
from lit_atex.versions import PACKAGES, git, versions

PACKAGE = Path(lit_atex.__file__).parent
CODE = "from lit_atex.versions import git; print(git('rev-parse', 'HEAD'), git('status', '--porcelain'))"


def run(where, *words):
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(words, cwd=where, env=os.environ | names | {"PYTHONPATH": str(where)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_a_package_inside_somebodys_checkout_has_no_commit(tmp_path):
    (tmp_path / "lit_atex").mkdir()
    for name in ("__init__.py", "versions.py"):
        shutil.copy(PACKAGE / name, tmp_path / "lit_atex")
    assert run(tmp_path, sys.executable, "-c", CODE) == "None None"  # no checkout
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "git", "commit", "-q", "--allow-empty", "-m", "theirs")
    assert run(tmp_path, sys.executable, "-c", CODE) == "None None"  # theirs, not ours
    run(tmp_path, "git", "add", "lit_atex")
    run(tmp_path, "git", "commit", "-q", "-m", "ours")
    commit = run(tmp_path, "git", "rev-parse", "HEAD")
    assert run(tmp_path, sys.executable, "-c", CODE).startswith(commit)


def test_versions_are_told():
    found = versions()
    assert found.keys() == {"python", *PACKAGES}
    assert found["python"] == sys.version.split()[0]
    assert git("no-such-command") is None
