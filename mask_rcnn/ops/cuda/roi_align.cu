// RoIAlign, forward and backward; see mask_rcnn/ops/roi_align.py for the formula and the tables.
//
// Tables of one axis (R RoIs, P bins, S pixels along the axis):
//   first, count (R, P): the pixels that a bin reads;  weight (R, P, S): their weights, defined only there;
//   samples (R): samples per bin, at least 1.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// One thread fills the entries of one bin of one RoI.
extern "C" __global__ void roi_align_weights(
    const float* rois, int n_rois, int axis, float scale, int bins, int ratio, int aligned, int step,
    int size, int computed_bins, int* first, int* count, float* weight, float* samples)
{
    const int n = n_rois * computed_bins;
    for (int index = blockIdx.x * blockDim.x + threadIdx.x; index < n; index += gridDim.x * blockDim.x) {
        const int r = index / computed_bins;
        const int bin = index % computed_bins;
        const float offset = aligned ? 0.5f : 0.0f;
        const float start = rois[4 * r + axis] * scale - offset;
        float length = rois[4 * r + axis + 2] * scale - offset - start;
        if (!aligned && !(length >= 1.0f))
            length = 1.0f;
        const float bin_size = length / (float)bins;
        int grid = 0;
        if (isfinite(start) && isfinite(length))
            grid = ratio > 0 ? ratio : (int)ceilf(bin_size);

        float* bin_weight = weight + (long long)index * size;
        const float bin_start = start + (float)(bin * step) * bin_size;
        int begin = 0, end = 0;
        for (int i = 0; i < grid; ++i) {
            // Caffe2's expression, operation by operation: which pixel a sample falls on depends on it.
            float position = bin_start + ((float)i + 0.5f) * bin_size / (float)grid;
            if (position < -1.0f || position > (float)size)
                continue;
            position = fmaxf(position, 0.0f);
            int pixel = (int)position;
            if (pixel >= size - 1) {
                pixel = size - 1;
                position = (float)pixel;
            }
            const int upper = pixel < size - 1 ? pixel + 1 : pixel;
            if (begin == end)
                begin = end = pixel;
            while (begin > pixel)  // the samples of a reversed RoI go down
                bin_weight[--begin] = 0.0f;
            while (end <= upper)
                bin_weight[end++] = 0.0f;
            const float fraction = position - (float)pixel;
            bin_weight[pixel] += 1.0f - fraction;
            bin_weight[upper] += fraction;
        }
        first[index] = begin;
        count[index] = end - begin;
        if (bin == 0)
            samples[r] = (float)(grid > 1 ? grid : 1);
    }
}

// Maps and pooled RoIs have their channels innermost, (N, H, W, C) and (R, rows, columns, C): the threads of
// a warp read neighbours in memory, with the same weights.  Each takes LANES channels, in one load of 16
// bytes where there are four of float.
template <int LANES>
struct alignas(LANES == 4 ? 16 : sizeof(real)) lanes_of {
    real value[LANES];
};

// One thread computes one bin of LANES channels; n counts them.
template <int LANES>
__device__ void forward(
    const lanes_of<LANES>* x, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    long long n, int n_images, int channels, int height, int width, int rows, int columns, lanes_of<LANES>* y)
{
    const int groups = channels / LANES;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int group = index % groups;
        const int column = index / groups % columns;
        const int row = index / groups / columns % rows;
        const int r = index / groups / columns / rows;
        const int image = roi_indices[r];
        lanes_of<LANES> sum = {};
        if (image >= 0 && image < n_images) {
            const lanes_of<LANES>* map = x + (long long)image * height * width * groups + group;
            const int y_bin = r * rows + row;
            const int x_bin = r * columns + column;
            const float* wy = y_weight + (long long)y_bin * height;
            const float* wx = x_weight + (long long)x_bin * width;
            const int x_end = x_first[x_bin] + x_count[x_bin];
            for (int p = y_first[y_bin]; p < y_first[y_bin] + y_count[y_bin]; ++p) {
                lanes_of<LANES> line = {};
                for (int q = x_first[x_bin]; q < x_end; ++q) {
                    const lanes_of<LANES> pixel = map[(long long)(p * width + q) * groups];
                    for (int lane = 0; lane < LANES; ++lane)
                        line.value[lane] += wx[q] * pixel.value[lane];
                }
                for (int lane = 0; lane < LANES; ++lane)
                    sum.value[lane] += wy[p] * line.value[lane];
            }
        }
        for (int lane = 0; lane < LANES; ++lane)
            sum.value[lane] /= (real)(y_samples[r] * x_samples[r]);
        y[index] = sum;
    }
}

// One thread owns one pixel of LANES channels and walks over the RoIs in order: no atomic operation, and the
// same bits in every run.
template <int LANES>
__device__ void backward(
    const lanes_of<LANES>* gy, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* y_begin, const int* y_end,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    const int* x_begin, const int* x_end,
    long long n, int n_rois, int channels, int height, int width, int rows, int columns, lanes_of<LANES>* gx)
{
    const int groups = channels / LANES;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int group = index % groups;
        const int q = index / groups % width;
        const int p = index / groups / width % height;
        const int image = index / groups / width / height;
        lanes_of<LANES> sum = {};
        for (int r = 0; r < n_rois; ++r) {
            if (roi_indices[r] != image
                    || p < y_begin[r] || p >= y_end[r] || q < x_begin[r] || q >= x_end[r])
                continue;
            const lanes_of<LANES>* bins = gy + (long long)r * rows * columns * groups + group;
            lanes_of<LANES> roi_sum = {};
            for (int row = 0; row < rows; ++row) {
                const int y_bin = r * rows + row;
                if (p < y_first[y_bin] || p >= y_first[y_bin] + y_count[y_bin])
                    continue;
                lanes_of<LANES> line = {};
                for (int column = 0; column < columns; ++column) {
                    const int x_bin = r * columns + column;
                    if (q < x_first[x_bin] || q >= x_first[x_bin] + x_count[x_bin])
                        continue;
                    const lanes_of<LANES> bin = bins[(long long)(row * columns + column) * groups];
                    const float weight = x_weight[(long long)x_bin * width + q];
                    for (int lane = 0; lane < LANES; ++lane)
                        line.value[lane] += weight * bin.value[lane];
                }
                const float weight = y_weight[(long long)y_bin * height + p];
                for (int lane = 0; lane < LANES; ++lane)
                    roi_sum.value[lane] += weight * line.value[lane];
            }
            for (int lane = 0; lane < LANES; ++lane)
                sum.value[lane] += roi_sum.value[lane] / (real)(y_samples[r] * x_samples[r]);
        }
        gx[index] = sum;
    }
}

extern "C" __global__ void roi_align_forward_1(
    const real* x, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    long long n, int n_images, int channels, int height, int width, int rows, int columns, real* y)
{
    forward<1>((const lanes_of<1>*)x, roi_indices, y_first, y_count, y_weight, y_samples, x_first, x_count,
        x_weight, x_samples, n, n_images, channels, height, width, rows, columns, (lanes_of<1>*)y);
}

extern "C" __global__ void roi_align_forward_4(
    const real* x, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    long long n, int n_images, int channels, int height, int width, int rows, int columns, real* y)
{
    forward<4>((const lanes_of<4>*)x, roi_indices, y_first, y_count, y_weight, y_samples, x_first, x_count,
        x_weight, x_samples, n, n_images, channels, height, width, rows, columns, (lanes_of<4>*)y);
}

extern "C" __global__ void roi_align_backward_1(
    const real* gy, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* y_begin, const int* y_end,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    const int* x_begin, const int* x_end,
    long long n, int n_rois, int channels, int height, int width, int rows, int columns, real* gx)
{
    backward<1>((const lanes_of<1>*)gy, roi_indices, y_first, y_count, y_weight, y_samples, y_begin, y_end,
        x_first, x_count, x_weight, x_samples, x_begin, x_end, n, n_rois, channels, height, width, rows,
        columns, (lanes_of<1>*)gx);
}

extern "C" __global__ void roi_align_backward_4(
    const real* gy, const int* roi_indices,
    const int* y_first, const int* y_count, const float* y_weight, const float* y_samples,
    const int* y_begin, const int* y_end,
    const int* x_first, const int* x_count, const float* x_weight, const float* x_samples,
    const int* x_begin, const int* x_end,
    long long n, int n_rois, int channels, int height, int width, int rows, int columns, real* gx)
{
    backward<4>((const lanes_of<4>*)gy, roi_indices, y_first, y_count, y_weight, y_samples, y_begin, y_end,
        x_first, x_count, x_weight, x_samples, x_begin, x_end, n, n_rois, channels, height, width, rows,
        columns, (lanes_of<4>*)gx);
}
