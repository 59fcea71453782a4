// Mask pasting; see mask_rcnn/ops/masks/paste_masks.py.  The operations are those of OpenCV's float bilinear resize.

// The position of a pixel's centre in a mask: the mask pixel at or before it, and the weight of the mask pixel after it.
struct source_position { int before; float fraction; };

__device__ source_position source_of(int pixel, double shift, double scale, int margin)
{
    const float position = (float)((pixel + 0.5 - shift) * scale - 0.5);
    const int before = (int)floorf(position);
    return {before + margin, position - (float)before};
}

// The position of a column.  OpenCV treats columns, but not rows, separately at the borders.
__device__ source_position column_source_of(int pixel, double shift, double scale, int margin, int last)
{
    const source_position source = source_of(pixel, shift, scale, margin);
    if (source.before < 0)
        return {0, 0.0f};
    return source.before < last ? source : source_position{last, 0.0f};
}

// A mask with a border of `frame` zeros, and the threshold of its pixels.
struct framed_mask {
    const float* probs;
    int rows, columns, frame;
    float min_prob, threshold;
    int threshold_inclusive;
};

__device__ float framed_at(const framed_mask& mask, int row, int column)
{
    row -= mask.frame;
    column -= mask.frame;
    const bool inside = row >= 0 && row < mask.rows && column >= 0 && column < mask.columns;
    return inside ? mask.probs[row * mask.columns + column] : 0.0f;
}

__device__ int clamp_index(int index, int last)
{
    return index < 0 ? 0 : index > last ? last : index;
}

// Return whether the pixel at a position belongs to the mask.
__device__ bool covers(const framed_mask& mask, source_position y, source_position x)
{
    const int last_row = mask.rows + 2 * mask.frame - 1;
    const int right = clamp_index(x.before + 1, mask.columns + 2 * mask.frame - 1);
    float lines[2];
    for (int k = 0; k < 2; ++k) {
        const int row = clamp_index(y.before + k, last_row);
        lines[k] = framed_at(mask, row, x.before) * (1.0f - x.fraction)
            + framed_at(mask, row, right) * x.fraction;
    }
    const float value = fmaxf(lines[0] * (1.0f - y.fraction) + lines[1] * y.fraction, mask.min_prob);
    return value > mask.threshold || (mask.threshold_inclusive && value == mask.threshold);
}

// Paste masks into images.  A block computes row blockIdx.x of the masks blockIdx.y, blockIdx.y + gridDim.y, ...
extern "C" __global__ void paste_masks(
    const float* probs, const int* top, const int* height, const double* y_shift, const double* y_scale,
    const int* left, const int* width, const double* x_shift, const double* x_scale,
    int n, int out_height, int out_width, int rows, int columns, int padding, int margin,
    const float* min_prob, float threshold, int threshold_inclusive, bool* out)
{
    const int frame = padding + margin;
    for (int r = blockIdx.y; r < n; r += gridDim.y) {
        const framed_mask mask = {probs + (long long)r * rows * columns, rows, columns, frame, min_prob[r], threshold,
                                  threshold_inclusive};
        const int y = (int)blockIdx.x - top[r];
        const bool is_in_box = y >= 0 && y < height[r];
        const source_position row = source_of(y, y_shift[r], y_scale[r], margin);
        bool* line = out + ((long long)r * out_height + blockIdx.x) * out_width;
        for (int i = threadIdx.x; i < out_width; i += blockDim.x) {
            const int x = i - left[r];
            line[i] = is_in_box && x >= 0 && x < width[r]
                && covers(mask, row, column_source_of(x, x_shift[r], x_scale[r], margin, columns + 2 * frame - 1));
        }
    }
}

// Find the runs of the pixels of each mask in column-major order.  A thread scans a column of the image for the masks
// blockIdx.y, blockIdx.y + gridDim.y, ...  Without `write`, it writes the number of runs of the column to `out`.  With
// `write`, it writes the first pixel of each run and the first pixel after it; ends[i] is the inclusive prefix sum of
// the numbers of runs over the columns of all masks.
extern "C" __global__ void mask_runs(
    const float* probs, const int* top, const int* height, const double* y_shift, const double* y_scale,
    const int* left, const int* width, const double* x_shift, const double* x_scale,
    int n, int out_height, int out_width, int rows, int columns, int padding, int margin,
    const float* min_prob, float threshold, int threshold_inclusive, int write, const int* ends, int* out)
{
    const int frame = padding + margin;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= out_width)
        return;
    for (int r = blockIdx.y; r < n; r += gridDim.y) {
        const long long index = (long long)r * out_width + i;
        const int x = i - left[r];
        const bool is_in_box = x >= 0 && x < width[r];
        const source_position column
            = column_source_of(x, x_shift[r], x_scale[r], margin, columns + 2 * frame - 1);
        const framed_mask mask = {probs + (long long)r * rows * columns, rows, columns, frame, min_prob[r], threshold,
                                  threshold_inclusive};
        const int first = top[r] < 0 ? 0 : top[r];
        const int bottom = top[r] + height[r] < out_height ? top[r] + height[r] : out_height;
        int* runs = write ? out + (index > 0 ? 2 * (long long)ends[index - 1] : 0) : out;
        int count = 0;
        bool inside = false;
        for (int y = first; is_in_box && y <= bottom; ++y) {
            const bool is_set
                = y < bottom && covers(mask, source_of(y - top[r], y_shift[r], y_scale[r], margin), column);
            if (is_set != inside) {
                if (write)
                    runs[2 * count + inside] = i * out_height + y;
                count += inside;
                inside = is_set;
            }
        }
        if (!write)
            out[index] = count;
    }
}
