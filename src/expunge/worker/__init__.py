"""Celery workers, the dispatcher that wakes them, and the training process. Drives jobs; never speaks HTTP."""
