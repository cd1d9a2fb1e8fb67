#version 450
// Two sums over the 32-bit words of a place, each word mixed with its position; `daxfs_tests::words` is the same on
// the CPU. Bytes behind the end count as zero. Sums over parts of a file add up to the sums over the whole.
//
// Built twice: with ADDRESS the place is a device address, without it a storage buffer and the distance from its
// first byte.

#ifdef ADDRESS
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer Words {
    uint word[];
};
#define OUTPUT 0
#else
layout(set = 0, binding = 0, std430) readonly buffer Words {
    uint word[];
} data;
#define OUTPUT 1
#endif

layout(set = 0, binding = OUTPUT, std430) buffer Sums {
    uint sums[2];
};

layout(push_constant) uniform Job {
    uint delta;    // bytes before the first one
    uint len;      // bytes
    uint first;    // position of the first word
    uint low;      // the address without `delta`
    uint high;
};

layout(local_size_x = 64) in;

shared uint group_sums[2];

void main() {
    if (gl_LocalInvocationIndex == 0) {
        group_sums[0] = 0;
        group_sums[1] = 0;
    }
    barrier();
#ifdef ADDRESS
    Words data = Words(uvec2(low, high));
#endif
    uint count = len / 4 + uint(len % 4 != 0);
    uint shift = (delta % 4) * 8;
    uint one = 0;
    uint two = 0;
    for (uint i = gl_GlobalInvocationID.x; i < count; i += gl_NumWorkGroups.x * 64) {
        uint at = delta / 4 + i;
        uint left = len - 4 * i;
        uint word = data.word[at] >> shift;
        // The rest of an unaligned word is in the next one, if there is any.
        if (shift != 0 && left > 4 - delta % 4) {
            word |= data.word[at + 1] << (32 - shift);
        }
        if (left < 4) {
            word &= (1u << (8 * left)) - 1;
        }
        uint position = first + i;
        uint mixed = word ^ (position * 0x9E3779B1u);
        mixed ^= mixed >> 16;
        mixed *= 0x85EBCA6Bu;
        mixed ^= mixed >> 13;
        mixed *= 0xC2B2AE35u;
        mixed ^= mixed >> 16;
        one += mixed;
        two += mixed * ((position * 0x165667B1u) | 1u);
    }
    atomicAdd(group_sums[0], one);
    atomicAdd(group_sums[1], two);
    barrier();
    if (gl_LocalInvocationIndex == 0) {
        atomicAdd(sums[0], group_sums[0]);
        atomicAdd(sums[1], group_sums[1]);
    }
}
