"""The binding that speaks /dev/fuse itself: passthrough reads, and a mount that outlives its daemon."""
