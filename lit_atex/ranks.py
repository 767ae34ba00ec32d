"""What the processes of a run tell each other. It knows nothing of what they say."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def of_all_ranks(mine: T) -> list[T]:
    """What each rank has, in the order of ranks; ours alone where there is one process. Every rank must call it.

    Args:
        mine: What this rank has; anything that can be pickled.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [mine]
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
