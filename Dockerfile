# The service `fcos serve`. Build for CPUs:   docker build -t fcos .
# Build for CUDA:                             docker build -t fcos --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:  docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs:/runs:ro" -e FCOS_TOKEN=SECRET fcos /runs/cells
ARG PYTHON=3.13-slim-trixie
FROM python:${PYTHON}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /opt/fcos
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
# constraints.txt names the torch of the package index; that of TORCH_INDEX has the same version with a suffix.
RUN pip install --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple -c constraints.txt ".[serve]"

USER 65534:65534
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["fcos", "serve", "--host", "0.0.0.0", "--port", "8000"]
