"""Decides, orders, shows."""
