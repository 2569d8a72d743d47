# Stage 1: the service and its dependencies in a virtual environment. All of these have wheels; of the service itself, the
# C extension is compiled. What runs has no compiler.
FROM python:3.13-slim AS build

RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
# The releases that uv.lock names, and no others: pip checks their hashes. One image for the service, and for the agent and the
# server of a fleet.
# The environment gets no pip of its own. Bytecode is made here, as a read-only container cannot write it later.
COPY pyproject.toml uv.lock ./
RUN python -m venv --without-pip /opt/jumptable \
    && pip install --no-cache-dir 'uv~=0.13' \
    && uv export --quiet --frozen --extra fleet --no-emit-project --output-file requirements.txt \
    && pip --python /opt/jumptable/bin/python install --no-cache-dir --compile --require-hashes --requirement requirements.txt
COPY README.md LICENSE ./
COPY app ./app
RUN pip --python /opt/jumptable/bin/python install --no-cache-dir --compile --no-deps . \
    && cd / && /opt/jumptable/bin/python -c 'from app import native; assert native.is_used, native.told()'


# Stage 2: what runs.
FROM python:3.13-slim

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="jumptable" \
      org.opencontainers.image.description="An HTTP API for eBPF program arrays: the jump tables of bpf_tail_call()" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim"

# What loads object files. It needs libelf and zlib, which come with it.
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends libbpf1 >/dev/null \
    && rm -rf /var/lib/apt/lists/*

# The uid is fixed so that the owner of pins and of the state on the host can be named.
# Nothing is installed in a running container, so pip goes.
RUN groupadd --gid 10001 jumptable \
    && useradd --uid 10001 --gid jumptable --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin jumptable \
    && install --directory --owner jumptable --group jumptable --mode 0755 /run/jumptable \
    && install --directory --owner jumptable --group jumptable --mode 0700 /var/lib/jumptable \
    && pip uninstall --yes --no-cache-dir --root-user-action ignore pip

COPY --from=build /opt/jumptable /opt/jumptable
COPY deploy/jumptable.toml /etc/jumptable/jumptable.toml

ENV PATH=/opt/jumptable/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1

# By number, so that Kubernetes can see that it is not root. deploy/README.md says what works as which user.
USER 10001:10001

# Over the socket of the configuration above; one that moves it, and `demo`, need another check or none.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-I", "-c", "import socket\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(2)\ns.connect('/run/jumptable/api.sock')\ns.sendall(b'GET /healthz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n')\nraise SystemExit(b' 200 ' not in s.recv(64))"]

ENTRYPOINT ["jumptable"]
CMD ["serve", "--config", "/etc/jumptable/jumptable.toml"]
