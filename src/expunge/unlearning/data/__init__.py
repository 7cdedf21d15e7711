"""Samples on their way to a learner: shards, image sets, views, batches. Never trains anything."""
