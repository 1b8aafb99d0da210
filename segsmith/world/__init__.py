"""A miniature world with exact ground truth: prompts in, pictures and masks out.

`parse` reads a prompt, `compose` draws it, `Scene.class_mask` tells what every pixel is. It stands
in for a diffusion model where there is none, trains the mini CLIP and the mini SAM, and, in its
"real" style, is the test world that training never sees.
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
