"""No language model at all."""
