// The norm and the update of many arrays at once; see mask_rcnn/ops/runtime/multi_array.py.

#define THREADS 256
#define SEGMENT 16384

typedef unsigned long long word;  // an address

#include "runtime/block_sum.cuh"

// One block per segment of an array: the sum of the squares.
extern "C" __global__ void square_sums(const word* gradients, const int* arrays, const long long* starts,
                                       const long long* sizes, double* out)
{
    __shared__ double sums[THREADS];
    const int array = arrays[blockIdx.x];
    const long long start = starts[blockIdx.x];
    const float* gradient = (const float*)gradients[array] + start;
    const long long rest = sizes[array] - start;
    const int size = rest < SEGMENT ? (int)rest : SEGMENT;
    double sum = 0;
    for (int i = threadIdx.x; i < size; i += THREADS)
        sum += (double)gradient[i] * gradient[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

// One block per segment: multiply the elements.
extern "C" __global__ void scale(const word* gradients, const int* arrays, const long long* starts,
                                 const long long* sizes, float factor)
{
    const int array = arrays[blockIdx.x];
    const long long start = starts[blockIdx.x];
    float* gradient = (float*)gradients[array] + start;
    const long long rest = sizes[array] - start;
    const int size = rest < SEGMENT ? (int)rest : SEGMENT;
    for (int i = threadIdx.x; i < size; i += THREADS)
        gradient[i] *= factor;
}

// Return the position in memory of an element of (N, channels, locations) that is stored as (N, locations, channels).
__device__ unsigned interleaved(unsigned i, unsigned channels, unsigned locations)
{
    const unsigned location = i % locations, row = i / locations;
    return (row / channels * locations + location) * channels + row % channels;
}

// One block per segment: gradient = (gradient / loss_scale + decay * parameter) * factor, then momentum SGD.
// The order of the operations is that of the update rules and their hooks.
extern "C" __global__ void momentum_sgd(const word* gradients, const word* parameters, const word* velocities,
                                        const int* arrays, const long long* starts, const long long* sizes,
                                        const int* channels, const int* locations, const float* decays,
                                        const float* factors, float loss_scale, float rate, float momentum)
{
    const int array = arrays[blockIdx.x];
    const long long start = starts[blockIdx.x];
    const float* gradient = (const float*)gradients[array];
    float* parameter = (float*)parameters[array] + start;
    float* velocity = (float*)velocities[array] + start;
    const unsigned n_channels = channels[array], n_locations = locations[array];
    const float decay = decays[array], factor = factors[array];
    const long long rest = sizes[array] - start;
    const int size = rest < SEGMENT ? (int)rest : SEGMENT;
    for (int i = threadIdx.x; i < size; i += THREADS) {
        const unsigned element = (unsigned)start + i;
        const unsigned source = n_channels == 1 ? element : interleaved(element, n_channels, n_locations);
        const float g = (gradient[source] / loss_scale + decay * parameter[i]) * factor;
        const float v = momentum * velocity[i] - rate * g;
        velocity[i] = v;
        parameter[i] += v;
    }
}
