"""The old place of `classic_arms`."""

from baselines.classic.arms import classic_arms

__all__ = ["classic_arms"]
