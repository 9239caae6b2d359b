"""The training corpus of the base voice: people who read aloud, and natural synthetic voices."""
