import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.mask import decode, frPyObjects, merge
from skimage.measure import label

from segsmith.datasets.instances import find_instances, instance_map, without_specks
from segsmith.datasets.outlines import joined, outlines
from segsmith.datasets.palette import voc_palette
from segsmith.datasets.png_chunks import grey_png, has_palette
from segsmith.files import open_index_map, png_bytes


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_polygons_give_back_every_pixel(height, width, data):
    rows = st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=height, max_size=height)
    mask = np.array(data.draw(rows))
    found = outlines(label(mask, connectivity=2).astype(np.int32))
    if not found:
        assert not mask.any()
        return
    polygons = [outline.polygon() for outline in found]
    whole = polygons[0]
    for polygon in polygons[1:]:
        whole = joined(whole, polygon)
    for listed in (polygons, [whole]):
        drawn = decode(merge(frPyObjects([p.ravel().tolist() for p in listed], height, width)))
        np.testing.assert_array_equal(drawn.astype(bool), mask)


def test_near_pieces_are_one_object_and_specks_are_unknown():
    label_map = np.zeros((128, 128), np.uint8)
    label_map[10:20, 10:20] = label_map[10:20, 21:30] = 1  # one pixel apart
    label_map[60:70, 60:70] = 1  # far away
    label_map[100:102, 100:102] = 1  # a speck
    label_map[100:102, 10:12] = 2  # a speck, but all there is of its class
    found = find_instances(label_map)
    assert [(o.index, o.area, o.box) for o in found.objects] == [
        (1, 190, (10, 10, 20, 10)), (1, 100, (60, 60, 10, 10)), (2, 4, (10, 100, 2, 2)),
    ]  # fmt: skip
    assert found.specks == 1
    kept = without_specks(label_map)
    assert set(np.unique(kept[100:102, 100:102])) == {255}
    assert (kept != label_map).sum() == 4
    assert instance_map(label_map, found)[100, 100] == 255
    assert instance_map(label_map, found)[15, 25] == 1


def test_a_palette_png_becomes_grey_without_being_encoded_again():
    label_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    stored = png_bytes(label_map, voc_palette())
    assert has_palette(stored, voc_palette().tobytes())
    grey = open_index_map(grey_png(stored))
    assert not grey.has_palette
    np.testing.assert_array_equal(grey.indices, label_map)
    assert not has_palette(png_bytes(label_map), voc_palette().tobytes())
    np.testing.assert_array_equal(open_index_map(grey_png(png_bytes(label_map))).indices, label_map)
