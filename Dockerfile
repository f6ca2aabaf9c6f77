# The tests of GPU memory and kernels, on a GPU of this machine:
#     docker build --tag parllel . && docker run --rm --gpus all parllel
# The runtime alone: kernels are kept as PTX, which the driver compiles. 13.0, as `make` installs CuPy for it.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

# Any versions will do: those of Python's packages are in .ci/constraints.txt.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /parllel
COPY . .
RUN make venv

CMD ["make", "test-gpu"]
