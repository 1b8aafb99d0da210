"""A run in a folder that one may not write to is read, exported elsewhere and compared."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from segsmith.testing import made_up_run

READ = """
import os, sys
sys.path.insert(0, sys.argv[3])
from segsmith.workflows.run import open_run
from pathlib import Path
run, out = map(Path, sys.argv[1:3])

def read(target):
    opened = open_run(run)
    image_id = next((run / "images").rglob("*.png")).stem
    assert opened.why(image_id).id == image_id
    assert opened.funnel()
    opened.export("coco", target)
    return len(opened.images)

read(out / "first")  # imports everything that reading needs
if os.getuid() == 0:  # root may write everywhere
    os.setuid(65534)
try:
    open(run / "new", "w")
except OSError:
    print(read(out / "second"))
"""


def test_everything_that_only_reads_works_without_write_permission():
    folder = Path(tempfile.mkdtemp())
    try:
        run, ledger, _ = made_up_run(folder / "run", 4, size=64)
        ledger.close()
        (folder / "out").mkdir()
        os.chmod(folder, 0o755)
        os.chmod(folder / "out", 0o777)
        os.chmod(run.root, 0o555)
        before = sorted(run.root.iterdir())
        command = [sys.executable, "-c", READ, run.root, folder / "out", Path(__file__).parents[2]]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr
        assert (folder / "out" / "second").is_dir()
        new = {path.name for path in run.root.iterdir()} - {path.name for path in before}
        assert new <= {".lock", "ledger.db-shm", "ledger.db-wal"}, "a lock and SQLite's files, left by root"
    finally:
        os.chmod(folder / "run", 0o755)
        shutil.rmtree(folder)
