// Preparation of the network input; see mask_rcnn/ops/images/network_input.py.  The operations and their order are
// those of mask_rcnn/preprocessing/resize.py and resize_pillow.py.

// An image of three channels, (height, width, 3) or (3, height, width).
template <typename pixel>
struct image_view {
    const pixel* values;
    int height, width, channels_last, reverse_channels;

    __device__ double at(int channel, int y, int x) const
    {
        const int c = reverse_channels ? 2 - channel : channel;
        const long long row = (long long)(channels_last ? y : c * height + y) * width;
        return values[channels_last ? (row + x) * 3 + c : row + x];
    }

    // Return a pixel, or 0 outside the image.
    __device__ double at_or_zero(int channel, int y, int x) const
    {
        return y >= 0 && y < height && x >= 0 && x < width ? at(channel, y, x) : 0.0;
    }
};

// The means and the standard deviations of the channels.
struct statistics { double mean[3]; float std[3]; };

// The area of the output (3, height, width) that contains the resized image.
struct window {
    int top, left, rows, columns, height, width;

    __device__ bool contains(int y, int x) const
    {
        return y >= top && y < top + rows && x >= left && x < left + columns;
    }
};

__device__ int clamp_index(int index, int last)
{
    return index < 0 ? 0 : index > last ? last : index;
}

// The pixel at or before a position, and the distance of the position from it.
struct source_position { int before; float fraction; };

// `inverse_scale` is the distance of the output pixels in the image.
__device__ source_position opencv_source(int pixel, double inverse_scale)
{
    const float position = (float)((pixel + 0.5) * inverse_scale - 0.5);
    const float before = floorf(position);
    return {(int)before, position - before};
}

// The value at a pixel of the resized image, as in resize_opencv.
template <typename pixel>
__device__ float opencv_value(
    const image_view<pixel>& image, int c, double mean, int mean_first, source_position y, source_position x)
{
    const double mean_before = mean_first ? mean : 0.0;
    const int right = x.before + 1 < image.width ? x.before + 1 : image.width - 1;
    float lines[2];
    for (int k = 0; k < 2; ++k) {
        const int row = clamp_index(y.before + k, image.height - 1);
        lines[k] = (float)(image.at(c, row, x.before) - mean_before) * (1.0f - x.fraction)
            + (float)(image.at(c, row, right) - mean_before) * x.fraction;
    }
    const float value = lines[0] * (1.0f - y.fraction) + lines[1] * y.fraction;
    return mean_first ? value : value - (float)mean;
}

template <typename pixel>
__device__ void prepare_opencv(
    const image_view<pixel>& image, double inverse_scale, int mean_first, const statistics& channels,
    const window& area, float* out)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= area.width)
        return;
    source_position x = opencv_source(j - area.left, inverse_scale);
    // OpenCV moves positions beyond the first or the last column, but not those of rows, onto that column.
    if (x.before < 0 || x.before >= image.width - 1)
        x = {clamp_index(x.before, image.width - 1), 0.0f};
    for (int i = blockIdx.y; i < area.height; i += gridDim.y) {
        const source_position y = opencv_source(i - area.top, inverse_scale);
        for (int c = 0; c < 3; ++c) {
            const float value =
                area.contains(i, j) ? opencv_value(image, c, channels.mean[c], mean_first, y, x) : 0.0f;
            out[((long long)c * area.height + i) * area.width + j] = value / channels.std[c];
        }
    }
}

// The value at a pixel of the resized image, as in resize_uint8_skimage: `y` and `x` are positions in the image.
template <typename pixel>
__device__ double skimage_value(const image_view<pixel>& image, int c, double y, double x, const double* limits)
{
    const double top = floor(y), left = floor(x);
    const double b = y - top, a = x - left;
    double lines[2];
    for (int k = 0; k < 2; ++k)
        lines[k] = (1.0 - a) * image.at_or_zero(c, (int)top + k, (int)left)
            + a * image.at_or_zero(c, (int)top + k, (int)left + 1);
    return floor(fmin(fmax((1.0 - b) * lines[0] + b * lines[1], limits[0]), limits[1]));
}

template <typename pixel>
__device__ void prepare_skimage(
    const image_view<pixel>& image, const double* limits, double y_factor, double x_factor, const statistics& channels,
    const window& area, float* out)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= area.width)
        return;
    const double x = x_factor * (j - area.left) + (x_factor / 2 - 0.5);
    for (int i = blockIdx.y; i < area.height; i += gridDim.y) {
        const double y = y_factor * (i - area.top) + (y_factor / 2 - 0.5);
        for (int c = 0; c < 3; ++c) {
            const double value = area.contains(i, j) ? skimage_value(image, c, y, x, limits) : 0.0;
            const float difference = (float)(value - channels.mean[c]);
            out[((long long)c * area.height + i) * area.width + j] = difference / channels.std[c];
        }
    }
}

// `factor` is the distance of the output pixels in the image.
__device__ source_position torch_source(int pixel, float factor, int last)
{
    // The product is exact in double precision, as in a fused multiply-add.
    const float position = (float)fmax((double)factor * (pixel + 0.5) - 0.5, 0.0);
    const int before = clamp_index((int)position, last);
    return {before, position - before};
}

// The value at a pixel of the resized image, as in resize_torch.
template <typename pixel>
__device__ float torch_value(
    const image_view<pixel>& image, int c, float mean, float std, int normalize_first, source_position y,
    source_position x)
{
    const float mean_before = normalize_first ? mean : 0.0f, std_before = normalize_first ? std : 1.0f;
    const int right = clamp_index(x.before + 1, image.width - 1);
    float lines[2];
    for (int k = 0; k < 2; ++k) {
        const int row = clamp_index(y.before + k, image.height - 1);
        lines[k] = ((float)image.at(c, row, x.before) - mean_before) / std_before * (1.0f - x.fraction)
            + ((float)image.at(c, row, right) - mean_before) / std_before * x.fraction;
    }
    const float value = lines[0] * (1.0f - y.fraction) + lines[1] * y.fraction;
    return normalize_first ? value : (value - mean) / std;
}

template <typename pixel>
__device__ void prepare_torch(
    const image_view<pixel>& image, float y_factor, float x_factor, int normalize_first, const statistics& channels,
    const window& area, float* out)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= area.width)
        return;
    const source_position x = torch_source(j - area.left, x_factor, image.width - 1);
    for (int i = blockIdx.y; i < area.height; i += gridDim.y) {
        const source_position y = torch_source(i - area.top, y_factor, image.height - 1);
        for (int c = 0; c < 3; ++c) {
            const float mean = (float)channels.mean[c], std = channels.std[c];
            out[((long long)c * area.height + i) * area.width + j] =
                area.contains(i, j) ? torch_value(image, c, mean, std, normalize_first, y, x) : 0.0f;
        }
    }
}

// The bits of the fractional part of a weight; see mask_rcnn/ops/images/triangle_filter.py.
#define WEIGHT_BITS 22

// The weights of the input pixels of each output pixel of one axis.
struct triangle_filter { const int* first; const int* n_taps; const int* weights; int max_taps; };

// The byte of output pixel `pixel`: the weighted sum of the input pixels, which are `stride` bytes apart.
__device__ unsigned char filter_bytes(const triangle_filter& filter, int pixel, const unsigned char* values, int stride)
{
    const int* weights = filter.weights + (long long)pixel * filter.max_taps;
    values += (long long)filter.first[pixel] * stride;
    int sum = 1 << (WEIGHT_BITS - 1);
    for (int k = 0; k < filter.n_taps[pixel]; ++k)
        sum += values[(long long)k * stride] * weights[k];
    const int value = sum >> WEIGHT_BITS;
    return value > 255 ? 255 : value;
}

// Resize the width of bytes (height, width, 3) to `columns`.  A thread computes a column of the rows blockIdx.y,
// blockIdx.y + gridDim.y, ...
extern "C" __global__ void pillow_width(
    const unsigned char* image, const int* first, const int* n_taps, const int* weights, int max_taps, int height,
    int width, int columns, unsigned char* out)
{
    const triangle_filter filter = {first, n_taps, weights, max_taps};
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= columns)
        return;
    for (int i = blockIdx.y; i < height; i += gridDim.y)
        for (int c = 0; c < 3; ++c)
            out[((long long)i * columns + j) * 3 + c] =
                filter_bytes(filter, j, image + (long long)i * width * 3 + c, 3);
}

// Compute a network input (3, out_height, out_width).  A thread computes a column of the rows blockIdx.y,
// blockIdx.y + gridDim.y, ...
extern "C" __global__ void opencv_uint8(
    const unsigned char* image, double inverse_scale, int mean_first,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<unsigned char> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_opencv(view, inverse_scale, mean_first, channels, area, out);
}

extern "C" __global__ void opencv_float32(
    const float* image, double inverse_scale, int mean_first,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<float> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_opencv(view, inverse_scale, mean_first, channels, area, out);
}

extern "C" __global__ void skimage_uint8(
    const unsigned char* image, const double* limits, double y_factor, double x_factor,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<unsigned char> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_skimage(view, limits, y_factor, x_factor, channels, area, out);
}

extern "C" __global__ void skimage_float32(
    const float* image, const double* limits, double y_factor, double x_factor,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<float> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_skimage(view, limits, y_factor, x_factor, channels, area, out);
}

extern "C" __global__ void torch_uint8(
    const unsigned char* image, float y_factor, float x_factor, int normalize_first,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<unsigned char> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_torch(view, y_factor, x_factor, normalize_first, channels, area, out);
}

extern "C" __global__ void torch_float32(
    const float* image, float y_factor, float x_factor, int normalize_first,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const image_view<float> view = {image, height, width, channels_last, reverse_channels};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    prepare_torch(view, y_factor, x_factor, normalize_first, channels, area, out);
}

// The image (height, columns, 3) has the width of the resized image: see pillow_width.
extern "C" __global__ void pillow_uint8(
    const unsigned char* image, const int* first, const int* n_taps, const int* weights, int max_taps,
    int height, int width, int channels_last, int reverse_channels, int top, int left, int rows, int columns,
    double mean_0, double mean_1, double mean_2, float std_0, float std_1, float std_2,
    int out_height, int out_width, float* out)
{
    const triangle_filter filter = {first, n_taps, weights, max_taps};
    const statistics channels = {{mean_0, mean_1, mean_2}, {std_0, std_1, std_2}};
    const window area = {top, left, rows, columns, out_height, out_width};
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= out_width)
        return;
    for (int i = blockIdx.y; i < out_height; i += gridDim.y)
        for (int c = 0; c < 3; ++c) {
            float value = 0.0f;
            if (area.contains(i, j)) {
                const unsigned char* column = image + (j - left) * 3 + (reverse_channels ? 2 - c : c);
                const float byte = filter_bytes(filter, i - top, column, width * 3);
                value = (byte - (float)channels.mean[c]) / channels.std[c];
            }
            out[((long long)c * out_height + i) * out_width + j] = value;
        }
}
