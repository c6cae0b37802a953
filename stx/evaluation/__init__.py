"""The tables: inversions and edits measured under one protocol."""
