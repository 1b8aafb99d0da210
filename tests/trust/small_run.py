"""What the tests of this folder build."""

KEY = "sk-fake-3f9d0b7a51c24e8f9a6d"
SMALL = {
    "trainer": {"epochs": 1, "batch_size": 4},
    "evaluation": {"images": 0},
    "per_class": 3,
    "labeler": {"epochs": 1, "folds": 2},
}
