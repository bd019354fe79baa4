"""The best answer with the weights unchanged."""
