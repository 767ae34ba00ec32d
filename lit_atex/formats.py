"""What a path holds, where it is not what a source reads: said with the mend, instead of a bad row for each line."""

from __future__ import annotations

import re
from pathlib import Path

_NO_LINES = {
    rb"\x1f\x8b|PK\x03\x04|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "compressed: unpack it",
    rb"PAR1": "Parquet: take class_path lit_atex.sources.Parquet",
    rb"\xff\xfe|\xfe\xff": "UTF-16: save it as UTF-8",
    rb"(?:\xef\xbb\xbf)?\s*\[": "one JSON list: `jq -c '.[]'` makes lines of it",
    rb"(?:\xef\xbb\xbf)?\s*\{\s*[\r\n]": "JSON over several lines: `jq -c` makes one of each object",
    rb"(?:\xef\xbb\xbf)?[\"\w ]+[,;\t]": "a table such as CSV: pandas' `to_json(..., lines=True)` makes lines of it",
}


def no_lines(begins: bytes) -> str:
    """What a file is that begins so and does not have a JSON object a line, with the mend; or nothing."""
    return next((kind for form, kind in _NO_LINES.items() if re.match(form, begins)), "")


def read_otherwise(path: Path) -> str:
    """What is at a path that `datasets` loads otherwise than by name, and the source that reads it; or nothing."""
    if path.is_file():
        return "is a file: take class_path lit_atex.sources.JsonLines or .Parquet, with init_args.path"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        written = "was written by `save_to_disk`, which is for `load_from_disk`: write it by `to_parquet`"
        return f"{written}, and take class_path lit_atex.sources.Parquet with init_args.path"
    return ""
