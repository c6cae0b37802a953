"""How the shipped generator was made: GAN, projected discriminator, autoencoder."""
