"""Tools: a model that may call functions while it answers, and what runs its calls."""
