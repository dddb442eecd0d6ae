"""Publishing: from files on a disk to one signed entry in a show's log."""
