"""The Hugging Face Hub: whether it answers, and rows of data sets by its library `datasets`.

Where it does not answer, its client would try for half a minute for each file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("lit_atex")

_READ_AHEAD = 64
"""Rows that are taken from `datasets` at once; it bounds what is read before the first problem comes out."""
PAUSES = (1.0, 2.0)
"""Seconds before it is asked again: a network may be a moment late."""


def ask_hub(name: str) -> None:
    """Return if a name is no name of the Hub, if that answers, whatever it says, or if HF_HUB_OFFLINE=1 forbids to ask.

    Raises:
        ConnectionError: If not.
    """
    from huggingface_hub import is_offline_mode

    if name.count("/") <= 1 and not Path(name).exists() and not is_offline_mode():
        _ask()


def only_cached(name: str) -> bool:
    """Whether a model can come from the Hub's cache alone; then it is said."""
    try:
        ask_hub(name)
    except ConnectionError as error:
        log.warning("%s; %s is looked for in its cache (at once with HF_HUB_OFFLINE=1).", error, name)
        return True
    return False


@cache  # an answer; an error is not kept, and the next call asks again
def _ask() -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, httpx

    for pause in (*PAUSES, None):
        try:
            session = get_session()  # a redirect is an answer, wherever it leads
            session.head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=False)
            return
        except httpx.TimeoutException as error:
            limit = f"timed out within {constants.HF_HUB_ETAG_TIMEOUT} s, which HF_HUB_ETAG_TIMEOUT sets"
            raise ConnectionError(f"{constants.ENDPOINT} cannot be reached ({limit})") from error
        except httpx.TransportError as error:
            if pause is None:
                raise ConnectionError(f"{constants.ENDPOINT} cannot be reached ({error})") from error
            time.sleep(pause)


def stream(what: str, path: str, **load_args: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered rows of `datasets.load_dataset(path, streaming=True, **load_args)`, all of them in every loader worker.

    Raises:
        RuntimeError: If the data cannot be loaded or read; it names the data set and what to do.
    """
    import datasets

    of_hub = path == what  # else a format, of which the files are local
    try:
        if of_hub and not datasets.config.HF_HUB_OFFLINE:
            ask_hub(path)
        table = datasets.load_dataset(path, streaming=True, **load_args)
        # not iter(table): in a loader worker, that yields this worker's share of the files only
        batches = table.iter(batch_size=_READ_AHEAD)
        yield from enumerate(dict(zip(batch, values)) for batch in batches for values in zip(*batch.values()))
    except Exception as error:  # the hub client, pyarrow and datasets each raise their own kinds
        settings = ", ".join(f"{k}={v!r}" for k, v in load_args.items() if v is not None)
        mend = (
            "\nCheck its name, configuration, split and files. Where there is no network, fetch it elsewhere with"
            f" `hf download {what} --repo-type dataset --local-dir FOLDER` and set `dataset: FOLDER`; one that"
            " `load_dataset` has loaded here before is read with HF_HUB_OFFLINE=1."
        )
        raise RuntimeError(
            f"Cannot read the data set {what!r} ({settings}): {type(error).__name__}: {error}{mend if of_hub else ''}"
        ) from error
