"""One file a subject: what may be called, by whom, with which answers. Rules live in the registry."""
