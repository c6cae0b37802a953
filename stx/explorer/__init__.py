"""The latent explorer: its state without widgets, and its widgets."""
