"""Tests of the file system, on real mounts served by a process of their own."""
