/*
 * BLAKE3 of many ranges of a GPU's memory at once (`hash.rs` launches these kernels, `extents.rs` lays out the work).
 *
 * One thread hashes one chunk of 1024 bytes into a slot of 32 bytes. Then, level by level, one thread joins two
 * neighbours: the node of the left one's slot becomes their parent. A node without a right neighbour stays where it
 * is, which is how BLAKE3 carries it up. In the end an extent's hash is in its first slot. No thread waits for another.
 *
 * The first slot of each extent is a multiple of the power of two at or above its number of chunks, so on level `l`
 * every pair of nodes begins at a multiple of 2 << l. Slots between the extents are unused.
 *
 * `hash.ptx` is this file compiled by scripts/ptx.py. tests/cuda/libcuda.c compiles it as C and runs it on the host,
 * thread by thread, and gives the three indices of a thread their values.
 */
#ifdef __CUDACC_RTC__
#define KERNEL extern "C" __global__ void __launch_bounds__(128)
#define FUNCTION static __device__ __forceinline__
#else
#define KERNEL static void
#define FUNCTION static inline
typedef struct { unsigned x, y, z, w; } uint4;
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

/* Of BLAKE3. */
#define CHUNK 1024u
#define BLOCK 64u
#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define ROOT 8u

/* A range of memory that is hashed: a file, or a part of one that is a whole subtree. `Extent` in extents.rs. */
struct extent {
    u64 address;
    u64 len;
    /* Number of its first chunk in the file. */
    u64 chunk;
    u32 first_slot;
    /* 1 for a whole file, whose hash is wanted: its last node is the root. */
    u32 is_whole;
};

/* A chaining value: what is in a slot. */
struct node {
    uint4 low, high;
};

FUNCTION u32 rotate(u32 word, u32 bits)
{
    return word >> bits | word << (32 - bits);
}

#define MIX(a, b, c, d, x, y)                                                                                          \
    a += b + (x), d = rotate(d ^ a, 16), c += d, b = rotate(b ^ c, 12);                                                \
    a += b + (y), d = rotate(d ^ a, 8), c += d, b = rotate(b ^ c, 7)

/* One round; the numbers say in which order the words of the message are taken. */
#define ROUND(i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15)                                    \
    MIX(v0, v4, v8, v12, m[i0], m[i1]);                                                                                \
    MIX(v1, v5, v9, v13, m[i2], m[i3]);                                                                                \
    MIX(v2, v6, v10, v14, m[i4], m[i5]);                                                                               \
    MIX(v3, v7, v11, v15, m[i6], m[i7]);                                                                               \
    MIX(v0, v5, v10, v15, m[i8], m[i9]);                                                                               \
    MIX(v1, v6, v11, v12, m[i10], m[i11]);                                                                             \
    MIX(v2, v7, v8, v13, m[i12], m[i13]);                                                                              \
    MIX(v3, v4, v9, v14, m[i14], m[i15])

/* BLAKE3's compression of a block of 16 words, of which `len` bytes count, into the chaining value `h`. */
FUNCTION void compress(u32 *h, const u32 *m, u64 counter, u32 len, u32 flags)
{
    u32 v0 = h[0], v1 = h[1], v2 = h[2], v3 = h[3], v4 = h[4], v5 = h[5], v6 = h[6], v7 = h[7];
    u32 v8 = 0x6a09e667u, v9 = 0xbb67ae85u, v10 = 0x3c6ef372u, v11 = 0xa54ff53au;
    u32 v12 = (u32)counter, v13 = (u32)(counter >> 32), v14 = len, v15 = flags;
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
    h[0] = v0 ^ v8, h[1] = v1 ^ v9, h[2] = v2 ^ v10, h[3] = v3 ^ v11;
    h[4] = v4 ^ v12, h[5] = v5 ^ v13, h[6] = v6 ^ v14, h[7] = v7 ^ v15;
}

FUNCTION void begin(u32 *h)
{
    h[0] = 0x6a09e667u, h[1] = 0xbb67ae85u, h[2] = 0x3c6ef372u, h[3] = 0xa54ff53au;
    h[4] = 0x510e527fu, h[5] = 0x9b05688cu, h[6] = 0x1f83d9abu, h[7] = 0x5be0cd19u;
}

FUNCTION void spread(u32 *to, uint4 from)
{
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}

FUNCTION uint4 gather(const u32 *from)
{
    uint4 to;
    to.x = from[0], to.y = from[1], to.z = from[2], to.w = from[3];
    return to;
}

FUNCTION void put(struct node *slot, const u32 *h)
{
    slot->low = gather(h);
    slot->high = gather(h + 4);
}

/* A block of the message: whole ones at a multiple of 16 bytes, as packed files have them, by four loads. Nothing
 * behind the message is read. */
FUNCTION void read_block(u32 *m, u64 address, u32 len)
{
    if (len == BLOCK && address % 16 == 0) {
        const uint4 *from = (const uint4 *)address;
        spread(m, from[0]), spread(m + 4, from[1]), spread(m + 8, from[2]), spread(m + 12, from[3]);
        return;
    }
    const unsigned char *from = (const unsigned char *)address;
    u32 word, byte;
#ifdef __CUDACC_RTC__
#pragma unroll
#endif
    for (word = 0; word < 16; word++) {
        m[word] = 0;
        for (byte = 0; byte < 4 && word * 4 + byte < len; byte++)
            m[word] |= (u32)from[word * 4 + byte] << (8 * byte);
    }
}

/* The extent that a slot belongs to, of `count` in the order of their slots. */
FUNCTION struct extent extent_of(const struct extent *extents, u32 count, u32 slot)
{
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        if (extents[middle].first_slot <= slot)
            low = middle;
        else
            high = middle;
    }
    return extents[low];
}

/* No bytes are one chunk, too. */
FUNCTION u32 chunks(const struct extent *extent)
{
    return extent->len ? (u32)((extent->len + CHUNK - 1) / CHUNK) : 1;
}

/* One thread for each of `slots` slots. */
KERNEL daxfs_hash_chunks(const struct extent *extents, u32 count, struct node *nodes, u32 slots)
{
    u32 slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= slots)
        return;
    struct extent extent = extent_of(extents, count, slot);
    u32 number = slot - extent.first_slot, all = chunks(&extent);
    if (number >= all)
        return;
    u64 address = extent.address + (u64)number * CHUNK;
    u64 behind = extent.len - (u64)number * CHUNK;
    u32 left = behind < CHUNK ? (u32)behind : CHUNK, flags = CHUNK_START;
    u32 h[8], m[16];
    begin(h);
    for (;;) {
        u32 len = left < BLOCK ? left : BLOCK;
        read_block(m, address, len);
        left -= len, address += len;
        if (!left)
            flags |= CHUNK_END | (extent.is_whole && all == 1 ? ROOT : 0);
        compress(h, m, extent.chunk + number, len, flags);
        if (!left)
            break;
        flags = 0;
    }
    put(nodes + slot, h);
}

/* One thread for each of `pairs` pairs of nodes of a level, counted from the chunks, which are level 0. */
KERNEL daxfs_hash_parents(const struct extent *extents, u32 count, struct node *nodes, u32 pairs, u32 level)
{
    u32 pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs)
        return;
    u32 left = pair << (level + 1);
    struct extent extent = extent_of(extents, count, left);
    u32 right = left - extent.first_slot + (1u << level), all = chunks(&extent);
    if (right >= all)
        return;
    u32 h[8], m[16];
    const struct node *other = nodes + extent.first_slot + right;
    begin(h);
    spread(m, nodes[left].low), spread(m + 4, nodes[left].high);
    spread(m + 8, other->low), spread(m + 12, other->high);
    compress(h, m, 0, BLOCK, PARENT | (extent.is_whole && all <= 2u << level ? ROOT : 0));
    put(nodes + left, h);
}

/* One thread for each extent: its hash goes to where the host finds all of them together. */
KERNEL daxfs_hash_collect(const struct extent *extents, u32 count, const struct node *nodes, struct node *hashes)
{
    u32 number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number < count)
        hashes[number] = nodes[extents[number].first_slot];
}
