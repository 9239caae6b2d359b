"""Engines: what runs the models of a repository."""
