"""A complete build with images from a faulty server: it finishes, and nothing is charged twice."""

from collections import Counter

import pytest

from segsmith.config import load_config
from segsmith.events import ImagesDrawn, SessionEnded, Status
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.workflows.build import build_run
from tests.tools.images.image_server import image_server

pytest.importorskip("xllamacpp")
PRICE = 0.04


def settings(url, **more):
    hosted = {"base_url": url, "usd_per_image": PRICE, "concurrency": 3, "send_seed": True}
    return load_config(
        flags={
            "classes": ("cat", "dog"),
            "per_class": 3,
            "images": {"backend": "hosted", "model": "simulator", "batch_size": 6, "hosted": hosted},
            "judge": {"enabled": False},
            "labeler": {"epochs": 1, "folds": 2},
            "trainer": {"epochs": 1},
            "evaluation": {"images": 0},
            **more,
        }
    )


@pytest.mark.slow
def test_it_completes_and_the_books_agree_with_the_servers(tmp_path):
    out = tmp_path / "run"
    with image_server(busy=0.3, broken=0.2, slow=0.1, refusals=0.1, delay_s=0.2) as server:
        config = settings(server.url)
        stopped = build_run(config, out)
        for event in stopped:  # the first session ends while images are drawn
            if isinstance(event, ImagesDrawn):
                break
        stopped.close()
        *_, end = build_run(config, out)
        account = server.account
        assert end == SessionEnded(Status.FINISHED, "quota_met")
        assert set(account.drawn.values()) == {1}
        requests = account.requests
        assert requests > len(account.drawn) + len(account.refused)  # it did misbehave
        ledger = Ledger(RunFolder(out).ledger)
        usage, images = ledger.usage()["images"], ledger.images()
        reasons = Counter(row.reason for row in ledger.undrawn())
        ledger.close()
        assert len(images) == len(account.drawn) == usage.images
        assert usage.usd == pytest.approx(PRICE * len(images))
        assert reasons["refused"] == len(account.refused)
        assert (out / "report.html").exists()
        assert [e.status for e in build_run(config, out)] == [Status.ALREADY_FINISHED]
        assert account.requests == requests
