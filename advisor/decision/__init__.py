"""Pure: evidence in, recommendation out. No model, no file."""
