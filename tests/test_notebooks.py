"""The notebooks run, define nothing, and are committed with their figures and nothing else."""

import ast
import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("refresh", ROOT / "notebooks/refresh.py")
refresh = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(refresh)
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def figures(notebook):
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in notebook.cells]


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_reveal_and_prompts", "02_divergences", "03_exposure_strategies", "04_train_and_read_a_run",
        "05_results"]  # fmt: skip


@each
def test_nothing_is_defined_that_could_be_used_elsewhere(path):
    tree = ast.parse("\n".join(cell.source for cell in code(path)))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert any(module == "lit_atex" or module.startswith("lit_atex.") for module in imported)


@each
def test_only_figures_are_committed(path):
    for cell in code(path):
        assert cell.execution_count is None
        assert all(
            output.output_type == "display_data" and set(output.data) == {"image/png"} for output in cell.outputs
        )
    assert any(cell.outputs for cell in code(path))


@each
def test_the_committed_notebook_is_what_refresh_writes(path):
    read = nbformat.read(path, as_version=4)
    assert nbformat.writes(refresh.figures_only(read)) + "\n" == path.read_text(encoding="utf-8")
    nbformat.validate(read)


@pytest.mark.slow
@each
def test_it_runs_and_draws_what_is_committed(path):
    fresh = refresh.execute(path)
    assert figures(fresh) == figures(nbformat.read(path, as_version=4))
    assert sum(figures(fresh)) >= 1
