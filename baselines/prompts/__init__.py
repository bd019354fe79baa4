"""Prompting: zero-shot and few-shot, the instruction as the system message or before the input."""
