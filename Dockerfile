# alignctl without a GPU: all stages, with sampling, at the versions that are tested.
#
#   docker build -t alignctl .
#   docker run --rm --shm-size 1g alignctl make demo
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A compiler: torch and DeepSpeed build small extensions while they run. numactl's library: vLLM's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home alignctl && mkdir /alignctl && chown 1000 /alignctl
USER 1000
WORKDIR /alignctl
ENV PATH=/alignctl/.venv/bin:$PATH PIP_NO_CACHE_DIR=1

# The libraries first: a change of the sources does not install them again.
ARG TORCH_CPU=https://download.pytorch.org/whl/cpu
COPY --chown=1000 requirements/cpu.lock requirements/cpu.lock
RUN python -m venv .venv \
    && pip install --no-deps --index-url "$TORCH_CPU" "$(grep '^torch==' requirements/cpu.lock)" \
    && grep -v '^torch==' requirements/cpu.lock > /tmp/others.txt \
    && pip install --no-deps -r /tmp/others.txt

COPY --chown=1000 . .
RUN pip install --no-deps --no-build-isolation -e . \
    && python -m compileall -q src stages \
    && touch .venv/.ready \
    && alignctl --version

CMD ["alignctl", "doctor"]
