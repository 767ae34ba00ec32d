"""What holds for all tests; their fakes are in `fakes.py`.

It imports nothing that takes time: the process that hands out the tests reads it before it starts those that run them.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest


def pytest_collection_modifyitems() -> None:
    """Threads gain nothing on models of this size; on a busy machine they wait for each other ten times as long."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def six() -> list[Any]:
    from fakes import SIX

    return list(SIX)


@pytest.fixture
def tokenizer() -> Any:
    from fakes import byte_tokenizer

    return byte_tokenizer()
