"""Numbers that say what an encoder remembers. Never trains anything."""
