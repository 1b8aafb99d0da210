"""What a conversation says of its own keys and answers."""

from __future__ import annotations

HELP = {
    "accept, a": "your word stands, whatever the agents say later; with a reason: accept good light",
    "reject, r": "the same, against it: reject half a cat",
    "edit, e": "a prompt: its new text; labels and masks: the classes to be seen, e cat, bus",
    "next, n, Enter": "leave this one to the agents",
    "back, b": "the one before, of an earlier sitting as well",
    "auto": "ask no more about: auto class, auto bus, auto kind (say, all prompts), auto all; auto off asks again",
    "why, w": "all that is known of this one; of others: why 3rd bus, why i-12ab",
    "status, s": "where each class stands",
    "guidance, g": "your wishes; forget 2 withdraws one, edit 2 ... says it anew",
    "quit, q, Ctrl-C": "stop here; later go on at this very item",
    "a sentence": "a wish for the prompts to come: more of them at night, and no cartoons",
    "a question": "about the run: why was the third one rejected? which class is behind?",
}
"""Answer -> what it does."""
KEYS = "a accept · r reject{edit} · Enter next · b back · w why · q quit · ? help"
"""The line under a heading."""
EFFECT = {
    ("prompt", "accept"): "it is drawn, whatever the critic says",
    ("prompt", "reject"): "it is not drawn",
    ("prompt", "edit"): "the new text is drawn instead of the old one",
    ("verdict", "accept"): "it is in, whatever the judge says",
    ("verdict", "reject"): "it is out; another one takes its place",
    ("label", "accept"): "its labels stay as they are",
    ("label", "reject"): "its labels are CLIP's again",
    ("label", "edit"): "its labels are yours",
    ("mask", "accept"): "it is in the dataset",
    ("mask", "reject"): "it stays out of the dataset",
    ("mask", "edit"): "the mask is made again for these labels and shown again",
}
"""(kind, action) -> what a decision does."""
