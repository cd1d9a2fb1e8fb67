/*
 * Finds files of a DAXFS image from within a kernel, without the host: a path or an inode number becomes pointer and
 * length. For CUDA C++, HIP, C and C++.
 *
 * A kernel gets two pointers: the image in the device's memory, which has to be one buffer there, and all of it
 * (`MappedImage::buffers()`; not what a placement plan gives a rank), and the block that `daxfs_device::Lookup` made of
 * it. Both are trusted: the block was made from a validated image, and nothing here checks it again. Paths are compared
 * by their hashes alone: one that is not in the image finds another's node with a probability of the number of names in
 * 2^64, and who wants to can make such a path, so do not look up paths of strangers.
 *
 *     __global__ void gather(const void *image, const void *lookup, ...)
 *     {
 *         daxfs_u64 len;
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

#if defined(__CUDACC_RTC__)
/* NVRTC knows size_t and has no headers. */
typedef unsigned int daxfs_u32;
typedef unsigned long long daxfs_u64;
#else
#ifdef __cplusplus
#include <cstddef>
#include <cstdint>
#else
#include <stddef.h>
#include <stdint.h>
#endif
typedef uint32_t daxfs_u32;
typedef uint64_t daxfs_u64;
#endif

#if defined(__CUDACC__) || defined(__HIPCC__)
#define DAXFS_FUNCTION __host__ __device__ static inline
#else
#define DAXFS_FUNCTION static inline
#endif

/* "daxfslkp", read as a little-endian word. */
#define DAXFS_LOOKUP_MAGIC 0x706b6c7366786164ull
#define DAXFS_LOOKUP_VERSION 1u

/* Kinds of nodes. */
#define DAXFS_OTHER 0u
#define DAXFS_FILE 1u
#define DAXFS_DIRECTORY 2u

/* `offset` of a file whose bytes lie in several places, or nowhere in the image. */
#define DAXFS_SCATTERED (~(daxfs_u64)0)

/* A file or directory: 48 bytes. */
struct daxfs_node {
    daxfs_u64 hash;        /* of its path, daxfs_hash() */
    daxfs_u64 offset;      /* of its first byte in the image; files only */
    daxfs_u64 len;         /* bytes; files only */
    daxfs_u64 ino;         /* inode number */
    daxfs_u32 kind;        /* DAXFS_FILE, DAXFS_DIRECTORY, DAXFS_OTHER */
    daxfs_u32 children;    /* directories: how many entries */
    daxfs_u32 first_child; /* directories: index of the first; the others follow, as they are stored */
    daxfs_u32 reserved;
};

/* The block: this header of 64 bytes, the nodes, the slots of paths, the slots of inode numbers. */
struct daxfs_lookup {
    daxfs_u64 magic;
    daxfs_u32 version;
    daxfs_u32 node_size;
    daxfs_u64 nodes;       /* node 0 is the root directory */
    daxfs_u64 path_slots;  /* a power of two; each slot is an index + 1, 0 where it is empty */
    daxfs_u64 inode_slots; /* a power of two */
    daxfs_u64 seed;        /* of daxfs_hash() */
    daxfs_u64 image_len;   /* bytes of the image */
    daxfs_u64 len;         /* bytes of the block */
};

/* Hash of a path of `len` bytes. Kernels that know their paths before can be given hashes. */
DAXFS_FUNCTION daxfs_u64 daxfs_hash(daxfs_u64 seed, const char *path, size_t len)
{
    daxfs_u64 hash = seed ^ 0xcbf29ce484222325ull;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)path[i]) * 0x100000001b3ull;
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93ull;
    return hash ^ (hash >> 32);
}

DAXFS_FUNCTION const struct daxfs_node *daxfs_nodes(const void *lookup)
{
    return (const struct daxfs_node *)((const char *)lookup + sizeof(struct daxfs_lookup));
}

/* The node of a path's hash; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_hash(const void *lookup, daxfs_u64 hash)
{
    const struct daxfs_lookup *head = (const struct daxfs_lookup *)lookup;
    const struct daxfs_node *nodes = daxfs_nodes(lookup);
    const daxfs_u32 *slots = (const daxfs_u32 *)(nodes + head->nodes);
    daxfs_u64 mask = head->path_slots - 1;
    for (daxfs_u64 at = hash & mask; slots[at]; at = (at + 1) & mask)
        if (nodes[slots[at] - 1].hash == hash)
            return &nodes[slots[at] - 1];
    return 0;
}

/* The node of a path; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_path(const void *lookup, const char *path, size_t len)
{
    return daxfs_find_hash(lookup, daxfs_hash(((const struct daxfs_lookup *)lookup)->seed, path, len));
}

/* One node of an inode number, which hard links share; null if there is none. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_find_inode(const void *lookup, daxfs_u64 ino)
{
    const struct daxfs_lookup *head = (const struct daxfs_lookup *)lookup;
    const struct daxfs_node *nodes = daxfs_nodes(lookup);
    const daxfs_u32 *slots = (const daxfs_u32 *)(nodes + head->nodes) + head->path_slots;
    daxfs_u64 mask = head->inode_slots - 1;
    daxfs_u64 at = ino * 0x9e3779b97f4a7c15ull;
    for (at = (at ^ (at >> 32)) & mask; slots[at]; at = (at + 1) & mask)
        if (nodes[slots[at] - 1].ino == ino)
            return &nodes[slots[at] - 1];
    return 0;
}

/* Entry `i` of a directory, less than its `children`. */
DAXFS_FUNCTION const struct daxfs_node *daxfs_child(const void *lookup, const struct daxfs_node *directory, daxfs_u32 i)
{
    return daxfs_nodes(lookup) + directory->first_child + i;
}

/* The bytes of a file, and how many; null for everything else, and for files whose bytes are not in one place. */
DAXFS_FUNCTION const void *daxfs_data(const void *image, const struct daxfs_node *file, daxfs_u64 *len)
{
    if (!file || file->kind != DAXFS_FILE || file->offset == DAXFS_SCATTERED)
        return 0;
    *len = file->len;
    return (const char *)image + file->offset;
}

/* The bytes of the file at a path, and how many; null if there is none. */
DAXFS_FUNCTION const void *daxfs_find(const void *image, const void *lookup, const char *path, size_t path_len,
                                      daxfs_u64 *len)
{
    return daxfs_data(image, daxfs_find_path(lookup, path, path_len), len);
}

#endif
