"""What a race between candidates came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Left:
    """A candidate that left after `items` of the split's items, with its mean on them."""

    candidate: str
    kind: str
    items: int
    score: float


@dataclass(frozen=True)
class Race:
    """`through` are the names of the candidates that are worth every item; `spent` counts answers."""

    through: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    items: int = 0
    spent: int = 0

    def sentence(self) -> str:
        return (
            f"{len(self.left)} of {len(self.left) + len(self.through)} ways to ask left the race on dev "
            f"({self.spent} answers instead of {self.items * (len(self.left) + len(self.through))})"
        )

    def joined(self, other: Race) -> Race:
        """Two races on the same items, told as one."""
        left = sorted((*self.left, *other.left), key=lambda one: one.items)
        return Race((*self.through, *other.through), tuple(left), max(self.items, other.items), self.spent + other.spent)
