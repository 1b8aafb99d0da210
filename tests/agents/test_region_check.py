"""CLIP's second look at regions."""

from collections import Counter

import numpy as np
import pytest

from segsmith.agents import region_check
from segsmith.agents.region_check import RegionCheck
from segsmith.memory.ledger import Ledger
from segsmith.segmentation.masks import Outlined
from segsmith.segmentation.merge import Region


class Colours:
    """Cats are red, dogs are green: vectors are the mean colour of the middle."""

    name, logit_scale = "colours", 20.0

    def embed_images(self, images):
        middles = [image[40:88, 40:88].reshape(-1, 3).mean(axis=0) + 1 for image in images]
        return np.array([m / np.linalg.norm(m) for m in middles], np.float32)

    def embed_texts(self, texts):
        rows = [(1.0, 0, 0) if "cat" in t else (0, 1.0, 0) if "dog" in t else (0, 0, 1.0) for t in texts]
        return np.array(rows, np.float32)

    def fits(self, text):
        return True


@pytest.fixture
def ledger(tmp_path):
    book = Ledger(tmp_path / "ledger.db")
    yield book
    book.close()


def scene(colour, class_index):
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    image[mask] = colour
    return image, Outlined((64, 64), [Region(class_index, mask, 1.0)], [], Counter())


def check_of(ledger):
    return RegionCheck(Colours(), ledger, ("cat", "dog"), lambda name: (name,))


def test_a_dog_that_is_called_a_cat_is_not_believed(ledger):
    check = check_of(ledger)
    check.calibrate([scene((200, 30, 30), 0), scene((30, 200, 30), 1)] * 20)
    assert check.beliefs(*scene((200, 30, 30), 0))[0] > 0.5
    assert check.beliefs(*scene((30, 200, 30), 0))[0] < 0.05


def test_too_few_regions_say_nothing(ledger):
    check = check_of(ledger)
    check.calibrate([scene((200, 30, 30), 0)] * (region_check.MIN_REGIONS - 1))
    assert check.beliefs(*scene((30, 200, 30), 0)) is None


def test_what_is_usual_is_measured_once_a_run(ledger):
    check_of(ledger).calibrate([scene((200, 30, 30), 0)] * 40)
    kept = ledger.region_centre
    check_of(ledger).calibrate(iter([1 / 0 for _ in ()]))
    assert kept
    assert ledger.region_centre == kept


def test_an_image_without_regions_has_no_probabilities(ledger):
    check = check_of(ledger)
    check.calibrate([scene((200, 30, 30), 0)] * 40)
    assert check.beliefs(np.zeros((8, 8, 3), np.uint8), Outlined((8, 8), [], [], Counter())) == []
