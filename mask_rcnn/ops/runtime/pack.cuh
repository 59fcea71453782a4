// Several channels of a pixel or bin, which a thread loads at once: in loads of 16 bytes if there are as many.
template <typename element, int LANES>
struct alignas(LANES * sizeof(element) < 16 ? LANES * sizeof(element) : 16) pack {
    element value[LANES];
};
