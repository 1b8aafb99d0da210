"""A world of sprites with exact ground truth: prompts in, images and masks out.

`parse` reads a prompt, `compose` draws it, and `Scene.class_mask` gives the class of every pixel. The world
replaces the diffusion model in the `sim` preset and trains the mini CLIP and the mini SAM. It has three sprite
styles: builds draw twemoji; settings of the trainer are compared on openmoji, which no build uses; the test set is
drawn in gouache, on which nothing is trained or chosen.
"""

from segsmith.world.language import ObjectSpec, SceneSpec, caption, parse
from segsmith.world.nouns import NOUNS, VOC_CLASSES, Noun, find_noun, suggest
from segsmith.world.scene import PlacedObject, Scene, compose, random_spec
from segsmith.world.sprites import Style, sprite

__all__ = [
    "NOUNS",
    "VOC_CLASSES",
    "Noun",
    "ObjectSpec",
    "PlacedObject",
    "Scene",
    "SceneSpec",
    "Style",
    "caption",
    "compose",
    "find_noun",
    "parse",
    "random_spec",
    "sprite",
    "suggest",
]
