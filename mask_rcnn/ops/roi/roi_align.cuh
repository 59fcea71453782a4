// Geometry of RoIAlign: the bins of a RoI along one axis of its map, and the pixels of their samples.

__device__ int computed_bins(int bins, int step) { return (bins + step - 1) / step; }

// The division of RoIs into bins along one axis; the arguments of roi_align.
struct axis_params {
    float scale;
    int bins, ratio, aligned, step;

    __device__ int computed_bins() const { return ::computed_bins(bins, step); }
};

// One RoI along one axis of its map.
struct roi_axis {
    float start, length, bin_size;
    int grid;  // samples per bin; 0 if the RoI is not finite
    int size, step;

    __device__ float samples() const { return (float)(grid > 1 ? grid : 1); }
    __device__ float bin_start(int bin) const { return start + (float)(bin * step) * bin_size; }
};

__device__ roi_axis make_roi_axis(float low, float high, const axis_params& params, int size)
{
    const float offset = params.aligned ? 0.5f : 0.0f;
    roi_axis result;
    result.start = low * params.scale - offset;
    result.length = high * params.scale - offset - result.start;
    if (!params.aligned && !(result.length >= 1.0f))
        result.length = 1.0f;
    result.bin_size = result.length / (float)params.bins;
    result.grid = 0;
    if (isfinite(result.start) && isfinite(result.length))
        result.grid = params.ratio > 0 ? params.ratio : (int)ceilf(result.bin_size);
    result.size = size;
    result.step = params.step;
    return result;
}

// Return the pixel at or before the i-th sample of a bin, or -1 outside of the map, and the weight of the next pixel.
__device__ int sample_pixel(const roi_axis& axis, int bin, int i, float* fraction)
{
    // roi_align_op.cc's expression, operation by operation: its rounding decides which pixel a sample falls on.
    float position = axis.bin_start(bin) + ((float)i + 0.5f) * axis.bin_size / (float)axis.grid;
    if (position < -1.0f || position > (float)axis.size)
        return -1;
    position = fmaxf(position, 0.0f);
    int pixel = (int)position;
    if (pixel >= axis.size - 1) {
        pixel = axis.size - 1;
        position = (float)pixel;
    }
    *fraction = position - (float)pixel;
    return pixel;
}
