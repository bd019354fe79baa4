"""The task: its file, its examples, its splits and what is wrong with them."""
