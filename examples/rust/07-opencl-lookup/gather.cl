// Rows of a table, by index: `table` is the buffer that the image lies in, and the table begins at its byte `at`. A row
// that is not there is zeros.
kernel void gather(global const uchar *table, ulong at, uint height, uint width, global const uint *index, global float *rows) {
    size_t row = get_global_id(0), column = get_global_id(1);
    global const float *from = (global const float *)(table + at);
    rows[row * width + column] = index[row] < height ? from[(ulong)index[row] * width + column] : 0;
}
