"""What imports what: no circles, strategies without models, the module without strategies, extras only when used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = {path.stem: path for path in (Path(__file__).parent.parent / "lit_atex").glob("*.py")}
STRATEGIES = {"exposure", "adaptive", "bandit", "beta_policy", "reward", "beta_net", "learners", "reward_model"}
MODELS = {"models", "scoring", "decode", "rollout", "teacher", "solver", "module"}


def imported(name: str) -> set[str]:
    """Dotted names that a file imports as it is imported itself; what stands in functions or is for types is not."""
    found: set[str] = set()
    for node in ast.parse(FILES[name].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


OURS = {
    name: {parts[1] for dotted in imported(name) if (parts := dotted.split("."))[0] == "lit_atex" and parts[1] in FILES}
    for name in FILES
}


def reached(name: str) -> set[str]:
    """Our modules that come with one, directly or not."""
    found, waiting = set[str](), [name]
    while waiting:
        new = OURS[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_nothing_imports_itself_in_a_circle() -> None:
    assert {"distil", "types"} <= reached("module")
    assert [name for name in FILES if name in reached(name)] == []


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_strategy_never_sees_a_model(strategy: str) -> None:
    assert reached(strategy) & MODELS == set()
    both = {strategy, *reached(strategy)}
    assert {d.split(".")[0] for name in both for d in imported(name)} & {"lightning", "transformers"} == set()


def test_the_module_never_imports_a_strategy() -> None:
    assert reached("module") & STRATEGIES == set()


def test_what_is_optional_or_slow_is_imported_where_it_is_used() -> None:
    late = {"transformers", "datasets", "matplotlib", "math_verify", "peft", "vllm", "ray", "pandas", "scipy", "sympy"}
    assert {(n, d) for n in FILES for d in imported(n) if d.split(".")[0] in late} == set()
