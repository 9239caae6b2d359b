"""Training of the base voice: content encoder and synthesizer together, on parallel synthetic speech."""
