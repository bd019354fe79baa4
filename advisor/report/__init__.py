"""Words for what was measured."""
