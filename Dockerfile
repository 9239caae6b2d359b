# Two images that serve the model repository, and one that builds TensorRT plans into it.
#
#   docker build --target cpu -t autovoice:cpu .     any machine: the pip-installable Triton, Python backend
#   docker build --target gpu -t autovoice:gpu .     NVIDIA's Triton image, native backends, the op plugins
#   docker build --target plans -t autovoice:plans . NVIDIA's TensorRT image, the same version of TensorRT
#
# With plans, on the GPU that is to run them; the second command is repeated when a model or a GPU changes:
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/model_repository:/models" autovoice:plans
#   docker run --rm --init --gpus all -p 8000-8002:8000-8002 --shm-size 1g \
#     -v "$PWD/model_repository:/models:ro" autovoice:gpu \
#     autovoice serve --host 0.0.0.0 --config-name tensorrt
#
# Without:
#
#   docker run --rm --init -p 8000-8002:8000-8002 --shm-size 1g \
#     -e AUTOVOICE_API_KEY="$(cat key)" autovoice:cpu
#
# Neither holds a secret: keys come from the environment or from a file mounted at run time (--api-key-file).
# Without a key inference is open, and model control is closed to everybody.

ARG TRITON=26.07
ARG PYTHON=3.11

# The TensorRT plugins of the custom ops, for the TensorRT of this image.
FROM nvcr.io/nvidia/tensorrt:${TRITON}-py3 AS plugins
RUN pip install --no-cache-dir --break-system-packages "cmake>=3.24,<5"
COPY plugins /src/plugins
RUN cmake -S /src/plugins -B /tmp/build -DCMAKE_BUILD_TYPE=Release -DAUTOVOICE_REQUIRE=plugins \
    && cmake --build /tmp/build --parallel \
    && mkdir -p /opt/autovoice/plugins \
    && cp /tmp/build/libautovoice_plugins_trt*.so /opt/autovoice/plugins/

# The client package as a wheel: all images install the same file. Without setup.py, which would put the
# models into it: the images hold them in /models.
FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY export export
COPY plugins plugins
COPY training training
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 libsndfile1 libstdc++6 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/autovoice-*.whl)[server,release]"
COPY model_repository /models
RUN useradd --create-home --uid 10001 autovoice
USER autovoice
ENV AUTOVOICE_REPOSITORY=/models
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["autovoice", "info", "--server", "http://127.0.0.1:8000", "--ready"]
CMD ["autovoice", "serve", "--host", "0.0.0.0"]

FROM nvcr.io/nvidia/tensorrt:${TRITON}-py3 AS plans
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --break-system-packages "$(echo /wheels/autovoice-*.whl)[tensorrt]"
COPY --from=plugins /opt/autovoice/plugins /opt/autovoice/plugins
ENV AUTOVOICE_REPOSITORY=/models
ENV AUTOVOICE_PLUGINS=/opt/autovoice/plugins
CMD ["autovoice", "build", "--engine", "tensorrt"]

FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS gpu
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --break-system-packages /wheels/autovoice-*.whl
COPY --from=plugins /opt/autovoice/plugins /opt/autovoice/plugins
COPY model_repository /models
RUN useradd --create-home --uid 10001 autovoice
USER autovoice
ENV AUTOVOICE_REPOSITORY=/models
ENV AUTOVOICE_PLUGINS=/opt/autovoice/plugins
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s \
    CMD ["autovoice", "info", "--server", "http://127.0.0.1:8000", "--ready"]
CMD ["autovoice", "serve", "--host", "0.0.0.0"]
