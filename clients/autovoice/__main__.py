"""`python -m autovoice` is the `autovoice` command."""

from autovoice.cli.main import main

main()
