"""Frozen networks that look at pictures: IR-SE backbone, LPIPS, identity, attribute classifier."""
