"""The gate: the team's policy applied to what was measured."""
