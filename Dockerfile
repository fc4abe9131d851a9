# The operator. `make images` builds it with the rest; docs/images.md has the arguments.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# A stage of its own, so that what else changes in pyproject.toml installs nothing anew.
FROM ${BASE} AS wanted
WORKDIR /build
COPY pyproject.toml scripts/image_requirements.py ./
RUN python3 image_requirements.py operator >wanted.txt && touch --date=@0 wanted.txt

FROM ${BASE} AS dependencies
WORKDIR /build
COPY requirements.lock ./
COPY scripts/image_environment.sh scripts/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt scripts/image_environment.sh tools
COPY --from=wanted /build/wanted.txt ./
ARG VARIANT=cpu
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt scripts/image_environment.sh dependencies

FROM dependencies AS package
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer_images/capstan_runtime trainer_images/capstan_runtime
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt scripts/image_environment.sh package

# Nothing runs here: what a step of the build leaves behind cannot get in.
FROM ${BASE}
COPY --from=dependencies /opt/capstan /opt/capstan
COPY --from=package /staged/opt/capstan /opt/capstan
# The root may be read-only: what a library keeps for its user goes to /tmp.
ENV PATH=/opt/capstan/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=capstan
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["capstan"]
CMD ["--help"]
ARG VERSION=
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="Capstan operator" \
      org.opencontainers.image.description="Trains and serves models on Kubernetes and does not lose steps" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
