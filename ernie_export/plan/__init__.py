"""Does it fit, what takes how much, how fast can it be: from a config alone, before any work."""
