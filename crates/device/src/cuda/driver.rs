//! The functions of the CUDA driver that are used here: all are looked up in `libcuda.so.1` before one is called.
//!
//! This is a table of our own instead of a crate's bindings, for two reasons: those return result codes as Rust enums,
//! which a code of a newer driver would make undefined behaviour, and they panic where a symbol is missing.

#![allow(unsafe_code, reason = "loads a library and takes functions out of it")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::DeviceError;

/// `CUresult`, as a number.
pub(super) type Code = c_int;
/// `CUdevice`.
pub(super) type Number = c_int;
/// `CUdeviceptr`.
pub(super) type Address = u64;
/// `CUmemGenericAllocationHandle`.
pub(super) type Handle = u64;
/// `CUcontext`, `CUstream`, `CUevent`, `CUmodule`, `CUfunction`.
pub(super) type Opaque = *mut c_void;

/// `CUDA_ERROR_INVALID_VALUE`.
pub(super) const INVALID_VALUE: Code = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: Code = 2;

const LIBRARY: &str = "libcuda.so.1";
/// All functions are there since CUDA 11.7.
const DRIVER_NEEDED: &str =
    "an NVIDIA driver of version 515 or later, and its libcuda.so.1 in this container";
const GPU_NEEDED: &str = "an NVIDIA GPU that works and that this process may see (CUDA_VISIBLE_DEVICES, the devices of \
                          the container)";

/// `CUmemLocation`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// `CU_MEM_LOCATION_TYPE_DEVICE` is 1, and `CU_MEM_LOCATION_TYPE_HOST_NUMA` is 3.
    pub kind: c_int,
    /// Of the device, or of the node.
    pub number: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct AllocationProperties {
    /// `CU_MEM_ALLOCATION_TYPE_PINNED` is 1.
    pub kind: c_int,
    /// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR` is 1.
    pub handle_types: c_int,
    pub location: Location,
    /// For Windows.
    pub security: *const c_void,
    /// Compression, whether network cards may read it, usage.
    pub compression: u8,
    pub rdma: u8,
    pub usage: u16,
    pub reserved: [u8; 4],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub location: Location,
    /// `CU_MEM_ACCESS_FLAGS_PROT_READ` is 1, READWRITE is 3.
    pub flags: c_int,
}

const _: () = assert!(size_of::<AllocationProperties>() == 32 && size_of::<Access>() == 12);

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// One field for each function, under the name that the library exports.
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            _library: Library,
        }

        impl Functions {
            /// Finds all of them; the name of the first that is missing else.
            fn find(library: Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        type Function = unsafe extern "C" fn($($argument),*) -> Code;
                        // SAFETY: the symbol is the function of the CUDA driver API that cuda.h (12.0 to 13.1)
                        // declares with this prototype, its enums being `int`. The pointer is used as long as the
                        // library is loaded, which is as long as this value lives.
                        let symbol = unsafe { library.get::<Function>(concat!($symbol, "\0").as_bytes()) };
                        *symbol.map_err(|_| $symbol)?
                    },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    get_error_string = "cuGetErrorString" (Code, *mut *const c_char);
    device_get_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut Number, c_int);
    device_get_name = "cuDeviceGetName" (*mut c_char, c_int, Number);
    device_get_uuid = "cuDeviceGetUuid_v2" (*mut [u8; 16], Number);
    device_get_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, Number);
    primary_context_retain = "cuDevicePrimaryCtxRetain" (*mut Opaque, Number);
    primary_context_release = "cuDevicePrimaryCtxRelease_v2" (Number);
    context_push = "cuCtxPushCurrent_v2" (Opaque);
    context_pop = "cuCtxPopCurrent_v2" (*mut Opaque);
    context_synchronize = "cuCtxSynchronize" ();
    mem_get_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    mem_get_granularity = "cuMemGetAllocationGranularity" (*mut usize, *const AllocationProperties, c_int);
    mem_create = "cuMemCreate" (*mut Handle, usize, *const AllocationProperties, u64);
    mem_get_properties = "cuMemGetAllocationPropertiesFromHandle" (*mut AllocationProperties, Handle);
    mem_release = "cuMemRelease" (Handle);
    mem_address_reserve = "cuMemAddressReserve" (*mut Address, usize, usize, Address, u64);
    mem_address_free = "cuMemAddressFree" (Address, usize);
    mem_map = "cuMemMap" (Address, usize, usize, Handle, u64);
    mem_unmap = "cuMemUnmap" (Address, usize);
    mem_set_access = "cuMemSetAccess" (Address, usize, *const Access, usize);
    mem_export = "cuMemExportToShareableHandle" (*mut c_int, Handle, c_int, u64);
    mem_import = "cuMemImportFromShareableHandle" (*mut Handle, *mut c_void, c_int);
    mem_get_range_handle = "cuMemGetHandleForAddressRange" (*mut c_int, Address, usize, c_int, u64);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" (*mut c_void);
    host_get_address = "cuMemHostGetDevicePointer_v2" (*mut Address, *mut c_void, c_uint);
    copy_to_device = "cuMemcpyHtoDAsync_v2" (Address, *const c_void, usize, Opaque);
    copy_to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, Address, usize, Opaque);
    stream_create = "cuStreamCreate" (*mut Opaque, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (Opaque);
    stream_synchronize = "cuStreamSynchronize" (Opaque);
    event_create = "cuEventCreate" (*mut Opaque, c_uint);
    event_destroy = "cuEventDestroy_v2" (Opaque);
    event_record = "cuEventRecord" (Opaque, Opaque);
    event_synchronize = "cuEventSynchronize" (Opaque);
    module_load = "cuModuleLoadData" (*mut Opaque, *const c_void);
    module_unload = "cuModuleUnload" (Opaque);
    module_get_function = "cuModuleGetFunction" (*mut Opaque, Opaque, *const c_char);
    launch = "cuLaunchKernel" (Opaque, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Opaque,
        *mut *mut c_void, *mut *mut c_void);
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(LIBRARY)
    }
}

/// The driver, initialised. What was found is kept; what was not is looked for again.
pub(super) fn functions() -> Result<&'static Functions, DeviceError> {
    static DRIVER: OnceLock<Functions> = OnceLock::new();
    if let Some(found) = DRIVER.get() {
        return Ok(found);
    }
    let found = load().map_err(|(what, needs)| DeviceError::Unavailable { what, needs: needs.into() })?;
    Ok(DRIVER.get_or_init(|| found))
}

/// Or what is missing, and what it needs.
fn load() -> Result<Functions, (String, &'static str)> {
    // SAFETY: `libcuda.so.1` is the name of NVIDIA's user-mode driver; its initialisers set up that library alone.
    // Whoever can replace it can replace any library of this process.
    let library = unsafe { Library::new(LIBRARY) };
    let library = library.map_err(|error| (format!("CUDA ({error})"), DRIVER_NEEDED))?;
    let functions = Functions::find(library).map_err(|symbol| {
        (format!("CUDA with {symbol}, which this machine's {LIBRARY} lacks,"), DRIVER_NEEDED)
    })?;
    // SAFETY: the one argument is a set of flags, of which there are none.
    match unsafe { (functions.init)(0) } {
        0 => Ok(functions),
        code => Err((format!("CUDA (cuInit: {} ({code}))", functions.meaning(code)), GPU_NEEDED)),
    }
}

impl Functions {
    /// The driver's words for a code.
    pub fn meaning(&self, code: Code) -> String {
        let mut text = std::ptr::null();
        // SAFETY: the function takes any number and stores a pointer, which is null for one that it does not know.
        let known = unsafe { (self.get_error_string)(code, &raw mut text) };
        if known != 0 || text.is_null() {
            return "a code that this driver has no words for".into();
        }
        // SAFETY: the pointer is not null, so it is to a string of the driver's own, which ends with NUL and stays.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
