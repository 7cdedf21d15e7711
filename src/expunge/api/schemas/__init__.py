"""One file a subject: bodies that are accepted and answers that are given, each built from its row in one place."""
