"""`python -m autovoice` is the `autovoice` command."""

from autovoice.cli import main

main()
