"""`python -m lit_atex` is `lit-atex`."""

from lit_atex.commands import main

main()
