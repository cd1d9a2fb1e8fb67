// A simulated CUDA driver library: the ABI of libcuda.so.1 without a GPU, so that tests run the project's CUDA code
// with real processes, descriptors, lifetimes, ordering and errors.
//
// Device memory is a sealed memfd and a device pointer is an address of this process, which tests can therefore read;
// writing through a mapping that cuMemSetAccess made read-only faults. Host memory from cuMemCreate is the same, with
// the rights of the CPU. Where the real driver leaves an outcome undefined, this one refuses, so that a test sees the
// mistake. It reads these variables at each cuInit:
//   DAXFS_FAKE_CUDA_DEVICES      number of devices (default 1)
//   DAXFS_FAKE_CUDA_MEMORY       bytes of memory of each device (default 1 GiB), counted for this process only
//   DAXFS_FAKE_CUDA_ATTRIBUTES   "102=0,103=0": device attributes that differ from those of read_attributes
//   DAXFS_FAKE_CUDA_DELAY_US     delay before each queued copy (default 200)
//   DAXFS_FAKE_CUDA_FAIL         "cuMemMap:2:999,...": the second call of cuMemMap returns 999 (0: every call)
//   DAXFS_FAKE_CUDA_INIT         what cuInit returns, if not 0
// Kernels are those of hash.cu and of the examples: a module is taken as PTX, whose text says which kernels it has and
// what they take, and the same source, compiled here as C, is run on the host, one thread after the other.
// -DWITHOUT_VMM leaves out two functions, as a driver does that is too old for them.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int CUresult, CUdevice;
typedef unsigned long long CUdeviceptr, CUhandle, CUflags;
struct location { int type, id; };
typedef struct {
    int type, handle_types;
    struct location location;
    void *win32;
    struct { unsigned char compression, rdma; unsigned short usage; unsigned char reserved[4]; } flags;
} CUmemAllocationProp;
typedef struct { struct location location; int flags; } CUmemAccessDesc;
_Static_assert(sizeof(CUmemAllocationProp) == 32 && sizeof(CUmemAccessDesc) == 12, "layout of cuda.h");

#define ERRORS(E) \
    E(1, INVALID_VALUE, "invalid argument") E(2, OUT_OF_MEMORY, "out of memory") \
    E(3, NOT_INITIALIZED, "initialization error") E(100, NO_DEVICE, "no CUDA-capable device is detected") \
    E(101, INVALID_DEVICE, "invalid device ordinal") E(201, INVALID_CONTEXT, "invalid device context") \
    E(218, INVALID_PTX, "a PTX JIT compilation failed") \
    E(304, OPERATING_SYSTEM, "OS call failed or operation not supported on this OS") \
    E(400, INVALID_HANDLE, "invalid resource handle") E(500, NOT_FOUND, "named symbol not found") \
    E(600, NOT_READY, "device not ready") \
    E(700, ILLEGAL_ADDRESS, "an illegal memory access was encountered") \
    E(701, LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch") \
    E(709, CONTEXT_IS_DESTROYED, "context is destroyed") E(719, LAUNCH_FAILED, "unspecified launch failure") \
    E(712, HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped") \
    E(713, HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region") \
    E(800, NOT_PERMITTED, "operation not permitted") E(801, NOT_SUPPORTED, "operation not supported") \
    E(802, SYSTEM_NOT_READY, "system not yet initialized") E(999, UNKNOWN, "unknown error") \
    E(803, SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination")
#define CODE(code, name, text) name = code,
#define NAME(code, name, text) {code, "CUDA_ERROR_" #name, text},
enum { OK = 0, ERRORS(CODE) };
static const struct { int code; const char *name, *text; } errors[] = {{0, "CUDA_SUCCESS", "no error"}, ERRORS(NAME)};

enum { READ = 1, RW = 3, GRANULARITY = 2 << 20, MAX_DEVICES = 16, MAX_ATTRIBUTE = 256, MAX_FAILURES = 8, STACK = 32 };
#define MEMORY_NAME "daxfs-fake-vram"
// Numbers from here on are NUMA nodes of the host, where else there are devices.
enum { NODES = 1000 };
#define MEMORY_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

// The primary context of a device, the only kind of context here. generation tells the streams and events of the
// context's present life from those of an earlier one; fault is the error that every later call returns.
struct context { CUdevice device; unsigned retained, generation; int fault; };

// Device memory, known by the inode of its memfd, so that an import of memory that this process holds already is not
// counted twice. References are handles and mappings.
struct memory { struct memory *next; unsigned references; int fd, device; size_t size; dev_t dev; ino_t ino; };

// A stream's work. It outlives the stream's handle until its work is done and no event refers to it. Work item n is
// complete when done >= n.
struct queue {
    struct queue *next;
    struct context *context;
    struct work *first, **last;
    uint64_t queued, done;
    unsigned references, flags, closing;
};
struct copy { uint64_t device, host; size_t size; bool to_device, pinned; };
enum { MAX_PARAMETERS = 6 };
struct launch {
    uint64_t module, parameters[MAX_PARAMETERS];
    const struct kernel *kernel;
    unsigned blocks, threads;
};
struct work { struct work *next; struct copy copy; struct launch launch; struct queue *after; uint64_t number; };

// Whatever a test can leak. id is the handle, or the address of what has one.
enum kind { HANDLE, RESERVATION, MAPPING, STREAM, EVENT, HOST, REGISTRATION, MODULE };
struct object {
    struct object *next;
    enum kind kind;
    uint64_t id, size, number;
    struct memory *memory;
    struct context *context;
    struct queue *queue;
    int access, cpu_access, handle_types; // cpu_access: of host memory
    unsigned generation;
    char *text; // of a module
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static bool initialized, forked;
static int device_count, attributes[MAX_ATTRIBUTE];
static size_t memory_size, delay_us;
static struct context contexts[MAX_DEVICES];
static struct memory *memories;
static struct queue *queues;
static struct object *objects;
static uint64_t next_id = 0xda000000;
static struct { char name[48]; unsigned long call, seen; int code; } failures[MAX_FAILURES];
static char failures_text[512];
static _Thread_local struct context *stack[STACK];
static _Thread_local int depth;

// ---- Entering a function ----

enum need { START, DRIVER, CONTEXT };

static struct context *current(void) { return stack[depth - 1]; }

static const char *after_comma(const char *text) { text = strchr(text, ','); return text ? text + 1 : ""; }

// An unchanged text leaves the counts alone, so that a second cuInit does not start them again.
static void read_failures(void) {
    const char *text = getenv("DAXFS_FAKE_CUDA_FAIL");
    if (!strcmp(failures_text, text ? text : "")) return;
    snprintf(failures_text, sizeof failures_text, "%s", text ? text : "");
    memset(failures, 0, sizeof failures);
    text = failures_text;
    for (int i = 0; *text && i < MAX_FAILURES; i++, text = after_comma(text))
        sscanf(text, "%47[^:]:%lu:%d", failures[i].name, &failures[i].call, &failures[i].code);
}

static int injected(const char *name) {
    int code = OK;
    for (int i = 0; i < MAX_FAILURES && failures[i].name[0]; i++) {
        size_t length = strlen(failures[i].name);
        if (strncmp(name, failures[i].name, length) || (name[length] && strcmp(name + length, "_v2"))) continue;
        if (++failures[i].seen == failures[i].call || !failures[i].call) code = failures[i].code;
    }
    return code;
}

static int enter(const char *name, enum need need) {
    pthread_mutex_lock(&lock);
    if (forked || (need > START && !initialized)) return NOT_INITIALIZED;
    if (need == START) read_failures();
    int result = injected(name);
    if (result || need != CONTEXT) return result;
    if (!depth) return INVALID_CONTEXT;
    return current()->retained ? current()->fault : CONTEXT_IS_DESTROYED;
}

static void leave(int *entered) { (void)entered, pthread_mutex_unlock(&lock); }

// Holds the lock until the function returns; valid is what its arguments must be. GIVE is the usual good end.
#define ENTER(need, valid)                                                    \
    __attribute__((cleanup(leave))) int entered = enter(__func__, need);      \
    if (entered || !(valid)) return entered ? entered : INVALID_VALUE
#define GIVE(place, value) return *(place) = (value), OK

#define ENTER_DEVICE(device, valid)                                           \
    ENTER(DRIVER, valid);                                                     \
    if (device < 0 || device >= device_count) return INVALID_DEVICE
#define ENTER_OBJECT(need, kind, id, otherwise)                               \
    ENTER(need, true);                                                        \
    struct object *object = find(kind, (uint64_t)(id));                       \
    if (!object) return otherwise

// The real driver does not work in a child forked after cuInit; the child must start a new program.
static void before_fork(void) { pthread_mutex_lock(&lock); }
static void parent_after_fork(void) { pthread_mutex_unlock(&lock); }
static void child_after_fork(void) { forked = initialized, pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void load(void) {
    pthread_atfork(before_fork, parent_after_fork, child_after_fork);
}

// ---- Objects and ranges ----

static void *allocate(size_t size) { void *memory = calloc(1, size); if (!memory) abort(); return memory; }

// Takes an item out of a list; every item starts with its link.
typedef void *any_link __attribute__((may_alias));
static void take_out(void *list, void *item) {
    any_link *link = list;
    while (*link != item) link = *link;
    *link = *(any_link *)item;
}

static struct object *add(enum kind kind, uint64_t id, size_t size) {
    struct object *object = allocate(sizeof *object);
    // A handle is never used again, so that a stale one is recognised.
    *object = (struct object){.next = objects, .kind = kind, .id = id ? id : (next_id += 16), .size = size};
    if (depth) object->context = current(), object->generation = current()->generation;
    return objects = object;
}

static void delete(struct object *object) { take_out(&objects, object); free(object); }

static struct object *find(enum kind kind, uint64_t id) {
    struct object *object = objects;
    while (object && (object->kind != kind || object->id != id)) object = object->next;
    return object;
}

static bool is_range(uint64_t address, size_t size) { return address && size && size <= UINT64_MAX - address; }

static struct object *overlapping(enum kind kind, uint64_t address, size_t size) {
    struct object *object = objects;
    while (object && (object->kind != kind || address >= object->id + object->size || object->id >= address + size))
        object = object->next;
    return object;
}

static struct object *containing(enum kind kind, uint64_t address, size_t size) {
    struct object *object = overlapping(kind, address, size);
    return object && object->id <= address && address + size <= object->id + object->size ? object : NULL;
}

static struct object *pinned(uint64_t address, size_t size) {
    struct object *object = containing(HOST, address, size);
    return object ? object : containing(REGISTRATION, address, size);
}

static bool partly_pinned(uint64_t address, size_t size) {
    return overlapping(HOST, address, size) || overlapping(REGISTRATION, address, size);
}

// True if the device may access all of the range: mapped memory or pinned memory of the host.
static bool accessible(uint64_t address, size_t size, int access) {
    for (uint64_t end = address + size; address < end;) {
        struct object *object = containing(MAPPING, address, 1);
        if (!object) object = pinned(address, 1);
        if (!object || (object->access & access) != access) return false;
        address = object->id + object->size;
    }
    return true;
}

// True if the range is exactly one or more whole mappings, side by side.
static bool whole_mappings(uint64_t address, size_t size) {
    struct object *mapping;
    for (; size; address += mapping->size, size -= mapping->size)
        if (!(mapping = find(MAPPING, address)) || mapping->size > size) return false;
    return true;
}

static void release_memory(struct memory *memory) {
    if (--memory->references) return;
    take_out(&memories, memory);
    close(memory->fd);
    free(memory);
}

// A new handle of the memory of a descriptor, which it takes.
static CUhandle add_handle(int fd, int device, const struct stat *status, int handle_types) {
    struct object *object = add(HANDLE, 0, status->st_size);
    struct memory *memory = memories;
    while (memory && (memory->dev != status->st_dev || memory->ino != status->st_ino)) memory = memory->next;
    if (memory) {
        close(fd);
    } else {
        memory = allocate(sizeof *memory);
        *memory = (struct memory){memories, 0, fd, device, status->st_size, status->st_dev, status->st_ino};
        memories = memory;
    }
    memory->references++;
    object->memory = memory;
    object->handle_types = handle_types;
    return object->id;
}

static size_t used(CUdevice device) {
    size_t sum = 0;
    for (struct memory *memory = memories; memory; memory = memory->next)
        sum += memory->device == device ? memory->size : 0;
    return sum;
}

// ---- Streams ----

static void release_queue(struct queue *queue) { if (queue && !--queue->references) free(queue); }

static int wait_for(struct queue *queue, uint64_t number) {
    struct context *context = queue->context;
    queue->references++;
    while (queue->done < number) pthread_cond_wait(&progress, &lock);
    release_queue(queue);
    return context->fault;
}

// Waits for the context's streams. The legacy default stream does not wait for those created as non-blocking (1).
static int drain(struct context *context, bool non_blocking_too) {
    for (struct queue *queue = queues, *next; queue; queue = next) {
        bool busy = queue->context == context && queue->done < queue->queued;
        busy = busy && (non_blocking_too || !(queue->flags & 1));
        if (busy) pthread_cond_wait(&progress, &lock);
        next = busy ? queues : queue->next;
    }
    return context->fault;
}

// Copies, with the lock released meanwhile. Everything is checked again, since the caller may have unmapped or
// unpinned too early.
static int run_copy(struct copy copy) {
    if (!accessible(copy.device, copy.size, copy.to_device ? RW : READ)) return ILLEGAL_ADDRESS;
    if (copy.pinned && !pinned(copy.host, copy.size)) return ILLEGAL_ADDRESS;
    void *device = (void *)copy.device, *host = (void *)copy.host;
    pthread_mutex_unlock(&lock);
    memmove(copy.to_device ? device : host, copy.to_device ? host : device, copy.size);
    pthread_mutex_lock(&lock);
    return OK;
}

// ---- Kernels ----

// The numbers of a thread; only the first dimension is used.
static _Thread_local struct { unsigned x; } gridDim, blockIdx, blockDim, threadIdx;
#include "../../crates/device/src/cuda/hash.cu"
#include "../../examples/rust/05-cuda-gather/gather.cu"
#include "../../examples/rust/06-cuda-walk/walk.cu"

#define POINTER(n, type) ((type *)parameters[n])
#define NUMBER(n) ((unsigned)parameters[n])
static void run_chunks(const uint64_t *parameters) {
    daxfs_hash_chunks(POINTER(0, const struct extent), NUMBER(1), POINTER(2, struct node), NUMBER(3));
}
static void run_parents(const uint64_t *parameters) {
    daxfs_hash_parents(POINTER(0, const struct extent), NUMBER(1), POINTER(2, struct node), NUMBER(3), NUMBER(4));
}
static void run_collect(const uint64_t *parameters) {
    const struct node *nodes = POINTER(2, const struct node);
    daxfs_hash_collect(POINTER(0, const struct extent), NUMBER(1), nodes, POINTER(3, struct node));
}
static void run_gather(const uint64_t *parameters) {
    const unsigned *rows = POINTER(3, const unsigned);
    example_gather(POINTER(0, const struct quad), NUMBER(1), NUMBER(2), rows, NUMBER(4), POINTER(5, struct quad));
}
static void run_walk(const uint64_t *parameters) {
    const void *image = POINTER(0, const void), *lookup = POINTER(1, const void);
    example_walk(image, lookup, parameters[2], POINTER(3, struct table), NUMBER(4));
}
// One letter for each parameter: a pointer, or a number of 64 (l) or 32 bits (n).
static const struct kernel { const char *name, *parameters; void (*run)(const uint64_t *); } kernels[] = {
    {"daxfs_hash_chunks", "pnpn", run_chunks},
    {"daxfs_hash_parents", "pnpnn", run_parents},
    {"daxfs_hash_collect", "pnpp", run_collect},
    {"example_gather", "pnnpnp", run_gather},
    {"example_walk", "pplpn", run_walk},
};
enum { KERNELS = sizeof kernels / sizeof *kernels };

// True if the PTX has this kernel, with these parameters.
static bool has_entry(const char *ptx, const struct kernel *kernel) {
    char entry[96];
    snprintf(entry, sizeof entry, ".entry %s(", kernel->name);
    const char *at = strstr(ptx, entry), *end = at ? strchr(at, ')') : NULL;
    if (!end) return false;
    for (const char *letter = kernel->parameters; *letter; letter++) {
        at = strstr(at + 1, ".param ");
        if (!at || at > end || strncmp(at + 7, *letter == 'n' ? ".u32" : ".u64", 4)) return false;
    }
    at = strstr(at + 1, ".param ");
    return !at || at > end;
}

// Runs a kernel, with the lock released meanwhile. What it reads and writes is memory of this process: where nothing is
// mapped, and where it must not write, the process ends.
static int run_launch(struct launch launch) {
    if (!find(MODULE, launch.module)) return LAUNCH_FAILED; // unloaded too early
    for (const char *letter = launch.kernel->parameters; *letter; letter++)
        if (*letter == 'p' && !accessible(launch.parameters[letter - launch.kernel->parameters], 1, READ))
            return ILLEGAL_ADDRESS;
    pthread_mutex_unlock(&lock);
    gridDim.x = launch.blocks, blockDim.x = launch.threads;
    for (blockIdx.x = 0; blockIdx.x < launch.blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < launch.threads; threadIdx.x++) launch.kernel->run(launch.parameters);
    pthread_mutex_lock(&lock);
    return OK;
}

static void *run_stream(void *argument) {
    struct queue *queue = argument;
    pthread_mutex_lock(&lock);
    while (queue->first || !queue->closing) {
        struct work *work = queue->first;
        if (!work && !pthread_cond_wait(&progress, &lock)) continue;
        if (!(queue->first = work->next)) queue->last = &queue->first;
        if (work->after) {
            wait_for(work->after, work->number);
            release_queue(work->after);
        } else {
            // The delay comes before the source is read: a buffer filled again too early gives wrong bytes.
            size_t delay = delay_us;
            pthread_mutex_unlock(&lock);
            usleep(delay);
            pthread_mutex_lock(&lock);
            if (!queue->context->fault)
                queue->context->fault = work->launch.kernel ? run_launch(work->launch) : run_copy(work->copy);
        }
        free(work);
        queue->done++;
        pthread_cond_broadcast(&progress);
    }
    take_out(&queues, queue);
    release_queue(queue);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void enqueue(struct queue *queue, struct work work) {
    *queue->last = allocate(sizeof work);
    **queue->last = work;
    queue->last = &(*queue->last)->next;
    queue->queued++;
    pthread_cond_broadcast(&progress);
}

// A stream or event of an earlier life of its context is of no use.
static int stale(struct object *object) {
    return object->generation == object->context->generation ? OK : CONTEXT_IS_DESTROYED;
}

// The queue of a stream; NULL for the legacy default stream (0, or 1 by its other name).
static int find_queue(void *handle, struct queue **queue) {
    struct object *stream = find(STREAM, (uintptr_t)handle);
    *queue = stream ? stream->queue : NULL;
    return stream ? stale(stream) : (uintptr_t)handle <= 1 ? OK : INVALID_HANDLE;
}

// A copy that is queued if the host's memory is pinned, and complete at return otherwise.
static int submit(struct copy copy, void *handle) {
    struct queue *queue;
    int result = find_queue(handle, &queue);
    if (result || !copy.size) return result;
    if (!is_range(copy.device, copy.size) || !is_range(copy.host, copy.size)) return INVALID_VALUE;
    copy.pinned = pinned(copy.host, copy.size);
    // The real driver, too, refuses a copy that crosses the end of a registration.
    if (!copy.pinned && partly_pinned(copy.host, copy.size)) return INVALID_VALUE;
    if (overlapping(RESERVATION, copy.host, copy.size)) return INVALID_VALUE;
    if (!accessible(copy.device, copy.size, copy.to_device ? RW : READ)) return INVALID_VALUE;
    if (queue && copy.pinned) return enqueue(queue, (struct work){.copy = copy}), OK;
    result = queue ? wait_for(queue, queue->queued) : drain(current(), false);
    return result ? result : run_copy(copy);
}

// ---- Driver and devices ----

static unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

// As of an H100 with driver 580: device memory is shareable by descriptor (102, 103), for RDMA (110, 116) and as
// dma-buf (124), host memory can be registered (99), also for reading only (113), and allocated (141) on the node
// beside the device, 0 (134); compute capability 9.0 (75).
static void read_attributes(void) {
    static const int ones[] = {99, 102, 103, 110, 113, 116, 124, 141};
    const char *text = getenv("DAXFS_FAKE_CUDA_ATTRIBUTES");
    int number, value;
    memset(attributes, 0, sizeof attributes);
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) attributes[ones[i]] = 1;
    attributes[75] = 9;
    for (text = text ? text : ""; *text; text = after_comma(text))
        if (sscanf(text, "%d=%d", &number, &value) == 2 && number > 0 && number < MAX_ATTRIBUTE)
            attributes[number] = value;
}

CUresult cuInit(unsigned flags) {
    ENTER(START, flags == 0);
    read_attributes();
    int result = setting("DAXFS_FAKE_CUDA_INIT", OK);
    unsigned long long count = setting("DAXFS_FAKE_CUDA_DEVICES", 1);
    if (result || !count) return result ? result : NO_DEVICE;
    device_count = count < MAX_DEVICES ? count : MAX_DEVICES;
    memory_size = setting("DAXFS_FAKE_CUDA_MEMORY", 1 << 30);
    delay_us = setting("DAXFS_FAKE_CUDA_DELAY_US", 200);
    for (int i = 0; i < MAX_DEVICES; i++) contexts[i].device = i;
    // Streams' threads run code of this library, so dlclose must not unload it.
    Dl_info info;
    if (!initialized && dladdr(&lock, &info)) dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    initialized = true;
    return OK;
}

CUresult cuDriverGetVersion(int *version) { ENTER(START, version); GIVE(version, 13000); }

static int find_error(int code, const char **name, const char **text) {
    *name = *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) *name = errors[i].name, *text = errors[i].text;
    return *name ? OK : INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    return name ? find_error(error, name, &(const char *){0}) : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    return text ? find_error(error, &(const char *){0}, text) : INVALID_VALUE;
}

static bool bad_device(CUdevice device) { return device < 0 || device >= device_count; }
CUresult cuDeviceGetCount(int *count) { ENTER(DRIVER, count); GIVE(count, device_count); }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { ENTER_DEVICE(ordinal, device); GIVE(device, ordinal); }

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER_DEVICE(device, name && length > 0);
    snprintf(name, length, "Simulated GPU %d", device);
    return OK;
}

CUresult cuDeviceGetUuid_v2(unsigned char uuid[16], CUdevice device) {
    ENTER_DEVICE(device, uuid);
    memcpy(uuid, MEMORY_NAME, 15);
    uuid[15] = device;
    return OK;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    ENTER_DEVICE(device, value && attribute > 0 && attribute < MAX_ATTRIBUTE);
    GIVE(value, attributes[attribute]);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER_DEVICE(device, bytes);
    GIVE(bytes, memory_size);
}

// ---- Contexts ----

CUresult cuDevicePrimaryCtxRetain(void **context, CUdevice device) {
    ENTER_DEVICE(device, context);
    contexts[device].retained++;
    GIVE(context, &contexts[device]);
}

// The last release ends the context: its streams finish, and they and its events are of no use any more.
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER_DEVICE(device, true);
    if (!contexts[device].retained) return INVALID_CONTEXT;
    if (--contexts[device].retained) return OK;
    contexts[device].generation++;
    drain(&contexts[device], true);
    return OK;
}

CUresult cuCtxPushCurrent_v2(void *handle) {
    ENTER(DRIVER, depth < STACK);
    struct context *context = contexts;
    while (context < contexts + device_count && context != handle) context++;
    if (context == contexts + device_count) return INVALID_CONTEXT;
    if (!context->retained) return CONTEXT_IS_DESTROYED;
    stack[depth++] = context;
    return OK;
}

CUresult cuCtxPopCurrent_v2(void **context) {
    ENTER(DRIVER, true);
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return OK;
}

CUresult cuCtxSetCurrent(void *handle) {
    if (depth) depth--;
    return handle ? cuCtxPushCurrent_v2(handle) : OK;
}

CUresult cuCtxGetCurrent(void **context) { ENTER(DRIVER, context); GIVE(context, depth ? current() : NULL); }
CUresult cuCtxSynchronize(void) { ENTER(CONTEXT, true); return drain(current(), true); }

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    ENTER(CONTEXT, available && total);
    size_t taken = used(current()->device);
    *available = taken < memory_size ? memory_size - taken : 0;
    GIVE(total, memory_size);
}

// ---- Device memory ----

static bool is_host(const struct memory *memory) { return memory->device >= NODES; }

// Memory of the host is that of the one NUMA node beside all devices (location 3); 2 and 4 are not simulated. Fabric
// handles (8) need a channel between machines, which an administrator makes.
static int check_properties(const CUmemAllocationProp *prop) {
    if (!prop || prop->type != 1 || prop->win32 || prop->flags.compression > 1 || prop->flags.rdma > 1 ||
        prop->location.type < 1 || prop->location.type > 4 || memcmp(prop->flags.reserved, "\0\0\0", 4))
        return INVALID_VALUE;
    if (!attributes[102] || (prop->location.type != 1 && (prop->location.type != 3 || !attributes[141])))
        return NOT_SUPPORTED;
    if (prop->location.type == 3 && (prop->location.id != attributes[134] || prop->flags.rdma)) return INVALID_VALUE;
    if (prop->location.type == 1 && bad_device(prop->location.id)) return INVALID_VALUE;
    if (prop->handle_types & ~(1 | 8)) return INVALID_VALUE;
    if (prop->handle_types & 8) return NOT_PERMITTED;
    return prop->handle_types && !attributes[103] ? NOT_SUPPORTED : OK;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, int option) {
    ENTER(DRIVER, granularity && (option == 0 || option == 1));
    *granularity = GRANULARITY;
    return check_properties(prop);
}

#ifndef WITHOUT_VMM
CUresult cuMemCreate(CUhandle *handle, size_t size, const CUmemAllocationProp *prop, CUflags flags) {
    ENTER(DRIVER, handle && size && size % GRANULARITY == 0 && !flags);
    int result = check_properties(prop);
    if (result) return result;
    int device = prop->location.id + (prop->location.type == 3 ? NODES : 0);
    bool has_room = used(device) < memory_size && size <= memory_size - used(device);
    if (device < NODES && !has_room) return OUT_OF_MEMORY;
    char name[64];
    struct stat status;
    snprintf(name, sizeof name, MEMORY_NAME ":%d", device);
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return OUT_OF_MEMORY;
    if (ftruncate(fd, size) || fcntl(fd, F_ADD_SEALS, MEMORY_SEALS) || fstat(fd, &status)) {
        close(fd);
        return OUT_OF_MEMORY;
    }
    GIVE(handle, add_handle(fd, device, &status, prop->handle_types));
}

CUresult cuMemExportToShareableHandle(void *shareable, CUhandle handle, int type, CUflags flags) {
    ENTER_OBJECT(DRIVER, HANDLE, handle, INVALID_VALUE);
    if (!shareable || type != 1 || !(object->handle_types & type) || flags) return INVALID_VALUE;
    int fd = fcntl(object->memory->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return OPERATING_SYSTEM;
    GIVE((int *)shareable, fd);
}
#endif

// Says where the memory is, of an imported handle, too.
CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUhandle handle) {
    ENTER_OBJECT(DRIVER, HANDLE, handle, INVALID_VALUE);
    if (!prop) return INVALID_VALUE;
    int device = object->memory->device;
    bool host = is_host(object->memory);
    struct location location = {host ? 3 : 1, host ? device - NODES : device};
    GIVE(prop, ((CUmemAllocationProp){.type = 1, .handle_types = object->handle_types, .location = location}));
}

CUresult cuMemRelease(CUhandle handle) {
    ENTER_OBJECT(DRIVER, HANDLE, handle, INVALID_VALUE);
    release_memory(object->memory);
    delete(object);
    return OK;
}

// The caller keeps its descriptor. Only descriptors that cuMemExportToShareableHandle made are taken: those of
// cuMemGetHandleForAddressRange are read-only, and the real driver imports no dma-buf.
CUresult cuMemImportFromShareableHandle(CUhandle *handle, void *shareable, int type) {
    ENTER(DRIVER, handle && (type == 1 || type == 8));
    if (type == 8) return NOT_PERMITTED;
    if (!attributes[102] || !attributes[103]) return NOT_SUPPORTED;
    int fd = (int)(intptr_t)shareable, device = -1;
    char path[64], name[128] = "";
    struct stat status;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (readlink(path, name, sizeof name - 1) < 0 || sscanf(name, "/memfd:" MEMORY_NAME ":%d", &device) != 1 ||
        fcntl(fd, F_GET_SEALS) != MEMORY_SEALS || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR || fstat(fd, &status))
        return INVALID_VALUE;
    if (device < NODES ? bad_device(device) : !attributes[141]) return NOT_SUPPORTED;
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return OPERATING_SYSTEM;
    // Not to be exported: the driver (580) refuses that for what it imported.
    GIVE(handle, add_handle(fd, device, &status, 0));
}

static void *reserve(uint64_t address, size_t size, int flags) {
    flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return mmap((void *)address, size, PROT_NONE, flags, -1, 0);
}

// The hint is not taken.
CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment, CUdeviceptr hint, CUflags flags) {
    ENTER(DRIVER, pointer && size && (size | hint) % 4096 == 0 && !(alignment & (alignment - 1)) && !flags);
    if (alignment < GRANULARITY) alignment = GRANULARITY;
    if (size > SIZE_MAX - alignment) return OUT_OF_MEMORY;
    void *space = reserve(0, size + alignment, 0);
    if (space == MAP_FAILED) return OUT_OF_MEMORY;
    uint64_t before = (uintptr_t)space, start = (before + alignment - 1) & ~(uint64_t)(alignment - 1);
    if (start > before) munmap(space, start - before);
    munmap((void *)(start + size), before + alignment - start);
    add(RESERVATION, start, size);
    GIVE(pointer, start);
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t size) {
    ENTER_OBJECT(DRIVER, RESERVATION, pointer, INVALID_VALUE);
    if (object->size != size || overlapping(MAPPING, pointer, size)) return INVALID_VALUE;
    munmap((void *)pointer, size);
    delete(object);
    return OK;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t size, size_t offset, CUhandle handle, CUflags flags) {
    ENTER_OBJECT(DRIVER, HANDLE, handle, INVALID_VALUE);
    if (pointer % GRANULARITY || !is_range(pointer, size) || size != object->size || offset || flags)
        return INVALID_VALUE;
    if (!containing(RESERVATION, pointer, size) || overlapping(MAPPING, pointer, size)) return INVALID_VALUE;
    void *address = (void *)pointer;
    if (mmap(address, size, PROT_NONE, MAP_SHARED | MAP_FIXED, object->memory->fd, 0) == MAP_FAILED)
        return OUT_OF_MEMORY;
    struct object *mapping = add(MAPPING, pointer, size);
    mapping->memory = object->memory;
    mapping->memory->references++;
    mapping->handle_types = object->handle_types;
    return OK;
}

// Does not wait for copies in progress; one that comes later faults.
CUresult cuMemUnmap(CUdeviceptr pointer, size_t size) {
    ENTER(DRIVER, is_range(pointer, size) && whole_mappings(pointer, size));
    reserve(pointer, size, MAP_FIXED);
    for (uint64_t end = pointer + size; pointer < end;) {
        struct object *mapping = find(MAPPING, pointer);
        pointer += mapping->size;
        release_memory(mapping->memory);
        delete(mapping);
    }
    return OK;
}

static int protection(int access) {
    return access == RW ? PROT_READ | PROT_WRITE : access == READ ? PROT_READ : PROT_NONE;
}

// No simulated device reaches another's memory, and the host reaches none by location; all devices reach the host's.
// Locations that are not spoken of keep what they have. Kernels run on the CPU, and so need its rights to host memory.
CUresult cuMemSetAccess(CUdeviceptr pointer, size_t size, const CUmemAccessDesc *descriptions, size_t count) {
    ENTER(DRIVER, descriptions && count && is_range(pointer, size) && whole_mappings(pointer, size));
    struct object *mapping = find(MAPPING, pointer);
    bool host = is_host(mapping->memory);
    int access = mapping->access, cpu_access = mapping->cpu_access;
    for (size_t i = 0; i < count; i++) {
        struct location where = descriptions[i].location;
        int flags = descriptions[i].flags;
        if (where.type < 1 || where.type > 4 || (flags != 0 && flags != READ && flags != RW)) return INVALID_VALUE;
        if (where.type != 1 && (where.type != 3 || !host)) return NOT_SUPPORTED;
        if (where.type == 3 && where.id + NODES != mapping->memory->device) return INVALID_VALUE;
        if (where.type == 1 && (host ? bad_device(where.id) : where.id != mapping->memory->device))
            return INVALID_DEVICE;
        *(where.type == 1 ? &access : &cpu_access) = flags;
    }
    if (mprotect((void *)pointer, size, protection(host ? cpu_access : access))) return OPERATING_SYSTEM;
    for (; size; pointer += mapping->size, size -= mapping->size) {
        mapping = find(MAPPING, pointer);
        mapping->access = access;
        mapping->cpu_access = cpu_access;
    }
    return OK;
}

// The real driver makes a dma-buf, which the CPU cannot map and the driver cannot import; the memfd opened read-only
// stands for it. Of host memory neither makes one. The real one also serves ranges of several equal allocations; this
// one serves one.
CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr pointer, size_t size, int type, CUflags flags) {
    ENTER(DRIVER, handle && type == 1 && flags <= 1 && (pointer | size) % 4096 == 0 && is_range(pointer, size));
    if (flags || !attributes[124] || (partly_pinned(pointer, size) && !attributes[146])) return NOT_SUPPORTED;
    struct object *mapping = containing(MAPPING, pointer, size);
    if (!mapping || is_host(mapping->memory)) return INVALID_VALUE;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", mapping->memory->fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return OPERATING_SYSTEM;
    GIVE((int *)handle, fd);
}

// ---- Host memory ----

// Memory of the older kind, which has no handle: a mapping of its own, whose number is 1.
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    ENTER(CONTEXT, address && size);
    size = (size + GRANULARITY - 1) & ~(size_t)(GRANULARITY - 1);
    if (used(current()->device) + size > memory_size) return OUT_OF_MEMORY;
    int fd = memfd_create(MEMORY_NAME, MFD_CLOEXEC);
    bool made = fd >= 0 && !ftruncate(fd, size);
    void *place = made ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (place == MAP_FAILED) return close(fd), OUT_OF_MEMORY;
    struct memory *memory = allocate(sizeof *memory);
    *memory = (struct memory){memories, 1, fd, current()->device, size, 0, 0};
    memories = memory;
    struct object *object = add(MAPPING, (uintptr_t)place, size);
    object->memory = memory, object->access = RW, object->number = 1;
    GIVE(address, object->id);
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER_OBJECT(CONTEXT, MAPPING, address, INVALID_VALUE);
    if (object->number != 1) return INVALID_VALUE;
    int result = drain(current(), true);
    munmap((void *)object->id, object->size);
    release_memory(object->memory);
    delete(object);
    return result;
}

// Waits for the stream instead of being queued there.
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char byte, size_t size, void *stream) {
    ENTER(CONTEXT, true);
    struct queue *queue;
    int result = find_queue(stream, &queue);
    if (!result) result = queue ? wait_for(queue, queue->queued) : drain(current(), false);
    if (result || !size) return result;
    if (!is_range(address, size) || !accessible(address, size, RW)) return INVALID_VALUE;
    memset((void *)address, byte, size);
    return OK;
}

// As above.
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, void *stream) {
    ENTER(CONTEXT, true);
    struct queue *queue;
    int result = find_queue(stream, &queue);
    if (!result) result = queue ? wait_for(queue, queue->queued) : drain(current(), false);
    if (result || !size) return result;
    if (!is_range(to, size) || !is_range(from, size)) return INVALID_VALUE;
    if (!accessible(to, size, RW) || !accessible(from, size, READ)) return INVALID_VALUE;
    memmove((void *)to, (const void *)from, size);
    return OK;
}

CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    ENTER(CONTEXT, pointer && size && flags <= 7);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    add(HOST, (uintptr_t)memory, size)->access = RW;
    GIVE(pointer, memory);
}

// Does not wait for copies in progress; one that comes later faults.
CUresult cuMemFreeHost(void *pointer) {
    ENTER_OBJECT(CONTEXT, HOST, pointer, INVALID_VALUE);
    munmap(pointer, object->size);
    delete(object);
    return OK;
}

// Pages can be pinned if they are mapped readable and, unless the device only reads, writable. Private mappings
// count too; the real driver copies their pages. Pages of a dma-buf's mapping cannot be pinned.
static bool can_pin(uint64_t start, uint64_t end, bool read_only) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[4352], mode[5]; // a path and the numbers before it
    bool good = maps;
    while (good && start < end && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        good = sscanf(line, "%lx-%lx %4s", &from, &to, mode) == 3;
        if (!good || to <= start) continue;
        good = from <= start && mode[0] == 'r' && (read_only || mode[1] == 'w') && !strstr(line, "/dmabuf");
        start = to;
    }
    if (maps) fclose(maps);
    return good && start >= end;
}

// Memory of another device (flag 4) is not simulated.
CUresult cuMemHostRegister_v2(void *pointer, size_t size, unsigned flags) {
    uint64_t start = (uintptr_t)pointer;
    ENTER(CONTEXT, is_range(start, size) && !(flags & ~(1 | 2 | 8u)));
    if (!attributes[99] || (flags & 8 && !attributes[113])) return NOT_SUPPORTED;
    if (partly_pinned(start, size)) return HOST_MEMORY_ALREADY_REGISTERED;
    if (overlapping(RESERVATION, start, size) || !can_pin(start, start + size, flags & 8)) return INVALID_VALUE;
    add(REGISTRATION, start, size)->access = flags & 8 ? READ : RW;
    return OK;
}

CUresult cuMemHostUnregister(void *pointer) {
    ENTER_OBJECT(CONTEXT, REGISTRATION, pointer, HOST_MEMORY_NOT_REGISTERED);
    delete(object);
    return OK;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *pointer, unsigned flags) {
    ENTER(CONTEXT, device && !flags && pinned((uintptr_t)pointer, 1));
    GIVE(device, (uintptr_t)pointer);
}

// ---- Copies, streams, events ----

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr device, const void *host, size_t size, void *stream) {
    ENTER(CONTEXT, true);
    return submit((struct copy){device, (uintptr_t)host, size, true, false}, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void *host, CUdeviceptr device, size_t size, void *stream) {
    ENTER(CONTEXT, true);
    return submit((struct copy){device, (uintptr_t)host, size, false, false}, stream);
}

CUresult cuMemcpyDtoH_v2(void *host, CUdeviceptr device, size_t size) {
    ENTER(CONTEXT, true);
    return submit((struct copy){device, (uintptr_t)host, size, false, false}, NULL);
}

CUresult cuStreamCreate(void **handle, unsigned flags) {
    ENTER(CONTEXT, handle && flags <= 1);
    struct queue *queue = allocate(sizeof *queue);
    // Two references: the handle's and the thread's.
    *queue = (struct queue){.next = queues, .context = current(), .references = 2, .flags = flags};
    queue->last = &queue->first;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // signals are for the program's own threads
    int failed = pthread_create(&thread, NULL, run_stream, queue);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(queue);
        return OUT_OF_MEMORY;
    }
    pthread_detach(thread);
    queues = queue;
    struct object *stream = add(STREAM, 0, 0);
    stream->queue = queue;
    GIVE(handle, (void *)stream->id);
}

// Returns at once; the work already queued is done first.
CUresult cuStreamDestroy_v2(void *handle) {
    ENTER_OBJECT(CONTEXT, STREAM, handle, INVALID_HANDLE);
    int result = stale(object);
    object->queue->closing = true;
    pthread_cond_broadcast(&progress);
    release_queue(object->queue);
    delete(object);
    return result;
}

CUresult cuStreamSynchronize(void *handle) {
    ENTER(CONTEXT, true);
    struct queue *queue;
    int result = find_queue(handle, &queue);
    if (result) return result;
    return queue ? wait_for(queue, queue->queued) : drain(current(), false);
}

CUresult cuStreamWaitEvent(void *handle, void *event, unsigned flags) {
    ENTER_OBJECT(CONTEXT, EVENT, event, INVALID_HANDLE);
    struct queue *queue;
    int result = find_queue(handle, &queue);
    if (result || stale(object) || flags) return result ? result : flags ? INVALID_VALUE : stale(object);
    if (!object->queue) return OK;
    if (!queue) return wait_for(object->queue, object->number);
    object->queue->references++;
    enqueue(queue, (struct work){.after = object->queue, .number = object->number});
    return OK;
}

// An event for several processes (4) must be without timing (2).
CUresult cuEventCreate(void **handle, unsigned flags) {
    ENTER(CONTEXT, handle && flags <= 7 && (flags & 6) != 4);
    GIVE(handle, (void *)add(EVENT, 0, 0)->id);
}

CUresult cuEventDestroy_v2(void *event) {
    ENTER_OBJECT(CONTEXT, EVENT, event, INVALID_HANDLE);
    int result = stale(object);
    release_queue(object->queue);
    delete(object);
    return result;
}

CUresult cuEventRecord(void *event, void *stream) {
    ENTER_OBJECT(CONTEXT, EVENT, event, INVALID_HANDLE);
    struct queue *queue;
    int result = find_queue(stream, &queue);
    if (result || stale(object)) return result ? result : stale(object);
    if (object->context != (queue ? queue->context : current())) return INVALID_HANDLE;
    release_queue(object->queue);
    object->queue = queue;
    if (!queue) return drain(object->context, false); // then all that the default stream comes after is complete
    queue->references++;
    object->number = queue->queued;
    return OK;
}

CUresult cuEventSynchronize(void *event) {
    ENTER_OBJECT(CONTEXT, EVENT, event, INVALID_HANDLE);
    return stale(object) || !object->queue ? stale(object) : wait_for(object->queue, object->number);
}

CUresult cuEventQuery(void *event) {
    ENTER_OBJECT(CONTEXT, EVENT, event, INVALID_HANDLE);
    if (stale(object) || !object->queue) return stale(object);
    return object->queue->done >= object->number ? object->context->fault : NOT_READY;
}

// ---- Modules ----

// PTX only, of a version that the oldest supported driver takes: 7.7, of CUDA 11.7.
CUresult cuModuleLoadData(void **module, const void *image) {
    ENTER(CONTEXT, module && image);
    const char *version = strstr(image, "\n.version ");
    int major, minor;
    if (!version || sscanf(version, "\n.version %d.%d", &major, &minor) != 2) return INVALID_PTX;
    if (major * 100 + minor > 707) return INVALID_PTX;
    struct object *object = add(MODULE, 0, 0);
    object->text = strdup(image);
    GIVE(module, (void *)object->id);
}

CUresult cuModuleUnload(void *module) {
    ENTER_OBJECT(CONTEXT, MODULE, module, INVALID_HANDLE);
    int result = stale(object);
    free(object->text);
    delete(object);
    return result;
}

// A function is known by its module and its number, from 1: handles are multiples of 16.
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER_OBJECT(CONTEXT, MODULE, module, INVALID_HANDLE);
    if (!function || !name) return INVALID_VALUE;
    for (int i = 0; i < KERNELS; i++)
        if (!strcmp(kernels[i].name, name) && has_entry(object->text, &kernels[i]))
            GIVE(function, (void *)(object->id + i + 1));
    return NOT_FOUND;
}

// One dimension, no shared memory; parameters one by one, which are copied.
CUresult cuLaunchKernel(void *function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned v,
                        unsigned w, unsigned shared, void *stream, void **parameters, void **extra) {
    ENTER(CONTEXT, blocks && y == 1 && z == 1 && threads && v == 1 && w == 1 && !shared && parameters && !extra);
    uint64_t module = (uintptr_t)function & ~15ull, number = ((uintptr_t)function & 15) - 1;
    struct object *object = find(MODULE, module);
    struct queue *queue;
    int result = find_queue(stream, &queue);
    if (result || !object || number >= KERNELS) return result ? result : INVALID_HANDLE;
    if (object->context != current() || stale(object)) return INVALID_HANDLE;
    if (threads > 128) return LAUNCH_OUT_OF_RESOURCES; // __launch_bounds__
    struct launch launch = {module, {0}, &kernels[number], blocks, threads};
    for (const char *letter = launch.kernel->parameters; *letter; letter++) {
        int i = letter - launch.kernel->parameters;
        memcpy(&launch.parameters[i], parameters[i], *letter == 'n' ? 4 : 8);
    }
    if (queue) return enqueue(queue, (struct work){.launch = launch}), OK;
    result = drain(current(), false);
    return result ? result : run_launch(launch);
}

// Of a reservation without memory only the range and "mapped" (13) are known; device memory has no host pointer (4).
CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer) {
    ENTER(DRIVER, data);
    struct object *host = pinned(pointer, 1), *space = host ? host : containing(RESERVATION, pointer, 1);
    struct object *part = host ? host : containing(MAPPING, pointer, 1);
    bool of_host = host || (part && part->memory && is_host(part->memory));
    if (!space || (!part && (attribute < 11 || attribute > 13)) || (!of_host && attribute == 4)) return INVALID_VALUE;
    static struct memory nothing;
    static struct object absent = {.memory = &nothing, .context = contexts};
    if (!part) part = &absent;
    const uint64_t values[] = {
        [1] = host ? (uintptr_t)host->context : 0, // context
        [2] = of_host ? 1 : 2,                     // memory type
        [3] = pointer, [4] = pointer,              // for the device, for the host
        [7] = part->id, [20] = host ? host->id : part->memory->ino,
        [9] = host ? host->context->device : part->memory->device,
        [11] = space->id, [12] = space->size, [13] = part != &absent,
        [14] = part->handle_types, [15] = !of_host, [16] = part->access, // 15: reachable by RDMA
        [18] = part->size, [19] = part->id,
    };
    const int known = 0x1dff9e; // not tokens for other drivers (5), settings (6), pools (17)
    if (attribute < 0 || attribute > 20 || !(known >> attribute & 1)) return INVALID_VALUE;
    const int narrow = 1 << 2 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 16; // 32 bits, little-endian
    memcpy(data, &values[attribute], narrow >> attribute & 1 ? 4 : 8);
    return OK;
}

// For tests of leaks: everything that this process holds of this library, retained contexts included.
int daxfs_fake_cuda_live(void) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (struct object *object = objects; object; object = object->next) count++;
    for (int i = 0; i < MAX_DEVICES; i++) count += contexts[i].retained;
    pthread_mutex_unlock(&lock);
    return count;
}
