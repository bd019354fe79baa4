"""Programs that run in processes of their own, started by their path: nothing here is imported, and nothing here imports us."""
