"""A llama.cpp server in a separate process: a script that is started by its path and imports nothing from segsmith.

The key that requests must contain is passed as LLAMA_API_KEY (llama.cpp's own name for it), not on the command
line, which every user of the machine can read.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

CACHE_MIB = 64
"""Size of the prompt cache; llama.cpp's default is 8 GiB."""
WARNINGS_AND_SERVER_LINES = 3


def main() -> int:
    """Serve until SIGTERM; returns 1 if the file cannot be served."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--model", required=True)
    for number in ("port", "slots", "context", "threads"):
        parser.add_argument(f"--{number}", type=int, required=True)
    options = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.gguf
    params.model_alias = {options.model}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots  # shared by the slots
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.cache_ram_mib = CACHE_MIB
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False  # it would expose every prompt
    params.verbosity = WARNINGS_AND_SERVER_LINES
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"serving at {server.listening_address}\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
