"""Expunge: machine unlearning as a service for contrastive encoders."""
