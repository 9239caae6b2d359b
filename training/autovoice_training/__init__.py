"""How the base voice was made: corpus, training, evaluation."""
