"""The training corpus of the base voice, rendered by free speech engines on the spot; no recording is shipped."""
