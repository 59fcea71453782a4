// Crop and resize, forward and backward; see mask_rcnn/ops/crop_and_resize.py for the formula.
//
// Tables of one axis (R RoIs, P bins): first (R, P), the pixel at or before each point, -1 outside of the map;
// fraction (R, P), the weight of the pixel behind it.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// One thread computes one bin of one channel.
extern "C" __global__ void crop_and_resize_forward(
    const real* x, const int* roi_indices, const int* y_first, const float* y_fraction,
    const int* x_first, const float* x_fraction, long long n, int n_images, int channels, int height,
    int width, int rows, int columns, real* y)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int column = index % columns;
        const int row = index / columns % rows;
        const int channel = index / columns / rows % channels;
        const int r = index / columns / rows / channels;
        const int image = roi_indices[r];
        const int top = y_first[r * rows + row];
        const int left = x_first[r * columns + column];
        real value = 0;
        if (image >= 0 && image < n_images && top >= 0 && left >= 0) {
            const real* map = x + ((long long)image * channels + channel) * height * width;
            const real* upper_row = map + top * width;
            const real* lower_row = top < height - 1 ? upper_row + width : upper_row;
            const int right = left < width - 1 ? left + 1 : left;
            const float fx = x_fraction[r * columns + column];
            const real upper = upper_row[left] + (upper_row[right] - upper_row[left]) * fx;
            const real lower = lower_row[left] + (lower_row[right] - lower_row[left]) * fx;
            value = upper + (lower - upper) * y_fraction[r * rows + row];
        }
        y[index] = value;
    }
}

// The weight of a pixel in a point; 0 if the point does not read it.
__device__ float weight_of(int pixel, int first, float fraction)
{
    if (first < 0)
        return 0.0f;
    return pixel == first ? 1.0f - fraction : pixel == first + 1 ? fraction : 0.0f;
}

// One thread owns one pixel of one channel and walks over the RoIs in order: no atomic operation, and the
// same bits in every run.
extern "C" __global__ void crop_and_resize_backward(
    const real* gy, const int* roi_indices,
    const int* y_first, const float* y_fraction, const int* y_begin, const int* y_end,
    const int* x_first, const float* x_fraction, const int* x_begin, const int* x_end,
    long long n, int n_rois, int channels, int height, int width, int rows, int columns, real* gx)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int q = index % width;
        const int p = index / width % height;
        const int channel = index / width / height % channels;
        const int image = index / width / height / channels;
        real sum = 0;
        for (int r = 0; r < n_rois; ++r) {
            if (roi_indices[r] != image
                    || p < y_begin[r] || p >= y_end[r] || q < x_begin[r] || q >= x_end[r])
                continue;
            const real* bins = gy + ((long long)r * channels + channel) * rows * columns;
            for (int row = 0; row < rows; ++row) {
                const float wy = weight_of(p, y_first[r * rows + row], y_fraction[r * rows + row]);
                if (wy == 0.0f)
                    continue;
                real line = 0;
                for (int column = 0; column < columns; ++column)
                    line += weight_of(q, x_first[r * columns + column], x_fraction[r * columns + column])
                        * bins[row * columns + column];
                sum += wy * line;
            }
        }
        gx[index] = sum;
    }
}
