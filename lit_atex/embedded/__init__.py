"""The small reasoner that ships with lit_atex, its domain, and the command that trained it.

`MODEL_DIR` holds weights, tokenizer and model card in Hugging Face format; it is loaded by the code that loads any
other Hugging Face folder.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
