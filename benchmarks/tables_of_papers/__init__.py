"""The papers' tables, run again: scales, stages and pages. The command is `benchmarks/tables.py`."""
