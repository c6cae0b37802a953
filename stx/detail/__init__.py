"""What codes lose of a picture, kept beside them: features of a middle layer, or offsets of the generator's weights."""
