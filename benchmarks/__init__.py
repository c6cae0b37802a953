"""Speed and memory beside the public form of StyleGAN2: `stx bench`."""
