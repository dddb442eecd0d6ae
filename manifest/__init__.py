"""The truth of a library: which names stand for which bytes, at every revision of every show."""
