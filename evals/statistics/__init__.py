"""What scores show and what they cannot: paired intervals and tests, margins, and power. Pure; numpy and scipy only."""
