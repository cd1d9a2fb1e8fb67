/*
 * Walks a directory of tables without the host: thread `i` of a launch takes the entries i, i + threads, ... of the
 * directory, finds the bytes of each, and adds its 32-bit words up. `walk.ptx` is this file compiled by scripts/ptx.py.
 */
#include "daxfs_device.h"

#ifdef __CUDACC_RTC__
#define WALK extern "C" __global__ void
#else
/* tests/cuda/libcuda.c compiles it as C and gives the three indices of a thread their values. */
#define WALK static void
#endif

/* What is known of an entry: `Table` in main.rs. */
struct table {
    daxfs_u64 ino;
    daxfs_u64 len;
    daxfs_u64 sum;
};

/* `directory` is the hash of its path. `tables` has room for all its entries, `most` of them. */
WALK example_walk(const void *image, const void *lookup, daxfs_u64 directory, struct table *tables, unsigned most)
{
    const struct daxfs_node *found = daxfs_find_hash(lookup, directory);
    if (!found || found->kind != DAXFS_DIRECTORY)
        return;
    unsigned threads = gridDim.x * blockDim.x;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < found->children && i < most; i += threads) {
        const struct daxfs_node *node = daxfs_child(lookup, found, i);
        struct table table = {node->ino, 0, 0};
        const daxfs_u32 *words = (const daxfs_u32 *)daxfs_data(image, node, &table.len);
        for (daxfs_u64 at = 0; words && at < table.len / 4; at++)
            table.sum += words[at];
        tables[i] = table;
    }
}
