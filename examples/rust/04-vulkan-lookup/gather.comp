#version 450
// Gathers rows of a table by index. A row is `width` 32-bit words, whatever they mean; an index that is not in the table
// gives zeros.

layout(set = 0, binding = 0, std430) readonly buffer Table {
    uint table[];
};
layout(set = 0, binding = 1, std430) readonly buffer Indices {
    uint indices[];
};
layout(set = 0, binding = 2, std430) writeonly buffer Rows {
    uint rows[];
};

layout(push_constant) uniform Job {
    uint start;     // word of the table's first row
    uint height;    // rows of the table
    uint width;     // words of a row
    uint count;     // indices
};

layout(local_size_x = 64) in;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < count * width; i += gl_NumWorkGroups.x * 64) {
        uint row = indices[i / width];
        rows[i] = row < height ? table[start + row * width + i % width] : 0;
    }
}
