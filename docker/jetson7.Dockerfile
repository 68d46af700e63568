# blip2rt on Jetson with JetPack 7.2 (L4T r39.2, Ubuntu 24.04, Python 3.12, CUDA 13.2, TensorRT 10.16): Orin and Thor.
# JetPack 7 runs packages for ordinary ARM servers (SBSA), so this uses NVIDIA's CUDA image and package source.
# Written from NVIDIA's documentation; not yet built on a board.
#   docker build -f docker/jetson7.Dockerfile -t blip2rt .
#   docker run --rm --runtime nvidia --gpus all -v ~/.cache/blip2rt:/root/.cache/blip2rt blip2rt doctor
ARG BASE=nvidia/cuda:13.2.0-devel-ubuntu24.04
FROM ${BASE}

# Use JetPack's minor version, because only the TensorRT that built a plan can load it. The Python module depends on its
# libraries and parsers without a version, and apt would install the newest, so all of them are pinned. Not yet built.
ARG TENSORRT=10.16.*
RUN printf 'Package: *nvinfer* *nvonnxparsers*\nPin: version %s\nPin-Priority: 1001\n' "${TENSORRT}" \
    > /etc/apt/preferences.d/tensorrt \
 && apt-get update \
 && apt-get install -y --no-install-recommends python3-venv python3-dev g++ python3-libnvinfer \
 && rm -rf /var/lib/apt/lists/*

# TensorRT's Python module is part of the system, so the environment must see the system's packages.
RUN python3 -m venv --system-site-packages /opt/blip2rt
ENV PATH=/opt/blip2rt/bin:$PATH
COPY . /src
RUN pip install --no-cache-dir '/src[trt-cu13]' /src/packages/nano && rm -rf /src

ENTRYPOINT ["blip2rt"]
CMD ["doctor"]
