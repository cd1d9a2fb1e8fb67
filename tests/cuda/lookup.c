// Finds files as a kernel would, with the functions of daxfs_device.h: for each line on standard input it answers with
// a line. `path P`, `hash H` and `inode N` find one node, `list P` a directory's entries.
#include "daxfs_device.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *contents(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        exit(2);
    long len = ftell(file);
    // aligned_alloc wants a multiple of the alignment.
    void *bytes = aligned_alloc(64, ((size_t)len / 64 + 1) * 64);
    rewind(file);
    if (!bytes || fread(bytes, 1, (size_t)len, file) != (size_t)len)
        exit(2);
    fclose(file);
    return bytes;
}

static void show(const void *image, const struct daxfs_node *node)
{
    daxfs_u64 len = 0, sum = 0;
    if (!node) {
        printf("none");
        return;
    }
    const unsigned char *bytes = (const unsigned char *)daxfs_data(image, node, &len);
    for (daxfs_u64 i = 0; bytes && i < len; i++)
        sum = sum * 31 + bytes[i];
    printf("kind %u ino %" PRIu64 " len %" PRIu64 " at %d sum %" PRIu64, node->kind, node->ino, len, bytes != NULL, sum);
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    const void *image = contents(arguments[1]), *lookup = contents(arguments[2]);
    const struct daxfs_lookup *head = (const struct daxfs_lookup *)lookup;
    if (head->magic != DAXFS_LOOKUP_MAGIC || head->version != DAXFS_LOOKUP_VERSION
        || head->node_size != sizeof(struct daxfs_node))
        return 3;
    char line[5000];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        char *what = strchr(line, ' ') + 1;
        if (!strncmp(line, "path ", 5)) {
            show(image, daxfs_find_path(lookup, what, strlen(what)));
        } else if (!strncmp(line, "hash ", 5)) {
            show(image, daxfs_find_hash(lookup, strtoull(what, NULL, 10)));
        } else if (!strncmp(line, "inode ", 6)) {
            show(image, daxfs_find_inode(lookup, strtoull(what, NULL, 10)));
        } else {
            const struct daxfs_node *directory = daxfs_find_path(lookup, what, strlen(what));
            for (uint32_t i = 0; directory && i < directory->children; i++) {
                show(image, daxfs_child(lookup, directory, i));
                printf("; ");
            }
        }
        printf("\n");
    }
    return 0;
}
