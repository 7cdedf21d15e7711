"""Encoders before and after a removal, honest or not, for the benchmark of the audit."""
