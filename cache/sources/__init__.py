"""Where chunks come from, behind one protocol."""
