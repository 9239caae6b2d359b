"""The base voice: its stages, how they are wired, and the build of its repository."""
