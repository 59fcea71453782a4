// Winograd convolution F(4x4, 3x3) of images whose channels are innermost, (N, H, W, C); see
// mask_rcnn/ops/cudnn_frontend/winograd.py.
//
// Tiles are counted through all images, row by row.  Each thread transforms one channel of a tile, so that neighbouring
// threads access neighbouring channels; its 36 values stay in registers.

// The points of the polynomials; the others are their negatives, 0 and infinity.
constexpr float A = 0.625f, B = 1.5f;
constexpr float A2 = A * A, B2 = B * B, A3 = A * A2, B3 = B * B2;

// The first pixel of a tile's output.
struct tile_place { int image, top, left; };

__device__ tile_place locate(long long tile, int rows, int columns)
{
    tile_place place;
    const int in_image = (int)(tile % (rows * columns));
    place.image = (int)(tile / (rows * columns));
    place.top = in_image / columns * 4;
    place.left = in_image % columns * 4;
    return place;
}

// Replace six values d, STEP apart, by B^T d.
template <int STEP>
__device__ void transform_input(float* d)
{
    const float d0 = d[0], d1 = d[STEP], d2 = d[2 * STEP], d3 = d[3 * STEP], d4 = d[4 * STEP], d5 = d[5 * STEP];
    const float even_a = d4 - B2 * d2, odd_a = A * (d3 - B2 * d1);
    const float even_b = d4 - A2 * d2, odd_b = B * (d3 - A2 * d1);
    d[0] = A2 * B2 * d0 - (A2 + B2) * d2 + d4;
    d[STEP] = even_a + odd_a;
    d[2 * STEP] = even_a - odd_a;
    d[3 * STEP] = even_b + odd_b;
    d[4 * STEP] = even_b - odd_b;
    d[5 * STEP] = A2 * B2 * d1 - (A2 + B2) * d3 + d5;
}

// Replace the first four of six values m, STEP apart, by A^T m.
template <int STEP>
__device__ void transform_output(float* m)
{
    const float even_a = m[STEP] + m[2 * STEP], odd_a = m[STEP] - m[2 * STEP];
    const float even_b = m[3 * STEP] + m[4 * STEP], odd_b = m[3 * STEP] - m[4 * STEP];
    m[0] = m[0] + even_a + even_b;
    m[STEP] = A * odd_a + B * odd_b;
    m[2 * STEP] = A2 * even_a + B2 * even_b;
    m[3 * STEP] = A3 * odd_a + B3 * odd_b + m[5 * STEP];
}

// out = G g for the three values g.
__device__ void transform_weights(double g0, double g1, double g2, double* out)
{
    const double a = A, b = B, a2 = A2, b2 = B2;
    const double scale_a = 1 / (2 * a2 * (a2 - b2)), scale_b = 1 / (2 * b2 * (b2 - a2));
    out[0] = g0 / (a2 * b2);
    out[1] = (g0 + a * g1 + a2 * g2) * scale_a;
    out[2] = (g0 - a * g1 + a2 * g2) * scale_a;
    out[3] = (g0 + b * g1 + b2 * g2) * scale_b;
    out[4] = (g0 - b * g1 + b2 * g2) * scale_b;
    out[5] = g2;
}

// w: (O, 3, 3, C).  out: (36, C, O); if transposed, for the transposed convolution, (36, O, C) of the rotated weights.
extern "C" __global__ void winograd_weights(const float* w, int out_channels, int channels, int transposed, float* out)
{
    const long long n = (long long)out_channels * channels;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int o = (int)(transposed ? index / channels : index % out_channels);
        const int c = (int)(transposed ? index % channels : index / out_channels);
        const float* filter = w + (long long)o * 9 * channels + c;
        double columns[3][6];
        for (int j = 0; j < 3; ++j) {
            double g[3];
            for (int i = 0; i < 3; ++i)
                g[i] = filter[(long long)(transposed ? 8 - 3 * i - j : 3 * i + j) * channels];
            transform_weights(g[0], g[1], g[2], columns[j]);
        }
        for (int i = 0; i < 6; ++i) {
            double row[6];
            transform_weights(columns[0][i], columns[1][i], columns[2][i], row);
            for (int j = 0; j < 6; ++j)
                out[(6 * i + j) * n + index] = (float)row[j];
        }
    }
}

// Transform n_tiles tiles of x (N, H, W, C), starting at tile first, to tiles (36, n_tiles, C).
extern "C" __global__ void winograd_input(
    const float* x, int channels, int height, int width, int pad_top, int pad_left, int rows, int columns,
    long long first, int n_tiles, float* tiles)
{
    const long long n = (long long)n_tiles * channels;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const tile_place place = locate(first + index / channels, rows, columns);
        const int top = place.top - pad_top, left = place.left - pad_left;
        const float* image = x + (long long)place.image * height * width * channels + index % channels;
        float d[36];
#pragma unroll
        for (int i = 0; i < 6; ++i)
#pragma unroll
            for (int j = 0; j < 6; ++j) {
                const int row = top + i, column = left + j;
                const bool is_inside = row >= 0 && row < height && column >= 0 && column < width;
                d[6 * i + j] = is_inside ? image[((long long)row * width + column) * channels] : 0;
            }
#pragma unroll
        for (int j = 0; j < 6; ++j)
            transform_input<6>(d + j);
#pragma unroll
        for (int i = 0; i < 6; ++i)
            transform_input<1>(d + 6 * i);
#pragma unroll
        for (int k = 0; k < 36; ++k)
            tiles[k * n + index] = d[k];
    }
}

// Transform sums (36, n_tiles, O) to pixels of y (N, H, W, O) and apply the epilogue.  bias (O,) and residual, of the
// shape of y, are read only if has_bias and has_residual are set.
extern "C" __global__ void winograd_output(
    const float* sums, int channels, int height, int width, int rows, int columns, long long first, int n_tiles,
    int has_bias, const float* bias, int has_residual, const float* residual, float clip_min, float clip_max,
    float* y)
{
    const long long n = (long long)n_tiles * channels;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const tile_place place = locate(first + index / channels, rows, columns);
        const int channel = (int)(index % channels);
        const long long image = (long long)place.image * height * width * channels + channel;
        float m[36];
#pragma unroll
        for (int k = 0; k < 36; ++k)
            m[k] = sums[k * n + index];
#pragma unroll
        for (int j = 0; j < 6; ++j)
            transform_output<6>(m + j);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            transform_output<1>(m + 6 * i);
        const float constant = has_bias ? bias[channel] : 0;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = place.top + i, column = place.left + j;
                if (row >= height || column >= width)
                    continue;
                const long long pixel = image + ((long long)row * width + column) * channels;
                const float sum = m[6 * i + j] + (has_residual ? residual[pixel] : 0) + constant;
                y[pixel] = sum < clip_min ? clip_min : sum > clip_max ? clip_max : sum;
            }
    }
}
