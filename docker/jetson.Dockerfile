# blip2rt on Jetson with JetPack 6 (L4T r36, CUDA 12.6, TensorRT 10.3), on NVIDIA's image with all three.
# Written from NVIDIA's documentation; not yet built on a board.
#   docker build -f docker/jetson.Dockerfile -t blip2rt .
#   docker run --rm --runtime nvidia -v ~/.cache/blip2rt:/root/.cache/blip2rt blip2rt doctor
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel
FROM ${BASE}

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv python3-dev g++ \
 && rm -rf /var/lib/apt/lists/*

# TensorRT's Python module is part of the image, so the environment must see the system's packages.
RUN python3 -m venv --system-site-packages /opt/blip2rt
ENV PATH=/opt/blip2rt/bin:$PATH
COPY . /src
RUN pip install --no-cache-dir '/src[trt-cu12]' /src/packages/nano && rm -rf /src

ENTRYPOINT ["blip2rt"]
CMD ["doctor"]
