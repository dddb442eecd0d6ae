"""What the kernel asks: names, attributes and reads of the mounted library."""
