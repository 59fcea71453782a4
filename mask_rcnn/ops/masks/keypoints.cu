// Heat maps to keypoints; see mask_rcnn/ops/keypoints.py.  The resize is OpenCV's bicubic one for floats.

// Write the weights of the four source pixels around a pixel's centre; return the second one's index.
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

__device__ int inside(int index, int count)
{
    return index < 0 ? 0 : index < count ? index : count - 1;
}

// A heat map's logit at pixel (i, j) of the map resized to height x width.
__device__ float resized_at(const float* heatmap, int rows, int columns, int i, int j, int height, int width)
{
    float y_taps[4], x_taps[4], lines[4];
    const int row = cubic_taps(i, height, rows, y_taps);
    const int column = cubic_taps(j, width, columns, x_taps);
    for (int k = 0; k < 4; ++k) {
        const float* line = heatmap + inside(row - 1 + k, rows) * columns;
        lines[k] = line[inside(column - 1, columns)] * x_taps[0] + line[inside(column, columns)] * x_taps[1]
            + line[inside(column + 1, columns)] * x_taps[2] + line[inside(column + 2, columns)] * x_taps[3];
    }
    return lines[0] * y_taps[0] + lines[1] * y_taps[1] + lines[2] * y_taps[2] + lines[3] * y_taps[3];
}

// A block of 256 threads looks at one heat map: each thread at every 256th pixel, then they compare.
// `total` is the sum of exp(logit - highest) over the pixels seen so far.
extern "C" __global__ void decode_heatmaps(
    const float* heatmaps, const int* sizes, int n_keypoint, int rows, int columns, float* out)
{
    __shared__ float highest[256];
    __shared__ long long position[256];
    __shared__ double total[256];
    const int me = threadIdx.x;
    const float* heatmap = heatmaps + (long long)blockIdx.x * rows * columns;
    const int* size = sizes + 2 * (blockIdx.x / n_keypoint);
    const int height = size[0], width = size[1];
    const long long n = (long long)height * width;
    float my_highest = 0.0f;
    long long my_position = n;  // none yet
    double my_total = 0.0;
    for (long long pixel = me; pixel < n; pixel += 256) {
        const int i = (int)(pixel / width), j = (int)(pixel % width);
        const float logit = resized_at(heatmap, rows, columns, i, j, height, width);
        if (my_position == n || logit > my_highest) {
            if (my_position != n)
                my_total *= expf(my_highest - logit);
            my_highest = logit;
            my_position = pixel;
        }
        my_total += expf(logit - my_highest);
    }
    highest[me] = my_highest;
    position[me] = my_position;
    total[me] = my_total;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        const int other = me + half;
        if (me < half && position[other] != n) {
            const bool mine = position[me] != n && (highest[me] > highest[other]
                || (highest[me] == highest[other] && position[me] < position[other]));
            const int high = mine ? me : other, low = mine ? other : me;
            const double rest = position[low] == n ? 0.0 : total[low] * expf(highest[low] - highest[high]);
            total[me] = total[high] + rest;
            position[me] = position[high];
            highest[me] = highest[high];
        }
        __syncthreads();
    }
    if (me == 0) {
        float* point = out + 4 * (long long)blockIdx.x;
        point[0] = (float)(position[0] / width);
        point[1] = (float)(position[0] % width);
        point[2] = highest[0];
        point[3] = (float)(1.0 / total[0]);
    }
}
