"""Files, folders and datasets -> Examples, and back: every format and container that a task may name."""
