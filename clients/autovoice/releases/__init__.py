"""Releases: numbered, immutable model repositories, each of them hashed and signed as a whole."""
