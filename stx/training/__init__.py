"""One training loop for every network, and the optimiser of the paper."""
