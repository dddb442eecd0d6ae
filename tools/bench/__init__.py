"""``damfs bench``: how fast a mount is, against the file system under its cache, measured in one run."""
