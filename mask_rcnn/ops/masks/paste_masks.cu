// Mask pasting; see mask_rcnn/ops/paste_masks.py.  Every operation is that of OpenCV's float bilinear resize.

// Where a pixel's centre lies among a mask's: the mask's pixel before it, and the share of the one after that.
struct Source { int before; float fraction; };

__device__ Source source_of(int pixel, double scale, int margin)
{
    const float position = (float)((pixel + 0.5) * scale - 0.5);
    const int before = (int)floorf(position);
    return {before + margin, position - (float)before};
}

// The same for columns, whose weights OpenCV sets apart at the borders.
__device__ Source column_of(int pixel, double scale, int margin, int last)
{
    const Source source = source_of(pixel, scale, margin);
    if (source.before < 0)
        return {0, 0.0f};
    return source.before < last ? source : Source{last, 0.0f};
}

// A mask with `frame` pixels of zeros around it, and when a pixel belongs to it.
struct Mask {
    const float* probs;
    int rows, columns, frame;
    float min_prob, threshold;
    int threshold_inclusive;
};

__device__ float framed_at(const Mask& mask, int row, int column)
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

__device__ bool covers(const Mask& mask, Source y, Source x)
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

// A block decides a row of the image, blockIdx.x, for the masks blockIdx.y, blockIdx.y + gridDim.y ...
extern "C" __global__ void paste_masks(
    const float* probs, const int* top, const int* height, const double* y_scale,
    const int* left, const int* width, const double* x_scale,
    int n, int out_height, int out_width, int rows, int columns, int padding, int margin,
    const float* min_prob, float threshold, int threshold_inclusive, bool* out)
{
    const int frame = padding + margin;
    for (int r = blockIdx.y; r < n; r += gridDim.y) {
        const Mask mask = {probs + (long long)r * rows * columns, rows, columns, frame, min_prob[r], threshold,
                           threshold_inclusive};
        const int y = (int)blockIdx.x - top[r];
        const bool crosses = y >= 0 && y < height[r];
        const Source row = source_of(y, y_scale[r], margin);
        bool* line = out + ((long long)r * out_height + blockIdx.x) * out_width;
        for (int i = threadIdx.x; i < out_width; i += blockDim.x) {
            const int x = i - left[r];
            line[i] = crosses && x >= 0 && x < width[r]
                && covers(mask, row, column_of(x, x_scale[r], margin, columns + 2 * frame - 1));
        }
    }
}

// A thread walks down a column of the image for the masks blockIdx.y ... and counts the runs of pixels that
// belong to each, or writes them: first pixel and the one behind the last, as pixels are counted down the
// columns.  ends[i] is the number of runs up to the end of column i, counted through all masks.
extern "C" __global__ void mask_runs(
    const float* probs, const int* top, const int* height, const double* y_scale,
    const int* left, const int* width, const double* x_scale,
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
        const bool crosses = x >= 0 && x < width[r];
        const Source column = column_of(x, x_scale[r], margin, columns + 2 * frame - 1);
        const Mask mask = {probs + (long long)r * rows * columns, rows, columns, frame, min_prob[r], threshold,
                           threshold_inclusive};
        const int first = top[r] < 0 ? 0 : top[r];
        const int bottom = top[r] + height[r] < out_height ? top[r] + height[r] : out_height;
        int* runs = write ? out + (index > 0 ? 2 * (long long)ends[index - 1] : 0) : out;
        int count = 0;
        bool inside = false;
        for (int y = first; crosses && y <= bottom; ++y) {
            const bool now = y < bottom && covers(mask, source_of(y - top[r], y_scale[r], margin), column);
            if (now != inside) {
                if (write)
                    runs[2 * count + inside] = i * out_height + y;
                count += inside;
                inside = now;
            }
        }
        if (!write)
            out[index] = count;
    }
}
