// Heat maps to keypoints; see mask_rcnn/ops/masks/keypoints.py.  The resize is OpenCV's bicubic one for floats.

// Compute the weights of the four source pixels around a pixel's centre; return the index of the second one.  The
// expressions are those of OpenCV's interpolateCubic, operation by operation in float32.
__device__ int cubic_taps(int pixel, int n_out, int n_in, float* taps)
{
    const float a = -0.75f;
    const float position = (float)((pixel + 0.5) * (1.0 / ((double)n_out / n_in)) - 0.5);
    const int source = (int)floorf(position);
    const float x = position - (float)source;
    const float y = 1.0f - x;
    taps[0] = ((a * (x + 1.0f) - 5.0f * a) * (x + 1.0f) + 8.0f * a) * (x + 1.0f) - 4.0f * a;
    taps[1] = ((a + 2.0f) * x - (a + 3.0f)) * x * x + 1.0f;
    taps[2] = ((a + 2.0f) * y - (a + 3.0f)) * y * y + 1.0f;
    taps[3] = 1.0f - taps[0] - taps[1] - taps[2];
    return source;
}

__device__ int clamp_index(int index, int count)
{
    return index < 0 ? 0 : index < count ? index : count - 1;
}

// The logit at pixel (i, j) of a heat map resized to height x width.
__device__ float resized_at(const float* heatmap, int rows, int columns, int i, int j, int height, int width)
{
    float y_taps[4], x_taps[4], lines[4];
    const int row = cubic_taps(i, height, rows, y_taps);
    const int column = cubic_taps(j, width, columns, x_taps);
    for (int k = 0; k < 4; ++k) {
        const float* line = heatmap + clamp_index(row - 1 + k, rows) * columns;
        lines[k] = line[clamp_index(column - 1, columns)] * x_taps[0]
            + line[clamp_index(column, columns)] * x_taps[1]
            + line[clamp_index(column + 1, columns)] * x_taps[2]
            + line[clamp_index(column + 2, columns)] * x_taps[3];
    }
    return lines[0] * y_taps[0] + lines[1] * y_taps[1] + lines[2] * y_taps[2] + lines[3] * y_taps[3];
}

// Find the maximum of each heat map: (row, column, logit, probability).
//
// A block of 256 threads decodes one heat map: each thread reduces every 256th pixel, then the block reduces the
// threads' results.  `sum` is the sum of exp(logit - highest) over the pixels so far; with `sum_predicted`, it is
// replaced by that over the heat map before the resize.
extern "C" __global__ void decode_heatmaps(
    const float* heatmaps, const int* sizes, int n_keypoints, int rows, int columns, int sum_predicted, float* out)
{
    __shared__ float highest[256];
    __shared__ long long position[256];
    __shared__ double sum[256];
    const int thread = threadIdx.x;
    const float* heatmap = heatmaps + (long long)blockIdx.x * rows * columns;
    const int* size = sizes + 2 * (blockIdx.x / n_keypoints);
    const int height = size[0], width = size[1];
    const long long n = (long long)height * width;
    float thread_highest = 0.0f;
    long long thread_position = n;  // no pixel yet
    double thread_sum = 0.0;
    for (long long pixel = thread; pixel < n; pixel += 256) {
        const int i = (int)(pixel / width), j = (int)(pixel % width);
        const float logit = resized_at(heatmap, rows, columns, i, j, height, width);
        if (thread_position == n || logit > thread_highest) {
            if (thread_position != n)
                thread_sum *= expf(thread_highest - logit);
            thread_highest = logit;
            thread_position = pixel;
        }
        if (!sum_predicted)
            thread_sum += expf(logit - thread_highest);
    }
    highest[thread] = thread_highest;
    position[thread] = thread_position;
    sum[thread] = thread_sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        const int other = thread + half;
        if (thread < half && position[other] != n) {
            const bool is_higher = position[thread] != n && (highest[thread] > highest[other]
                || (highest[thread] == highest[other] && position[thread] < position[other]));
            const int high = is_higher ? thread : other, low = is_higher ? other : thread;
            const double low_sum = position[low] == n ? 0.0 : sum[low] * expf(highest[low] - highest[high]);
            sum[thread] = sum[high] + low_sum;
            position[thread] = position[high];
            highest[thread] = highest[high];
        }
        __syncthreads();
    }
    if (sum_predicted) {
        double predicted_sum = 0.0;
        for (int cell = thread; cell < rows * columns; cell += 256)
            predicted_sum += expf(heatmap[cell] - highest[0]);
        sum[thread] = predicted_sum;
        __syncthreads();
        for (int half = 128; half > 0; half /= 2) {
            if (thread < half)
                sum[thread] += sum[thread + half];
            __syncthreads();
        }
    }
    if (thread == 0) {
        float* point = out + 4 * (long long)blockIdx.x;
        point[0] = (float)(position[0] / width);
        point[1] = (float)(position[0] % width);
        point[2] = highest[0];
        point[3] = (float)(1.0 / sum[0]);
    }
}
