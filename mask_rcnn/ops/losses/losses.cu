// Weighted sums of losses, and their gradients; see mask_rcnn/ops/losses.
//
// Losses are computed in float32 and summed in double precision, in an order that depends on the sizes only.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/block_sum.cuh"

#define THREADS 256

// Store the sum of a block: as the loss if the grid has one block, otherwise for sum_partials.
__device__ void store_sum(double value, double* partials, float* loss)
{
    __shared__ double sums[THREADS];
    value = block_sum(value, sums);
    if (threadIdx.x == 0 && gridDim.x == 1)
        loss[0] = (float)value;
    else if (threadIdx.x == 0)
        partials[blockIdx.x] = value;
}

// Binary cross entropy; elements with a negative label are ignored.
struct cross_entropy {
    __device__ void operator()(float x, int label, float& loss, float& gradient) const
    {
        const int predicted = x >= 0;
        const float counted = label >= 0 ? 1.0f : 0.0f, e = expf(-fabsf(x));
        loss = counted * (log1pf(e) - x * (label - predicted));
        gradient = (predicted == label ? e : counted) / (1.0f + e) * (label == 1 ? -1.0f : 1.0f);
    }
};

// The same with labels from 0 to 1; small gradients of labels 0 and 1 do not suffer from cancellation.
struct soft_cross_entropy {
    __device__ void operator()(float x, float label, float& loss, float& gradient) const
    {
        const bool predicted = x >= 0;
        const float counted = label >= 0 ? 1.0f : 0.0f, e = expf(-fabsf(x));
        loss = counted * (log1pf(e) - x * (label - (predicted ? 1.0f : 0.0f)));
        gradient = counted * (predicted ? (1.0f - label) - label * e : (1.0f - label) * e - label) / (1.0f + e);
    }
};

// Smooth L1, or L1 if beta is 0.  The comparisons keep NaN, which fminf and fmaxf would drop.
struct smooth_l1_loss {
    float beta;

    __device__ void operator()(float x, float target, float& loss, float& gradient) const
    {
        const float difference = x - target, distance = fabsf(difference);
        if (beta == 0) {
            loss = distance;
            gradient = difference > 0 ? 1.0f : difference < 0 ? -1.0f : difference;
            return;
        }
        const float clipped = distance > beta ? beta : distance;
        loss = clipped * (distance - 0.5f * clipped) / beta;
        gradient = (difference < 0 ? -clipped : clipped) / beta;
    }
};

// The n elements of vectors x[i][j] of n_values elements each.  "indices" are the indices i of all vectors, then j.
struct selection {
    const int* indices;
    int n, n_values;
    long long stride_0, stride_1, stride;  // of i, of j, and between the elements of a vector

    __device__ long long position(int element) const
    {
        const int vector = element / n_values;
        return indices[vector] * stride_0 + indices[n / n_values + vector] * stride_1 + element % n_values * stride;
    }
};

template <typename function, typename element, typename target>
__device__ void sum_losses(function evaluate, const element* x, selection selected, const target* targets,
                           const float* weights, float* gradients, double* partials, float* loss)
{
    double sum = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < selected.n; i += gridDim.x * THREADS) {
        const float weight = weights[i / selected.n_values];
        float value, gradient;
        evaluate(load(x[selected.position(i)]), targets[i], value, gradient);
        sum += weight * value;
        gradients[i] = weight * gradient;
    }
    store_sum(sum, partials, loss);
}

extern "C" __global__ void sigmoid_cross_entropy(
    const float* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const int* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(cross_entropy(), x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

extern "C" __global__ void sigmoid_cross_entropy_half(
    const unsigned short* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const int* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(cross_entropy(), (const half_bits*)x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

extern "C" __global__ void soft_sigmoid_cross_entropy(
    const float* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const float* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(soft_cross_entropy(), x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

extern "C" __global__ void soft_sigmoid_cross_entropy_half(
    const unsigned short* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const float* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(soft_cross_entropy(), (const half_bits*)x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

extern "C" __global__ void smooth_l1(
    const float* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const float* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(smooth_l1_loss{beta}, x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

extern "C" __global__ void smooth_l1_half(
    const unsigned short* x, const int* indices, int n, int n_values, long long stride_0, long long stride_1,
    long long stride, const float* targets, const float* weights, float beta, float* gradients, double* partials,
    float* loss)
{
    sum_losses(smooth_l1_loss{beta}, (const half_bits*)x, selection{indices, n, n_values, stride_0, stride_1, stride}, targets,
               weights, gradients, partials, loss);
}

// Write the gradients, multiplied by that of the loss, to the selected elements.
template <typename element>
__device__ void scatter(const float* gradients, const float* loss_gradient, selection selected, element* out)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < selected.n; i += gridDim.x * blockDim.x)
        store(gradients[i] * loss_gradient[0], out[selected.position(i)]);
}

extern "C" __global__ void scatter_gradients(
    const float* gradients, const float* loss_gradient, const int* indices, int n, int n_values, long long stride_0,
    long long stride_1, long long stride, float* out)
{
    scatter(gradients, loss_gradient, selection{indices, n, n_values, stride_0, stride_1, stride}, out);
}

extern "C" __global__ void scatter_gradients_half(
    const float* gradients, const float* loss_gradient, const int* indices, int n, int n_values, long long stride_0,
    long long stride_1, long long stride, unsigned short* out)
{
    scatter(gradients, loss_gradient, selection{indices, n, n_values, stride_0, stride_1, stride}, (half_bits*)out);
}

// Cross entropy of the softmax of n_classes scores; one block per row.  Rows with a negative label are ignored.
template <typename element>
__device__ void sum_softmax(const element* scores, int n_classes, const int* labels, const float* weights,
                            float* gradients, double* partials, float* loss)
{
    __shared__ float maxima[THREADS];
    __shared__ double sums[THREADS];
    const int thread = threadIdx.x, label = labels[blockIdx.x];
    const float weight = label < 0 ? 0 : weights[blockIdx.x];
    scores += (long long)blockIdx.x * n_classes;
    gradients += (long long)blockIdx.x * n_classes;
    float highest = load(scores[0]);
    for (int i = thread; i < n_classes; i += THREADS)
        highest = fmaxf(highest, load(scores[i]));
    maxima[thread] = highest;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half)
            maxima[thread] = fmaxf(maxima[thread], maxima[thread + half]);
        __syncthreads();
    }
    highest = maxima[0];
    double sum = 0;
    for (int i = thread; i < n_classes; i += THREADS)
        sum += expf(load(scores[i]) - highest);
    const float total = (float)block_sum(sum, sums);
    for (int i = thread; i < n_classes; i += THREADS)
        gradients[i] = weight * (expf(load(scores[i]) - highest) / total - (i == label ? 1.0f : 0.0f));
    const float score = load(scores[label < 0 ? 0 : label]) - highest;
    store_sum(thread == 0 ? weight * (logf(total) - score) : 0, partials, loss);
}

extern "C" __global__ void softmax_cross_entropy(
    const float* scores, int n_classes, const int* labels, const float* weights, float* gradients, double* partials,
    float* loss)
{
    sum_softmax(scores, n_classes, labels, weights, gradients, partials, loss);
}

extern "C" __global__ void softmax_cross_entropy_half(
    const unsigned short* scores, int n_classes, const int* labels, const float* weights, float* gradients,
    double* partials, float* loss)
{
    sum_softmax((const half_bits*)scores, n_classes, labels, weights, gradients, partials, loss);
}

// Sum the values of the blocks of another kernel; one block.
extern "C" __global__ void sum_partials(double* partials, int n, float* loss)
{
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS)
        sum += partials[i];
    store_sum(sum, partials, loss);
}
