// RoI max pooling, forward and backward; see mask_rcnn/ops/roi_max_pooling.py.
//
// first, count (R, P): the pixels of every bin along one axis, cut to the map.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// One thread computes one bin of one channel.
extern "C" __global__ void roi_max_pooling_forward(
    const real* x, const int* roi_indices,
    const int* y_first, const int* y_count, const int* x_first, const int* x_count,
    long long n, int n_images, int channels, int height, int width, int rows, int columns,
    real* y, int* argmax)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int column = index % columns;
        const int row = index / columns % rows;
        const int channel = index / columns / rows % channels;
        const int r = index / columns / rows / channels;
        const int image = roi_indices[r];
        const int y_bin = r * rows + row;
        const int x_bin = r * columns + column;
        real best = 0;
        int best_pixel = -1;
        if (image >= 0 && image < n_images && y_count[y_bin] > 0 && x_count[x_bin] > 0) {
            const real* map = x + ((long long)image * channels + channel) * height * width;
            best = -3.402823466e38f;
            for (int p = y_first[y_bin]; p < y_first[y_bin] + y_count[y_bin]; ++p)
                for (int q = x_first[x_bin]; q < x_first[x_bin] + x_count[x_bin]; ++q)
                    if (map[p * width + q] > best) {
                        best_pixel = p * width + q;
                        best = map[best_pixel];
                    }
        }
        y[index] = best;
        argmax[index] = best_pixel;
    }
}

// One thread owns one pixel of one channel and walks over the RoIs in order: no atomic operation, and the
// same bits in every run.
extern "C" __global__ void roi_max_pooling_backward(
    const real* gy, const int* argmax, const int* roi_indices,
    const int* y_first, const int* y_count, const int* y_begin, const int* y_end,
    const int* x_first, const int* x_count, const int* x_begin, const int* x_end,
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
            const long long bins = ((long long)r * channels + channel) * rows * columns;
            for (int row = 0; row < rows; ++row) {
                const int y_bin = r * rows + row;
                if (p < y_first[y_bin] || p >= y_first[y_bin] + y_count[y_bin])
                    continue;
                for (int column = 0; column < columns; ++column) {
                    const int x_bin = r * columns + column;
                    if (q >= x_first[x_bin] && q < x_first[x_bin] + x_count[x_bin]
                            && argmax[bins + row * columns + column] == p * width + q)
                        sum += gy[bins + row * columns + column];
                }
            }
        }
        gx[index] = sum;
    }
}
