"""A compiled divergence against the same as it is written."""

from __future__ import annotations

import copy
import csv
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_atex.compiled import Compiled
from lit_atex.divergence import JSD, Divergence, ForwardKL
from lit_atex.parts import described

compiles = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler on a CPU"
)


@compiles
@pytest.mark.slow
def test_it_is_what_it_compiles():
    """The tests of on_compiled.py, in a process without the checks of shapes."""
    file = Path(__file__).with_name("on_compiled.py")
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


def test_where_nothing_is_differentiated_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_: pytest.fail("compiled"))
    divergence = JSD()
    student, teacher, ids = torch.randn(4, 9), torch.randn(4, 9), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        got = Compiled(of=divergence).per_token(student, teacher, ids)
    assert torch.equal(got.value, divergence.per_token(student, teacher, ids).value)


def test_what_cannot_be_compiled_says_how_to_go_on(monkeypatch):
    def broken(*_):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    given = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9), torch.zeros(4, dtype=torch.long)
    with pytest.raises(RuntimeError, match="no working") as caught:
        Compiled(of=JSD()).per_token(*given)
    assert "name what it compiles instead" in caught.value.__notes__[0]


def test_it_is_what_it_compiles_as_far_as_others_ask():
    one = Compiled(of=JSD(temperature=0.7, beta=0.3))
    assert one.temperature == 0.7
    assert described("divergence", one) != described("divergence", Compiled(of=JSD(temperature=0.7)))
    vars(one)["_compiled"] = lambda: None  # no other process can read what was compiled
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one
        assert "_compiled" not in vars(other)
    with pytest.raises(ValueError, match=r"model\.divergence\.of is compiled already"):
        Compiled(of=Compiled(of=ForwardKL()))


def test_configured_by_class_path():
    parser = ArgumentParser()
    parser.add_argument("--divergence", type=Divergence)
    words = ["--divergence", "lit_atex.compiled.Compiled", "--divergence.of", "JSD", "--divergence.of.beta", "0.3"]
    config = parser.parse_args(words)
    assert parser.instantiate(config).divergence == Compiled(of=JSD(beta=0.3))
    assert parser.instantiate(parser.parse_string(parser.dump(config))).divergence == Compiled(of=JSD(beta=0.3))


@compiles
@pytest.mark.slow
def test_a_run_with_it_has_the_losses_of_one_without(tmp_path):
    losses = {}
    for name, words in {"plain": ["JSD"], "compiled": ["Compiled", "--model.divergence.of", "JSD"]}.items():
        short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--run", name]
        command = ["fit", "--config", "base", "--config", "tiny", *short, "--model.divergence", *words]
        command = [sys.executable, "-m", "lit_atex", *command]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        with (tmp_path / name / "metrics.csv").open() as file:
            losses[name] = [float(row["loss/divergence"]) for row in csv.DictReader(file) if row["loss/divergence"]]
    assert len(losses["plain"]) == 2
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
