# Two images that serve the model repository.
#
#   docker build --target cpu -t autovoice:cpu .     any machine: the pip-installable Triton, Python backend
#   docker build --target gpu -t autovoice:gpu .     NVIDIA's Triton image, native backends, the op plugins
#
#   docker run --rm --init -p 8000-8002:8000-8002 --shm-size 1g \
#     -e AUTOVOICE_API_KEY="$(cat key)" autovoice:cpu
#
# Neither holds a secret: keys come from the environment or from a file mounted at run time (--api-key-file).
# Without a key inference is open, and model control is closed to everybody.

ARG TRITON=26.07
ARG PYTHON=3.11

# The plugin library of the custom ops. A checkout without its sources builds an empty folder.
FROM nvcr.io/nvidia/tensorrt:${TRITON}-py3 AS plugins
COPY plugins /src/plugins
RUN mkdir -p /opt/autovoice/plugins \
    && if [ -f /src/plugins/CMakeLists.txt ]; then \
         cmake -S /src/plugins -B /tmp/build -DCMAKE_BUILD_TYPE=Release \
         && cmake --build /tmp/build --parallel \
         && find /tmp/build -name '*.so' -exec cp {} /opt/autovoice/plugins/ \; ; \
       fi

# The client package as a wheel: both images install the same file.
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
RUN pip install --no-cache-dir "$(echo /wheels/autovoice-*.whl)[server]"
COPY model_repository /models
RUN useradd --create-home --uid 10001 autovoice
USER autovoice
ENV AUTOVOICE_REPOSITORY=/models
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["autovoice", "info", "--server", "http://127.0.0.1:8000", "--ready"]
CMD ["autovoice", "serve", "--host", "0.0.0.0"]

FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS gpu
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --break-system-packages /wheels/autovoice-*.whl
COPY --from=plugins /opt/autovoice/plugins /opt/autovoice/plugins
COPY model_repository /models
RUN useradd --create-home --uid 10001 autovoice
USER autovoice
ENV AUTOVOICE_REPOSITORY=/models
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s \
    CMD ["autovoice", "info", "--server", "http://127.0.0.1:8000", "--ready"]
CMD ["autovoice", "serve", "--host", "0.0.0.0"]
