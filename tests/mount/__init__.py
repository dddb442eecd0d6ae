"""The main job from the outside: the real command, the real daemon, a real mount."""
