"""The ``damfs`` command, a module per family of sub-commands."""
