/*
 * Finds files of a DAXFS image from within a kernel, without the host: a path or an inode number becomes pointer and
 * length. For CUDA C++, HIP, C and C++.
 *
 * A kernel gets two pointers: the image in the device's memory, and the block that `daxfs::device::Lookup` made of
 * it. Both are trusted: the block was made from a validated image, and nothing here checks it again. Paths are compared
 * by their hashes alone: one that is not in the image finds another's node with a probability of the number of names in
 * 2^64, and who wants to can make such a path, so do not look up paths of strangers.
 *
 *     __global__ void gather(const void *image, const void *lookup, ...)
 *     {
 *         uint64_t len;
 *         const void *table = daxfs_find(image, lookup, "tables/17.bin", 13, &len);
 *         if (table) ...
 *     }
 *
 * Paths have no leading slash, and the root directory is the empty path. Symbolic links in the middle of a path are
 * not followed; one at its end stands for the file or directory that it leads to. So a walk that follows all directories
 * may never end where a link leads upward: bound its depth.
 */
#ifndef DAXFS_DEVICE_H
#define DAXFS_DEVICE_H

#if defined(__CUDACC_RTC__) || defined(__HIPCC_RTC__)
/* Run-time compilers have the types and no headers. */
#elif defined(__cplusplus)
#include <cstddef>
#include <cstdint>
#else
#include <stddef.h>
#include <stdint.h>
#endif

#if defined(__CUDACC__) || defined(__HIPCC__)
#define DAXFS_FUNCTION __host__ __device__ static inline
#else
#define DAXFS_FUNCTION static inline
#endif

/* "daxfslkp", read as a little-endian word. */
#define DAXFS_LOOKUP_MAGIC UINT64_C(0x706b6c7366786164)
#define DAXFS_LOOKUP_VERSION 1u

/* Kinds of nodes. */
#define DAXFS_OTHER 0u
#define DAXFS_FILE 1u
#define DAXFS_DIRECTORY 2u

/* `offset` of a file whose bytes lie in several places, or nowhere in the image. */
#define DAXFS_SCATTERED UINT64_MAX

/* A file or directory: 48 bytes. */
struct daxfs_node {
    uint64_t hash;        /* of its path, daxfs_hash() */
    uint64_t offset;      /* of its first byte in the image; files only */
    uint64_t len;         /* bytes; files only */
    uint64_t ino;         /* inode number */
    uint32_t kind;        /* DAXFS_FILE, DAXFS_DIRECTORY, DAXFS_OTHER */
    uint32_t children;    /* directories: how many entries */
    uint32_t first_child; /* directories: index of the first; the others follow, as they are stored */
    uint32_t reserved;
};

/* The block: this header of 64 bytes, the nodes, the slots of paths, the slots of inode numbers. */
struct daxfs_lookup {
    uint64_t magic;
    uint32_t version;
    uint32_t node_size;
    uint64_t nodes;       /* node 0 is the root directory */
    uint64_t path_slots;  /* a power of two; each slot is an index + 1, 0 where it is empty */
    uint64_t inode_slots; /* a power of two */
    uint64_t seed;        /* of daxfs_hash() */
    uint64_t image_len;   /* bytes of the image */
    uint64_t len;         /* bytes of the block */
};

/* Hash of a path of `len` bytes. Kernels that know their paths before can be given hashes. */
DAXFS_FUNCTION uint64_t daxfs_hash(uint64_t seed, const char *path, size_t len)
{
    uint64_t hash = seed ^ UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)path[i]) * UINT64_C(0x100000001b3);
    hash = (hash ^ (hash >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return hash ^ (hash >> 32);
}

DAXFS_FUNCTION const struct daxfs_node *daxfs_nodes(const void *lookup)
{
    return (const struct daxfs_node *)((const char *)lookup + sizeof(struct daxfs_lookup));
}

/* The node of a path's hash; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_hash(const void *lookup, uint64_t hash)
{
    const struct daxfs_lookup *head = (const struct daxfs_lookup *)lookup;
    const struct daxfs_node *nodes = daxfs_nodes(lookup);
    const uint32_t *slots = (const uint32_t *)(nodes + head->nodes);
    uint64_t mask = head->path_slots - 1;
    for (uint64_t at = hash & mask; slots[at]; at = (at + 1) & mask)
        if (nodes[slots[at] - 1].hash == hash)
            return &nodes[slots[at] - 1];
    return NULL;
}

/* The node of a path; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_path(const void *lookup, const char *path, size_t len)
{
    return daxfs_find_hash(lookup, daxfs_hash(((const struct daxfs_lookup *)lookup)->seed, path, len));
}

/* One node of an inode number, which hard links share; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_inode(const void *lookup, uint64_t ino)
{
    const struct daxfs_lookup *head = (const struct daxfs_lookup *)lookup;
    const struct daxfs_node *nodes = daxfs_nodes(lookup);
    const uint32_t *slots = (const uint32_t *)(nodes + head->nodes) + head->path_slots;
    uint64_t mask = head->inode_slots - 1;
    uint64_t at = ino * UINT64_C(0x9e3779b97f4a7c15);
    for (at = (at ^ (at >> 32)) & mask; slots[at]; at = (at + 1) & mask)
        if (nodes[slots[at] - 1].ino == ino)
            return &nodes[slots[at] - 1];
    return NULL;
}

/* Entry `i` of a directory, less than its `children`. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_child(const void *lookup, const struct daxfs_node *directory, uint32_t i)
{
    return daxfs_nodes(lookup) + directory->first_child + i;
}

/* The bytes of a file, and how many; null for everything else, and for files whose bytes are not in one place. */
DAXFS_FUNCTION const void *daxfs_data(const void *image, const struct daxfs_node *file, uint64_t *len)
{
    if (!file || file->kind != DAXFS_FILE || file->offset == DAXFS_SCATTERED)
        return NULL;
    *len = file->len;
    return (const char *)image + file->offset;
}

/* The bytes of the file at a path, and how many; null if there is none. */
DAXFS_FUNCTION const void *daxfs_find(const void *image, const void *lookup, const char *path, size_t path_len,
                                      uint64_t *len)
{
    return daxfs_data(image, daxfs_find_path(lookup, path, path_len), len);
}

#endif
