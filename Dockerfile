# Two images: `runtime`, which is the default, has lacuna-worker; `lacuna` has the program that makes pictures.
#
#     docker build -t lacuna-worker:0.1.0 .
#     docker build -t lacuna:0.1.0 --target lacuna .
#
# With binaries that are there already, nothing is compiled. They must be made for the base image's C library or an older one:
#
#     docker build --build-context binaries=target/dist -t lacuna-worker:0.1.0 .
#
# A list of what is in the image (SBOM): `scripts/sbom.py`, or `docker buildx build --sbom=true --provenance=true` beside the image.

# The digests are of the indices of all platforms. `docker buildx imagetools inspect debian:bookworm-slim` says the newest;
# a new one brings Debian's security updates. Another base, such as a mirror's, is a --build-arg.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG RUNTIME_IMAGE=docker.io/library/debian:bookworm-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${RUST_IMAGE} AS build
# Further features, such as lacuna-worker/cuda or lacuna-worker/otel, with commas between them.
ARG FEATURES=""
WORKDIR /src
COPY . .
# What crates.io sent and what was compiled stay with the builder, so a change of ours compiles ours alone.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist --package lacuna --package lacuna-worker --bins --features "${FEATURES}" \
    && install -D --target-directory=/binaries target/dist/lacuna target/dist/lacuna-worker

# A stage of its own, so that `--build-context binaries=FOLDER` can stand in for it.
FROM scratch AS binaries
COPY --from=build /binaries/ /

FROM ${RUNTIME_IMAGE} AS system
# A number and no name: Kubernetes must see that it is not root's. No shell, and a home that is never written to.
RUN useradd --uid 65532 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lacuna

FROM system AS lacuna
# Authorities, to tell workers' certificates by.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=binaries --chmod=755 /lacuna /usr/local/bin/lacuna
LABEL org.opencontainers.image.title="lacuna" \
      org.opencontainers.image.description="Makes pictures from text on clouds that you do not trust" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/lacuna"]

FROM system AS runtime
# The Vulkan loader, and what NVIDIA's Vulkan driver wants beside it, which comes from the host. Debian's versions are those of
# the base image's release: a version named here would be gone from its archive at the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libvulkan1 libegl1 libxext6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=binaries --chmod=755 /lacuna-worker /usr/local/bin/lacuna-worker
LABEL org.opencontainers.image.title="lacuna-worker" \
      org.opencontainers.image.description="Computes layers of a U-Net on strips of feature maps, for a Lacuna orchestrator" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# What NVIDIA's container runtime puts into the container: without `graphics` there is no Vulkan driver, and the worker finds no
# GPU. Which GPUs it gets is not said here: `docker run --gpus`, or the pod's limits, say that.
ENV NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility
# All of the container's addresses; plain HTTP there is refused, so give it a certificate. Metrics are off until they are given one.
ENV LACUNA_LISTEN=0.0.0.0:7700
EXPOSE 7700
USER 65532:65532
# The form without a shell: the worker itself gets SIGTERM, and drains.
ENTRYPOINT ["/usr/local/bin/lacuna-worker"]
