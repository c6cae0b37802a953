"""Figures, tables, notebooks in batch, and claims with verdicts."""
