"""The HTTP face of Expunge: routes, schemas, keys, problems, pages. Never trains and never imports torch."""
