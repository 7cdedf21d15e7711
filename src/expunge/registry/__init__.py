"""What the service remembers: tables, life cycles, log and object store. Never trains and never speaks HTTP."""
