"""segsmith beside other tools: the same models from disk, on the same machine, in one session.

`python -m benchmarks.peers` runs everything. Each peer lives in an environment of its own under ``runs/peers``, so
these modules import nothing of segsmith where they run inside a peer's environment.
"""
