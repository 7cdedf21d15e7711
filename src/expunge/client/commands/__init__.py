"""The subjects of the `expunge` command line, one file each."""
