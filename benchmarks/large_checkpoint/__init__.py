"""What `large_objects.py` sends, through what, and by whom."""
