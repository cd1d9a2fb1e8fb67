// A simulated OpenCL loader with one device that has memory of its own: the ABI of libOpenCL.so.1 as far as the project
// calls it, so that tests run its imports of descriptors without such a driver.
//
// It is stricter than drivers are: memory that was imported the way of Khronos' extension is read by kernels and calls
// only while it is acquired, and is acquired and released in turns. It reads these variables:
//   DAXFS_FAKE_OPENCL_EXTENSIONS  extensions of the device
//   DAXFS_FAKE_OPENCL_LIES        an import succeeds, and the device sees zeros
//   DAXFS_FAKE_OPENCL_OLD         clImportMemoryARM does not know the property of consistency with the host
// A kernel is `daxfs_sums` of the project, which is run here as C.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_ulong;
enum { SUCCESS = 0, OUT_OF_RESOURCES = -5, INVALID_VALUE = -30, INVALID_MEM = -38, INVALID_OPERATION = -59,
       INVALID_PROPERTY = -64 };

typedef struct {
    uint8_t *bytes;
    size_t size;
    int is_mapped, is_external, is_acquired;
} Memory;

static int thing, live, acquires, releases;

int daxfs_fake_opencl_live(void) { return live; }
int daxfs_fake_opencl_acquires(void) { return acquires * 1000 + releases; }

static const char *setting(const char *name) {
    const char *text = getenv(name);
    return text ? text : "";
}

static cl_int answer(const void *value, size_t len, size_t room, void *to, size_t *has) {
    if (has) *has = len;
    if (to && room < len) return INVALID_VALUE;
    if (to) memcpy(to, value, len);
    return SUCCESS;
}

cl_int clGetPlatformIDs(cl_uint room, void **platforms, cl_uint *count) {
    if (platforms && room) *platforms = &thing;
    if (count) *count = 1;
    return SUCCESS;
}

cl_int clGetDeviceIDs(void *platform, cl_ulong type, cl_uint room, void **devices, cl_uint *count) {
    (void)platform, (void)type;
    if (devices && room) *devices = &thing;
    if (count) *count = 1;
    return SUCCESS;
}

cl_int clGetDeviceInfo(void *device, cl_uint what, size_t room, void *to, size_t *has) {
    cl_ulong gpu = 4, most = 1 << 30;
    cl_uint no = 0, dimensions = 3;
    const char *name = "simulated", *extensions = setting("DAXFS_FAKE_OPENCL_EXTENSIONS");
    switch (what) {
    case 0x1000: return answer(&gpu, sizeof gpu, room, to, has);
    case 0x1003: return answer(&dimensions, sizeof dimensions, room, to, has);
    case 0x1010: return answer(&most, sizeof most, room, to, has);
    case 0x102B: return answer(name, strlen(name) + 1, room, to, has);
    case 0x1030: return answer(extensions, strlen(extensions) + 1, room, to, has);
    case 0x1031: return answer(&device, sizeof device, room, to, has);
    case 0x1035: return answer(&no, sizeof no, room, to, has);
    default: return INVALID_VALUE;
    }
}

static void *made(cl_int *code) {
    if (code) *code = SUCCESS;
    live++;
    return &thing;
}

static cl_int gone(void) {
    live--;
    return SUCCESS;
}

void *clCreateContext(const intptr_t *properties, cl_uint count, void **devices, void *tell, void *user, cl_int *code) {
    (void)properties, (void)count, (void)devices, (void)tell, (void)user;
    return made(code);
}
void *clCreateCommandQueue(void *context, void *device, cl_ulong properties, cl_int *code) {
    (void)context, (void)device, (void)properties;
    return made(code);
}
void *clCreateProgramWithSource(void *context, cl_uint count, const char **texts, const size_t *lens, cl_int *code) {
    (void)context, (void)count, (void)texts, (void)lens;
    return made(code);
}
cl_int clBuildProgram(void *program, cl_uint count, void **devices, const char *options, void *tell, void *user) {
    (void)program, (void)count, (void)devices, (void)options, (void)tell, (void)user;
    return SUCCESS;
}
cl_int clGetProgramInfo(void *program, cl_uint what, size_t room, void *to, size_t *has) {
    (void)program;
    size_t one = 1;
    if (what == 0x1167) return answer(&one, sizeof one, room, to, has);
    return answer("daxfs_sums", 11, room, to, has);
}
void *clCreateKernel(void *program, const char *name, cl_int *code) {
    (void)program;
    if (strcmp(name, "daxfs_sums")) {
        *code = INVALID_VALUE;
        return NULL;
    }
    return made(code);
}
cl_int clReleaseContext(void *context) { (void)context; return gone(); }
cl_int clReleaseCommandQueue(void *queue) { (void)queue; return gone(); }
cl_int clReleaseProgram(void *program) { (void)program; return gone(); }
cl_int clReleaseKernel(void *kernel) { (void)kernel; return gone(); }
cl_int clReleaseEvent(void *event) { (void)event; return gone(); }
cl_int clWaitForEvents(cl_uint count, void **events) { (void)count, (void)events; return SUCCESS; }
cl_int clFinish(void *queue) { (void)queue; return SUCCESS; }

static cl_int done(void **event) {
    if (event) *event = made(NULL);
    return SUCCESS;
}

static Memory *memory(uint8_t *bytes, size_t size, int is_mapped, int is_external, cl_int *code) {
    Memory *new = malloc(sizeof *new);
    *new = (Memory){bytes, size, is_mapped, is_external, 0};
    *code = SUCCESS;
    live++;
    return new;
}

cl_int clReleaseMemObject(Memory *object) {
    if (object->is_acquired) return INVALID_OPERATION;
    if (object->is_mapped) munmap(object->bytes, object->size);
    else free(object->bytes);
    free(object);
    return gone();
}

void *clCreateBuffer(void *context, cl_ulong flags, size_t size, void *host, cl_int *code) {
    (void)context, (void)flags;
    uint8_t *bytes = calloc(1, size);
    if (host) memcpy(bytes, host, size);
    return memory(bytes, size, 0, 0, code);
}

static void *import(int fd, size_t size, int is_external, cl_int *code) {
    int lies = *setting("DAXFS_FAKE_OPENCL_LIES") != 0;
    int kind = lies ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *bytes = mmap(NULL, size, PROT_READ, kind, lies ? -1 : fd, 0);
    if (bytes == MAP_FAILED) {
        *code = OUT_OF_RESOURCES;
        return NULL;
    }
    return memory(bytes, size, 1, is_external, code);
}

void *clCreateBufferWithProperties(void *context, const cl_ulong *list, cl_ulong flags, size_t size, void *host,
                                   cl_int *code) {
    (void)context;
    // One handle; read only; no memory of the host.
    if (list[0] != 0x2067 || list[2] != 0 || flags != 4 || host) {
        *code = INVALID_PROPERTY;
        return NULL;
    }
    void *new = import((int)list[1], size, 1, code);
    // The descriptor is this library's now.
    if (new) close((int)list[1]);
    return new;
}

static void *import_arm(void *context, cl_ulong flags, const intptr_t *list, void *fd, size_t size, cl_int *code) {
    (void)context;
    int is_plain = list[0] == 0x40B2 && list[1] == 0x40B4 && list[2] == 0;
    int is_consistent = list[2] == 0x41E3 && list[3] == 1 && list[4] == 0 && !*setting("DAXFS_FAKE_OPENCL_OLD");
    if ((!is_plain && !is_consistent) || flags != 4) {
        *code = INVALID_PROPERTY;
        return NULL;
    }
    return import(*(int *)fd, size, 0, code);
}

static cl_int hand_over(cl_uint count, Memory **objects, int is_acquired, void **event) {
    if (count != 1 || !objects[0]->is_external || objects[0]->is_acquired == is_acquired) return INVALID_OPERATION;
    objects[0]->is_acquired = is_acquired;
    *(is_acquired ? &acquires : &releases) += 1;
    return done(event);
}
static cl_int acquire(void *queue, cl_uint count, Memory **objects, cl_uint waits, void **for_, void **event) {
    (void)queue, (void)waits, (void)for_;
    return hand_over(count, objects, 1, event);
}
static cl_int release(void *queue, cl_uint count, Memory **objects, cl_uint waits, void **for_, void **event) {
    (void)queue, (void)waits, (void)for_;
    return hand_over(count, objects, 0, event);
}

void *clGetExtensionFunctionAddressForPlatform(void *platform, const char *name) {
    (void)platform;
    if (!strcmp(name, "clEnqueueAcquireExternalMemObjectsKHR")) return (void *)acquire;
    if (!strcmp(name, "clEnqueueReleaseExternalMemObjectsKHR")) return (void *)release;
    if (!strcmp(name, "clImportMemoryARM")) return (void *)import_arm;
    return NULL;
}

static struct { Memory *from; cl_ulong step, len, end; Memory *sums; } arguments;

cl_int clSetKernelArg(void *kernel, cl_uint number, size_t size, const void *value) {
    (void)kernel;
    void *places[] = {&arguments.from, &arguments.step, &arguments.len, &arguments.end, &arguments.sums};
    if (number > 4 || size != 8) return INVALID_VALUE;
    memcpy(places[number], value, 8);
    return SUCCESS;
}

static int is_usable(const Memory *object) { return !object->is_external || object->is_acquired; }

cl_int clEnqueueNDRangeKernel(void *queue, void *kernel, cl_uint dimensions, const size_t *offset, const size_t *items,
                              const size_t *group, cl_uint waits, void **for_, void **event) {
    (void)queue, (void)kernel, (void)offset, (void)group, (void)waits, (void)for_;
    if (dimensions != 1 || !is_usable(arguments.from)) return INVALID_OPERATION;
    for (size_t item = 0; item < *items; item++) {
        cl_ulong start = item * arguments.step, end = start + arguments.len, sum = 0xcbf29ce484222325;
        if (end > arguments.end) end = arguments.end;
        for (cl_ulong at = start; at < end; at++) sum = (sum ^ arguments.from->bytes[at]) * 0x100000001b3;
        memcpy(arguments.sums->bytes + 8 * item, &sum, 8);
    }
    return done(event);
}

cl_int clEnqueueReadBuffer(void *queue, Memory *object, cl_uint blocks, size_t at, size_t size, void *to, cl_uint waits,
                           void **for_, void **event) {
    (void)queue, (void)blocks, (void)waits, (void)for_;
    if (!is_usable(object)) return INVALID_OPERATION;
    if (at > object->size || size > object->size - at) return INVALID_VALUE;
    memcpy(to, object->bytes + at, size);
    return done(event);
}
