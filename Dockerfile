# syntax=docker/dockerfile:1
# Two images:
#
#   docker build --target cpu --tag shadowserve:0.1.0-cpu .
#   docker build --target gpu --tag shadowserve:0.1.0-gpu .
#
# Every step is a script that tests run, too (.docker, .ci/setup.sh). Who wants the same bytes again pins the bases by digest:
# --build-arg PYTHON_IMAGE=python@sha256:... --build-arg VLLM_IMAGE=vllm/vllm-openai@sha256:...
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0


# The CPU engine, the package and what they need, in one virtual environment.
FROM ${PYTHON_IMAGE} AS cpu-build
WORKDIR /src
COPY . .
ENV VENV=/opt/shadowserve/venv ENGINE=cpu PURPOSE=image PYTHON=python3 PIP_NO_CACHE_DIR=1
RUN [".ci/setup.sh"]


FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ShadowServe" \
      org.opencontainers.image.description="Serves many ShadowPEFT adapters over one frozen base model, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12.12-slim-bookworm"
COPY .docker /opt/shadowserve/bin
RUN ["/opt/shadowserve/bin/install_system.sh"]
COPY --from=cpu-build /opt/shadowserve/venv /opt/shadowserve/venv
COPY --from=cpu-build /src/server/shadow_server/demo/assets /opt/shadowserve/demo
RUN ["/opt/shadowserve/bin/add_user.sh"]
ENV PATH=/opt/shadowserve/venv/bin:$PATH \
    HOME=/var/cache/shadowserve \
    XDG_CACHE_HOME=/var/cache/shadowserve \
    XDG_STATE_HOME=/var/lib/shadowserve \
    HF_HOME=/var/cache/shadowserve/huggingface \
    VLLM_CACHE_ROOT=/var/cache/shadowserve/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/shadowserve/inductor \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/shadowserve
VOLUME ["/var/lib/shadowserve", "/var/cache/shadowserve"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m --retries=4 \
    CMD ["python3", "/opt/shadowserve/bin/healthcheck.py"]
# The exec form: SIGTERM reaches the server, which drains.
ENTRYPOINT ["shadowserve"]
CMD ["--help"]


# The kernels for sm_80, sm_90 and sm_100, with the torch that they will meet.
FROM ${VLLM_IMAGE} AS gpu-build
WORKDIR /src
COPY .docker .docker
COPY kernels kernels
RUN [".docker/build_kernels.sh"]
COPY . .
RUN [".docker/build_wheel.sh", "/wheel"]


FROM ${VLLM_IMAGE} AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ShadowServe" \
      org.opencontainers.image.description="Serves many ShadowPEFT adapters over one frozen base model, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/vllm/vllm-openai:v0.32.0"
COPY .docker /opt/shadowserve/bin
RUN ["/opt/shadowserve/bin/add_user.sh"]
COPY --from=gpu-build /src/server/shadow_server/demo/assets /opt/shadowserve/demo
COPY --from=gpu-build /wheel /opt/shadowserve/wheel
RUN ["/opt/shadowserve/bin/install_wheel.sh", "/opt/shadowserve/wheel"]
ENV HOME=/var/cache/shadowserve \
    XDG_CACHE_HOME=/var/cache/shadowserve \
    XDG_STATE_HOME=/var/lib/shadowserve \
    HF_HOME=/var/cache/shadowserve/huggingface \
    VLLM_CACHE_ROOT=/var/cache/shadowserve/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/shadowserve/inductor \
    TRITON_CACHE_DIR=/var/cache/shadowserve/triton \
    CUDA_CACHE_PATH=/var/cache/shadowserve/cuda \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/shadowserve
VOLUME ["/var/lib/shadowserve", "/var/cache/shadowserve"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=4 \
    CMD ["python3", "/opt/shadowserve/bin/healthcheck.py"]
# The base image's entrypoint is vLLM's own server.
ENTRYPOINT ["shadowserve"]
CMD ["--help"]
