# caskd with all extras but vllm, on the CPU:
#     docker build -t caskd .
# On NVIDIA GPUs, with an index of https://pytorch.org that fits the driver:
#     docker build -t caskd:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY cli cli
COPY eval eval
COPY models models
COPY precompute precompute
COPY store store
COPY train train
# The index adds builds such as 2.13.0+cpu of the torch that constraints.txt names; pip prefers them.
RUN python -m venv /opt/caskd \
    && /opt/caskd/bin/pip install --no-cache-dir -c constraints.txt \
        --extra-index-url "$TORCH_INDEX" '.[all]'


FROM python:3.11-slim

# Triton compiles its launchers with a C compiler; a Debian release has one version of it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --home-dir /work --uid 1000 caskd

COPY --from=build /opt/caskd /opt/caskd
# Under docker run --user, which has no entry in /etc/passwd, libraries ask for both names.
ENV PATH=/opt/caskd/bin:$PATH HOME=/work USER=caskd

USER 1000
WORKDIR /work
ENTRYPOINT ["caskd"]
CMD ["--help"]
