// Adjacent channels of a pixel or bin that a thread loads at once, with 16-byte loads if there are enough of them.
template <typename element, int LANES>
struct alignas(LANES * sizeof(element) < 16 ? LANES * sizeof(element) : 16) pack {
    element value[LANES];
};
