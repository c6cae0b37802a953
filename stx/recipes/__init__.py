"""How the shipped networks are made: a recipe of plain numbers and one function for each network.

The defaults are where the shipped avatars weights began; notebooks 01 and 02 tell how they went on. A recipe inherits
groups of numbers, each of which goes to one constructor as a whole. It is stored in the run's `config.json`, and
rebuilds the network. Every function resumes from its folder.
"""

from stx.recipes.detail import DetailRecipe, DetailTraining, fit_manifold, practice_edits, train_detail
from stx.recipes.editing import (
    LatentClassifierRecipe,
    PictureClassifierRecipe,
    ReferenceRecipe,
    train_latent_classifier,
    train_reference_editor,
)
from stx.recipes.encoders import (
    EncoderRecipe,
    EncoderTraining,
    LossWeights,
    compared_recipe,
    encoder_recipe,
    train_encoder,
)
from stx.recipes.generators import Channels, GanTraining, GeneratorRecipe, generator_recipe, train_generator
from stx.recipes.groups import Backbone, Training
from stx.recipes.recognition import ClassifierRecipe, IdentityRecipe, JudgeRecipe, train_classifier, train_identity
