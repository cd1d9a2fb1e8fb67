/*
 * Copies rows of a table, by their numbers: one block of threads for one row at a time, 16 bytes a thread, so that
 * neighbours read neighbouring bytes. `gather.ptx` is this file compiled by scripts/ptx.py.
 */
#ifdef __CUDACC_RTC__
#define GATHER extern "C" __global__ void
#else
/* tests/cuda/libcuda.c compiles it as C and gives the three indices of a thread their values. */
#define GATHER static void
#define __align__(bytes) __attribute__((aligned(bytes)))
#endif

struct __align__(16) quad {
    unsigned words[4];
};

/* A row that the table has not is zeros. */
GATHER example_gather(const struct quad *table, unsigned height, unsigned width, const unsigned *rows, unsigned count,
                      struct quad *out)
{
    for (unsigned at = blockIdx.x; at < count; at += gridDim.x) {
        unsigned row = rows[at];
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            struct quad zeros = {{0, 0, 0, 0}};
            out[(unsigned long long)at * width + i] = row < height ? table[(unsigned long long)row * width + i] : zeros;
        }
    }
}
