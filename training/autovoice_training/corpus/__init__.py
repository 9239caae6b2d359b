"""The training corpus of the base voice, rendered on the spot by free speech engines."""
