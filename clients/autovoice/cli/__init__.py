"""The `autovoice` command."""
