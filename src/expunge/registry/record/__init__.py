"""The log's seal: appending leaves and heads, proving, and checking all of it. Never changes a row of the log."""
