"""One readable file a method, top to bottom."""
