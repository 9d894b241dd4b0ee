"""The noise process: schedules, levels, corruption, attention, and the keys that make it reproducible."""
