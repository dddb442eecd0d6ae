"""The tests: real mounts, real media, real stores."""
