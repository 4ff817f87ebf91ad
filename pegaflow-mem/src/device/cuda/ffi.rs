// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The part of the CUDA driver API that is used, opened at run time and never linked.
//!
//! Types and numbers are those of `cuda.h` (12.8); names without a suffix there carry the suffix of the ABI version here.
//! Knows nothing of what the calls are used for.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub(super) type CuResult = c_int;
pub(super) type CuDevicePtr = u64;
pub(super) type CuDevice = c_int;
/// An opaque handle of the driver: context, stream, event, module or function.
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: CuResult = 0;
#[cfg(test)]
pub(super) const ERROR_OUT_OF_MEMORY: CuResult = 2;
pub(super) const ERROR_NOT_READY: CuResult = 600;
pub(super) const ERROR_ALREADY_REGISTERED: CuResult = 712;

pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
pub(super) const EVENT_BLOCKING_SYNC: c_uint = 1;
pub(super) const EVENT_DISABLE_TIMING: c_uint = 2;
pub(super) const HOST_PORTABLE: c_uint = 1;
pub(super) const HOST_DEVICEMAP: c_uint = 2;
pub(super) const HOST_READ_ONLY: c_uint = 8;
pub(super) const SRC_ACCESS_ORDER_STREAM: c_uint = 1;
pub(super) const OPERAND_POINTER: c_uint = 1;
pub(super) const WAIT_VALUE_GEQ: c_uint = 0;

pub(super) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
pub(super) const ATTRIBUTE_HOST_POINTER_FOR_REGISTERED: c_int = 91;
pub(super) const ATTRIBUTE_COMPUTE_MAJOR: c_int = 75;
pub(super) const ATTRIBUTE_COMPUTE_MINOR: c_int = 76;

pub(super) const POINTER_MEMORY_TYPE: c_uint = 2;
pub(super) const POINTER_DEVICE_ORDINAL: c_uint = 9;
pub(super) const POINTER_RANGE_START: c_uint = 11;
pub(super) const POINTER_RANGE_SIZE: c_uint = 12;
pub(super) const MEMORY_TYPE_DEVICE: c_uint = 2;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct MemLocation {
    pub kind: c_uint,
    pub id: c_int,
}

/// `CUmemcpyAttributes`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct MemcpyAttributes {
    pub src_access_order: c_uint,
    pub src_location: MemLocation,
    pub dst_location: MemLocation,
    pub flags: c_uint,
}

/// `CUmemcpy3DOperand` of kind pointer.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Operand3d {
    pub kind: c_uint,
    pub ptr: CuDevicePtr,
    pub row_length: usize,
    pub layer_height: usize,
    pub location: MemLocation,
}

/// `CUDA_MEMCPY3D_BATCH_OP`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Batch3dOp {
    pub src: Operand3d,
    pub dst: Operand3d,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
    pub src_access_order: c_uint,
    pub flags: c_uint,
}

const _: () = assert!(size_of::<MemcpyAttributes>() == 24);
const _: () = assert!(size_of::<Operand3d>() == 40);
const _: () = assert!(size_of::<Batch3dOp>() == 112);

pub(super) type MemcpyBatchAsync = unsafe extern "C" fn(
    *mut CuDevicePtr,
    *mut CuDevicePtr,
    *mut usize,
    usize,
    *mut MemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    Handle,
) -> CuResult;
pub(super) type Memcpy3dBatchAsync =
    unsafe extern "C" fn(usize, *mut Batch3dOp, *mut usize, u64, Handle) -> CuResult;
type GetProcAddress =
    unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> CuResult;

macro_rules! api {
    ($($name:ident = $symbol:literal ( $($arg:ty),* );)*) => {
        /// The calls, resolved once.
        pub(super) struct Api {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> CuResult,)*
            /// Since 12.8; in the form of 12.8, which newer drivers keep.
            pub memcpy_batch_async: Option<MemcpyBatchAsync>,
            /// Since 12.8, likewise.
            pub memcpy_3d_batch_async: Option<Memcpy3dBatchAsync>,
        }

        impl Api {
            fn resolve(library: Library) -> Result<Self, String> {
                Ok(Self {
                    $($name: {
                        let address = library.symbol($symbol)
                            .ok_or_else(|| format!("libcuda.so.1 has no {}", $symbol))?;
                        // SAFETY: the symbol is the driver's function of this name and ABI version, and the type in the table is its declaration in cuda.h.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> CuResult>(address) }
                    },)*
                    memcpy_batch_async: library.versioned("cuMemcpyBatchAsync", 12_080).map(|address| {
                        // SAFETY: asked for by name and version 12.8, whose declaration the type is.
                        unsafe { std::mem::transmute::<*mut c_void, MemcpyBatchAsync>(address) }
                    }),
                    memcpy_3d_batch_async: library.versioned("cuMemcpy3DBatchAsync", 12_080).map(|address| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<*mut c_void, Memcpy3dBatchAsync>(address) }
                    }),
                })
            }
        }
    };
}

api! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut CuDevice, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, CuDevice);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, CuDevice);
    device_pci_bus_id = "cuDeviceGetPCIBusId" (*mut c_char, c_int, CuDevice);
    device_total_memory = "cuDeviceTotalMem_v2" (*mut usize, CuDevice);
    primary_context_retain = "cuDevicePrimaryCtxRetain" (*mut Handle, CuDevice);
    primary_context_release = "cuDevicePrimaryCtxRelease_v2" (CuDevice);
    context_push = "cuCtxPushCurrent_v2" (Handle);
    context_pop = "cuCtxPopCurrent_v2" (*mut Handle);
    context_priorities = "cuCtxGetStreamPriorityRange" (*mut c_int, *mut c_int);
    stream_create = "cuStreamCreateWithPriority" (*mut Handle, c_uint, c_int);
    stream_destroy = "cuStreamDestroy_v2" (Handle);
    stream_synchronize = "cuStreamSynchronize" (Handle);
    stream_wait_event = "cuStreamWaitEvent" (Handle, Handle, c_uint);
    stream_write_value = "cuStreamWriteValue32_v2" (Handle, CuDevicePtr, u32, c_uint);
    stream_wait_value = "cuStreamWaitValue32_v2" (Handle, CuDevicePtr, u32, c_uint);
    event_create = "cuEventCreate" (*mut Handle, c_uint);
    event_destroy = "cuEventDestroy_v2" (Handle);
    event_record = "cuEventRecord" (Handle, Handle);
    event_query = "cuEventQuery" (Handle);
    event_synchronize = "cuEventSynchronize" (Handle);
    event_elapsed = "cuEventElapsedTime" (*mut f32, Handle, Handle);
    memory_alloc = "cuMemAlloc_v2" (*mut CuDevicePtr, usize);
    memory_free = "cuMemFree_v2" (CuDevicePtr);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" (*mut c_void);
    memcpy_async = "cuMemcpyAsync" (CuDevicePtr, CuDevicePtr, usize, Handle);
    memset_async = "cuMemsetD8Async" (CuDevicePtr, u8, usize, Handle);
    pointer_attributes = "cuPointerGetAttributes" (c_uint, *mut c_uint, *mut *mut c_void, CuDevicePtr);
    module_load = "cuModuleLoadDataEx" (*mut Handle, *const c_void, c_uint, *mut c_uint, *mut *mut c_void);
    module_unload = "cuModuleUnload" (Handle);
    module_function = "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    launch = "cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
    error_name = "cuGetErrorName" (CuResult, *mut *const c_char);
}

/// libcuda, kept open for the life of the process.
struct Library {
    handle: *mut c_void,
    get_proc_address: Option<GetProcAddress>,
}

impl Library {
    fn open() -> Result<Self, String> {
        for name in [c"libcuda.so.1", c"libcuda.so"] {
            // SAFETY: a valid C string; the driver's library has no preconditions on being loaded.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() {
                continue;
            }
            let mut library = Self {
                handle,
                get_proc_address: None,
            };
            library.get_proc_address = library.symbol("cuGetProcAddress_v2").map(|address| {
                // SAFETY: the symbol's declaration in cuda.h (12.0 and newer).
                unsafe { std::mem::transmute::<*mut c_void, GetProcAddress>(address) }
            });
            return Ok(library);
        }
        // SAFETY: called right after the dlopen that failed; the text is copied at once.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() {
                String::from("not found")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(format!("no CUDA driver on this machine ({reason})"))
    }

    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).expect("names in the table have no NUL");
        // SAFETY: an open library and a valid C string.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }

    /// A call that changed its form between versions: in the form of `version`, or not at all.
    fn versioned(&self, name: &str, version: c_int) -> Option<*mut c_void> {
        let get = self.get_proc_address?;
        let name = CString::new(name).expect("names in the table have no NUL");
        let (mut address, mut status) = (std::ptr::null_mut(), 0);
        // SAFETY: valid pointers to locals; flags 0 asks for the legacy default-stream form.
        let result = unsafe { get(name.as_ptr(), &mut address, version, 0, &mut status) };
        (result == SUCCESS && !address.is_null()).then_some(address)
    }
}

/// The driver of this machine, opened and initialised on first use.
///
/// # Errors
/// Why there is none, in words.
pub(super) fn driver() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(|| {
        let api = Api::resolve(Library::open()?)?;
        // SAFETY: the table holds cuInit; 0 is the only flag defined.
        match unsafe { (api.init)(0) } {
            SUCCESS => Ok(api),
            code => Err(format!("cuInit failed with {} ({code})", api.name_of(code))),
        }
    })
    .as_ref()
    .map_err(Clone::clone)
}

impl Api {
    /// The driver's name for an error code.
    pub(super) fn name_of(&self, code: CuResult) -> String {
        let mut name = std::ptr::null();
        // SAFETY: writes one pointer to a static string of the driver, or fails.
        let result = unsafe { (self.error_name)(code, &mut name) };
        if result != SUCCESS || name.is_null() {
            return format!("error {code}");
        }
        // SAFETY: a static C string of the driver.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    }
}
