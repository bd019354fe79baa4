"""Searching for a better instruction, and demonstrations, on training rows and within a budget of requests."""
