"""The bytes: what this workstation keeps of a library, and where the rest is fetched from."""
