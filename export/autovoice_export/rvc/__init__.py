"""The RVC family: voices of RVC v1 and v2 checkpoints as stages, ensembles and a repository."""
