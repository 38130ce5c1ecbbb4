"""The history of the database schema, one step per file; run on every start."""
