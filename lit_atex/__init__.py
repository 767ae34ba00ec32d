"""lit_atex: on-policy self-distillation of language models with partial teacher exposure (ATESD, arXiv:2605.11458)."""

__version__ = "0.1.0"
