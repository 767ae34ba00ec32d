"""`python -m lit_atex` is `lit-atex`."""

from lit_atex.cli import main

main()
