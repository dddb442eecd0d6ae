"""The one process behind a mountpoint."""
