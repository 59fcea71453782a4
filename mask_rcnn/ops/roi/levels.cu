// The level of the feature pyramid of each RoI; see mask_rcnn/ops/roi/levels.py.

// Padding RoIs, which are NaN, get level 0.
extern "C" __global__ void assign_levels(
    const float* rois, int n, float offset, float canonical_size, float epsilon, float bias,
    float canonical_level, float first_level, int round_to_nearest, int n_levels, int* levels)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= n)
        return;
    const float* roi = rois + 4 * (long long)index;
    const float size = sqrtf((roi[2] - roi[0] + offset) * (roi[3] - roi[1] + offset));
    const float exact = canonical_level + log2f(size / canonical_size + epsilon) + bias;
    const float level = (round_to_nearest ? rintf(exact) : floorf(exact)) - first_level;
    const float last = (float)(n_levels - 1);
    levels[index] = (int)(level > 0.f ? level < last ? level : last : 0.f);
}
