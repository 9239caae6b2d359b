"""Audio in memory and in files."""
