// Mask pasting; see mask_rcnn/ops/paste_masks.py.  Every operation is that of OpenCV's float bilinear resize.

// The probability at (row, column) of a mask with `frame` pixels of zeros around it.
__device__ float framed_at(const float* mask, int rows, int columns, int frame, int row, int column)
{
    row -= frame;
    column -= frame;
    return row >= 0 && row < rows && column >= 0 && column < columns ? mask[row * columns + column] : 0.0f;
}

__device__ int clamp_index(int index, int last)
{
    return index < 0 ? 0 : index > last ? last : index;
}

// One thread decides one pixel of one mask.
extern "C" __global__ void paste_masks(
    const float* probs, const int* top, const int* height, const double* y_scale,
    const int* left, const int* width, const double* x_scale,
    long long n, int out_height, int out_width, int rows, int columns, int padding, int margin,
    const float* least, float threshold, int inclusive, bool* out)
{
    const int frame = padding + margin;
    const int last_row = rows + 2 * frame - 1;
    const int last_column = columns + 2 * frame - 1;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int r = index / out_width / out_height;
        const int y = (int)(index / out_width % out_height) - top[r];
        const int x = (int)(index % out_width) - left[r];
        if (y < 0 || y >= height[r] || x < 0 || x >= width[r]) {
            out[index] = false;
            continue;
        }
        const float y_position = (float)((y + 0.5) * y_scale[r] - 0.5);
        const int row = (int)floorf(y_position) + margin;
        const float fy = y_position - (float)(row - margin);
        const float x_position = (float)((x + 0.5) * x_scale[r] - 0.5);
        int column = (int)floorf(x_position) + margin;
        float fx = x_position - (float)(column - margin);
        if (column < 0 || column >= last_column) {
            column = clamp_index(column, last_column);
            fx = 0.0f;
        }
        const int right = clamp_index(column + 1, last_column);
        const float* mask = probs + (long long)r * rows * columns;
        float lines[2];
        for (int k = 0; k < 2; ++k) {
            const int line = clamp_index(row + k, last_row);
            lines[k] = framed_at(mask, rows, columns, frame, line, column) * (1.0f - fx)
                + framed_at(mask, rows, columns, frame, line, right) * fx;
        }
        const float value = fmaxf(lines[0] * (1.0f - fy) + lines[1] * fy, least[r]);
        out[index] = value > threshold || (inclusive && value == threshold);
    }
}
