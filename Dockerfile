# Mask R-CNN in a container, for the CPU, or for a GPU by a build argument (cuda12 or cuda13, as the driver supports):
#
#   docker build -t mask-rcnn .
#   docker build -t mask-rcnn:cuda12 --build-arg EXTRAS=serve,cuda12 .
# An empty EXTRAS leaves out the server.
#
# Files are exchanged in /data, the current folder.  Any user id works; with yours, the outputs belong to you:
#
#   docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD:/data" mask-rcnn demo --image photo.jpg \
#       --modelfile modelfiles/shapes_mobilenet_v1_fpn.npz
#   docker run --rm --init -p 127.0.0.1:8000:8000 -v "$PWD:/data:ro" mask-rcnn serve --host 0.0.0.0 --modelfile FILE
#   docker run --rm --init --gpus all -v "$PWD:/data" mask-rcnn:cuda12 doctor
#
# The wheels of the extras cuda12 and cuda13 contain CUDA, so the same base image serves for GPUs, with the container
# toolkit of NVIDIA on the host.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=serve
WORKDIR /source
COPY . .
# pip and its cache stay in this stage.  Nothing is compiled here or later that needs a compiler in the image.
RUN python -m venv --without-pip /opt/mask-rcnn \
    && pip --python /opt/mask-rcnn/bin/python --disable-pip-version-check install --no-cache-dir --no-compile \
        -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}"
# Bytecode and kernels belong to the times of the source files.  Whole seconds survive the transfer of an image.
RUN find /opt/mask-rcnn -name '*.py' -exec touch -d "@$(date +%s)" {} + \
    && /opt/mask-rcnn/bin/python -m compileall -q /opt/mask-rcnn/lib/python*/site-packages/mask_rcnn
# CPU kernels are specialised for a processor, which gives them AVX-512 or NEON.  They are compiled here for the
# processor of the build, the usual case of an image that is used where it is built.  Another processor ignores them and
# compiles its own at first use, into the same folder: "-v mask-rcnn-cache:/cache" keeps them between containers.
# Kernels for a generic processor would be used everywhere, but with vectors of a quarter of the size.  This run also
# writes the bytecode of the modules that are used, a small part of all.
ENV NUMBA_CACHE_DIR=/cache/numba
RUN mkdir -p /cache/numba /cache/cupy /cache/matplotlib \
    && /opt/mask-rcnn/bin/python scripts/compile_kernels.py \
    && chmod -R a+rwX /cache

FROM python:${PYTHON}-slim
RUN useradd --uid 1000 --user-group --create-home mask-rcnn
COPY --from=build /opt/mask-rcnn /opt/mask-rcnn
COPY --from=build --chown=1000:1000 /cache /cache
ENV PATH=/opt/mask-rcnn/bin:$PATH \
    NUMBA_CACHE_DIR=/cache/numba \
    CUPY_CACHE_DIR=/cache/cupy \
    MPLCONFIGDIR=/cache/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
USER 1000:1000
EXPOSE 8000
ENTRYPOINT ["mask-rcnn"]
CMD ["--help"]
