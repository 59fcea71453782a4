// The mask of one class of each RoI; see mask_rcnn/ops/masks/class_masks.py.

typedef float real;

#include "runtime/half.cuh"

// logits is (n_rois, n_pixels, n_classes).  The sigmoid is Chainer's on a GPU, in double precision.
template <typename element>
__device__ void compute(const element* logits, const int* labels, int n, int n_pixels, int n_classes, float* probs)
{
    for (int index = blockIdx.x * blockDim.x + threadIdx.x; index < n; index += gridDim.x * blockDim.x)
        probs[index] = (float)(tanh(
            load(logits[(long long)index * n_classes + labels[index / n_pixels]]) * 0.5) * 0.5 + 0.5);
}

extern "C" __global__ void class_masks(
    const float* logits, const int* labels, int n, int n_pixels, int n_classes, float* probs)
{
    compute(logits, labels, n, n_pixels, n_classes, probs);
}

extern "C" __global__ void class_masks_half(
    const unsigned short* logits, const int* labels, int n, int n_pixels, int n_classes, float* probs)
{
    compute((const half_bits*)logits, labels, n, n_pixels, n_classes, probs);
}
