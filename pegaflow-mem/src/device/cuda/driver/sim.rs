// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A driver that is none: device memory is host memory, streams are threads, kernels are a few lines of Rust.
//!
//! For tests on machines without a GPU. Streams run their work late and at their own pace, so that a missing wait between
//! two of them shows as wrong bytes. What a test wants to fail is set per thread, in [`Faults`].

use super::super::ffi::{
    self, Api, Batch3dOp, CuDevice, CuDevicePtr, CuResult, Handle, MemcpyAttributes,
};
use std::alloc::Layout;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

mod kernel;

use kernel::Head;

/// What fails on this thread.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Faults {
    /// Largest allocation of device memory that succeeds; 0: no limit.
    pub alloc_bytes_max: usize,
    /// Host memory cannot be registered.
    pub register: bool,
    /// No module loads.
    pub module: bool,
}

thread_local! {
    static FAULTS: Cell<Faults> = const { Cell::new(Faults { alloc_bytes_max: 0, register: false, module: false }) };
}

/// Sets what fails on this thread from now on.
pub(in super::super) fn set_faults(faults: Faults) {
    FAULTS.set(faults);
}

/// The simulated driver; `new` has the batch calls of 12.8.
pub(in super::super) fn api(new: bool) -> &'static Api {
    static NEW: Api = table(true);
    static OLD: Api = table(false);
    if new { &NEW } else { &OLD }
}

const INVALID: CuResult = 1;
type Work = Box<dyn FnOnce() + Send>;

struct SimStream {
    queue: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct SimEvent {
    /// How often it was recorded, and the latest of these that has passed.
    state: Mutex<(u64, u64)>,
    passed: Condvar,
}

static ALLOCATIONS: Mutex<BTreeMap<u64, (usize, bool)>> = Mutex::new(BTreeMap::new());
static REGISTERED: Mutex<Vec<(u64, usize)>> = Mutex::new(Vec::new());
static PACE: AtomicU64 = AtomicU64::new(0x1234_5678);

/// Now and then, work starts late.
fn dawdle() {
    let n = PACE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    match (n >> 40) % 16 {
        0 => std::thread::sleep(std::time::Duration::from_micros(n >> 58)),
        1..6 => std::thread::yield_now(),
        _ => {}
    }
}

fn stream<'a>(handle: Handle) -> &'a SimStream {
    // SAFETY: handles of this table are leaked boxes until they are destroyed, which tests do last.
    unsafe { &*handle.cast::<SimStream>() }
}

fn event(handle: Handle) -> Arc<SimEvent> {
    // SAFETY: as in `stream`; the count is raised for the copy that is returned.
    unsafe {
        Arc::increment_strong_count(handle.cast::<SimEvent>());
        Arc::from_raw(handle.cast::<SimEvent>())
    }
}

fn push(handle: Handle, work: impl FnOnce() + Send + 'static) -> CuResult {
    let queue = stream(handle).queue.lock().expect("no panic inside");
    let sent = queue.as_ref().map(|q| q.send(Box::new(work)).is_ok());
    if sent == Some(true) {
        ffi::SUCCESS
    } else {
        INVALID
    }
}

fn move_bytes(to: u64, from: u64, bytes: usize) {
    // SAFETY: the code under test vouches for its spans; both sides are host memory here.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) }
}

unsafe extern "C" fn ok1<A>(_: A) -> CuResult {
    ffi::SUCCESS
}
unsafe extern "C" fn version(out: *mut c_int) -> CuResult {
    // SAFETY: callers pass places of the types in the table; so in all functions below.
    unsafe { *out = 12_080 };
    ffi::SUCCESS
}
unsafe extern "C" fn count(out: *mut c_int) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 1 };
    ffi::SUCCESS
}
unsafe extern "C" fn device_get(out: *mut CuDevice, ordinal: c_int) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = ordinal };
    if ordinal == 0 { ffi::SUCCESS } else { 101 }
}
unsafe extern "C" fn text(out: *mut c_char, _: c_int, _: CuDevice) -> CuResult {
    for (i, c) in b"simulated\0".iter().enumerate() {
        // SAFETY: the buffer has 256 bytes.
        unsafe { *out.add(i) = *c as c_char };
    }
    ffi::SUCCESS
}
unsafe extern "C" fn attribute(out: *mut c_int, which: c_int, _: CuDevice) -> CuResult {
    let value = match which {
        ffi::ATTRIBUTE_COMPUTE_MAJOR => 7,
        ffi::ATTRIBUTE_MULTIPROCESSORS => 4,
        ffi::ATTRIBUTE_COMPUTE_MINOR => 0,
        _ => 1,
    };
    // SAFETY: as in `version`.
    unsafe { *out = value };
    ffi::SUCCESS
}
unsafe extern "C" fn total(out: *mut usize, _: CuDevice) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 1 << 30 };
    ffi::SUCCESS
}
unsafe extern "C" fn retain(out: *mut Handle, _: CuDevice) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 8 as Handle };
    ffi::SUCCESS
}
unsafe extern "C" fn pop(out: *mut Handle) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 8 as Handle };
    ffi::SUCCESS
}
unsafe extern "C" fn priorities(low: *mut c_int, high: *mut c_int) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { (*low, *high) = (0, -5) };
    ffi::SUCCESS
}

unsafe extern "C" fn stream_create(out: *mut Handle, _: c_uint, _: c_int) -> CuResult {
    let (queue, work) = channel::<Work>();
    let thread = std::thread::spawn(move || {
        for work in work {
            dawdle();
            work();
        }
    });
    let made = SimStream {
        queue: Mutex::new(Some(queue)),
        thread: Mutex::new(Some(thread)),
    };
    // SAFETY: as in `version`.
    unsafe { *out = Box::into_raw(Box::new(made)).cast() };
    ffi::SUCCESS
}
unsafe extern "C" fn stream_destroy(handle: Handle) -> CuResult {
    stream(handle).queue.lock().expect("no panic inside").take();
    if let Some(thread) = stream(handle)
        .thread
        .lock()
        .expect("no panic inside")
        .take()
    {
        thread.join().expect("simulated work does not panic");
    }
    ffi::SUCCESS
}
unsafe extern "C" fn stream_synchronize(handle: Handle) -> CuResult {
    let (done, wait) = channel();
    let code = push(handle, move || done.send(()).expect("someone waits"));
    if code == ffi::SUCCESS {
        wait.recv().expect("the stream lives");
    }
    code
}
unsafe extern "C" fn stream_wait_event(handle: Handle, on: Handle, _: c_uint) -> CuResult {
    let on = event(on);
    let wanted = on.state.lock().expect("no panic inside").0;
    push(handle, move || {
        let state = on.state.lock().expect("no panic inside");
        drop(
            on.passed
                .wait_while(state, |s| s.1 < wanted)
                .expect("no panic inside"),
        );
    })
}
unsafe extern "C" fn write_value(
    handle: Handle,
    to: CuDevicePtr,
    value: u32,
    _: c_uint,
) -> CuResult {
    push(handle, move || {
        // SAFETY: a word of the pinned memory under test.
        unsafe { (*(to as *const AtomicU32)).store(value, Ordering::SeqCst) }
    })
}
unsafe extern "C" fn wait_value(
    handle: Handle,
    at: CuDevicePtr,
    value: u32,
    _: c_uint,
) -> CuResult {
    push(handle, move || {
        // SAFETY: as in `write_value`.
        while (unsafe { (*(at as *const AtomicU32)).load(Ordering::SeqCst) }.wrapping_sub(value)
            as i32)
            < 0
        {
            std::thread::yield_now();
        }
    })
}
unsafe extern "C" fn event_create(out: *mut Handle, _: c_uint) -> CuResult {
    // SAFETY: as in `version`.
    unsafe {
        *out = Arc::into_raw(Arc::new(SimEvent::default()))
            .cast_mut()
            .cast()
    };
    ffi::SUCCESS
}
unsafe extern "C" fn event_destroy(handle: Handle) -> CuResult {
    // SAFETY: takes back the count that `event_create` gave away.
    drop(unsafe { Arc::from_raw(handle.cast::<SimEvent>()) });
    ffi::SUCCESS
}
unsafe extern "C" fn event_record(handle: Handle, on: Handle) -> CuResult {
    let event = event(handle);
    let mut state = event.state.lock().expect("no panic inside");
    state.0 += 1;
    let number = state.0;
    drop(state);
    push(on, move || {
        let mut state = event.state.lock().expect("no panic inside");
        state.1 = state.1.max(number);
        event.passed.notify_all();
    })
}
unsafe extern "C" fn event_query(handle: Handle) -> CuResult {
    let event = event(handle);
    let state = event.state.lock().expect("no panic inside");
    if state.0 == state.1 {
        ffi::SUCCESS
    } else {
        ffi::ERROR_NOT_READY
    }
}
unsafe extern "C" fn event_synchronize(handle: Handle) -> CuResult {
    let event = event(handle);
    let state = event.state.lock().expect("no panic inside");
    let wanted = state.0;
    drop(
        event
            .passed
            .wait_while(state, |s| s.1 < wanted)
            .expect("no panic inside"),
    );
    ffi::SUCCESS
}
unsafe extern "C" fn event_elapsed(out: *mut f32, _: Handle, _: Handle) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 1.0 };
    ffi::SUCCESS
}

fn allocate(bytes: usize, device: bool) -> Option<u64> {
    let limit = FAULTS.get().alloc_bytes_max;
    if bytes == 0 || (device && limit > 0 && bytes > limit) {
        return None;
    }
    let layout = Layout::from_size_align(bytes, 4096).expect("tests ask for sane sizes");
    // SAFETY: not of size zero.
    let start = unsafe { std::alloc::alloc(layout) } as u64;
    ALLOCATIONS
        .lock()
        .expect("no panic inside")
        .insert(start, (bytes, device));
    // What was there before must not look like zeros.
    // SAFETY: just allocated.
    unsafe { (start as *mut u8).write_bytes(0xA5, bytes) };
    Some(start)
}
fn release(start: u64) -> CuResult {
    let Some((bytes, _)) = ALLOCATIONS.lock().expect("no panic inside").remove(&start) else {
        return INVALID;
    };
    let layout = Layout::from_size_align(bytes, 4096).expect("it was allocated so");
    // SAFETY: allocated by `allocate`, removed from the list once.
    unsafe { std::alloc::dealloc(start as *mut u8, layout) };
    ffi::SUCCESS
}
unsafe extern "C" fn memory_alloc(out: *mut CuDevicePtr, bytes: usize) -> CuResult {
    let Some(start) = allocate(bytes, true) else {
        return ffi::ERROR_OUT_OF_MEMORY;
    };
    // SAFETY: as in `version`.
    unsafe { *out = start };
    ffi::SUCCESS
}
unsafe extern "C" fn memory_free(start: CuDevicePtr) -> CuResult {
    release(start)
}
unsafe extern "C" fn host_alloc(out: *mut *mut c_void, bytes: usize, _: c_uint) -> CuResult {
    let Some(start) = allocate(bytes, false) else {
        return ffi::ERROR_OUT_OF_MEMORY;
    };
    // SAFETY: as in `version`.
    unsafe { *out = start as *mut c_void };
    ffi::SUCCESS
}
unsafe extern "C" fn host_free(start: *mut c_void) -> CuResult {
    release(start as u64)
}
unsafe extern "C" fn host_register(start: *mut c_void, bytes: usize, _: c_uint) -> CuResult {
    if FAULTS.get().register {
        return ffi::ERROR_OUT_OF_MEMORY;
    }
    REGISTERED
        .lock()
        .expect("no panic inside")
        .push((start as u64, bytes));
    ffi::SUCCESS
}
unsafe extern "C" fn host_unregister(start: *mut c_void) -> CuResult {
    let mut all = REGISTERED.lock().expect("no panic inside");
    match all.iter().position(|r| r.0 == start as u64) {
        Some(i) => {
            all.swap_remove(i);
            ffi::SUCCESS
        }
        None => 713,
    }
}

/// Whether DMA may touch these bytes: they lie in one allocation or one registration.
fn reachable(start: u64, bytes: usize) -> bool {
    let inside = |from: u64, len: usize| from <= start && start + bytes as u64 <= from + len as u64;
    let pinned = REGISTERED.lock().expect("no panic inside");
    let ours = ALLOCATIONS.lock().expect("no panic inside");
    pinned.iter().any(|r| inside(r.0, r.1))
        || ours.iter().any(|(from, (len, _))| inside(*from, *len))
}
unsafe extern "C" fn memcpy(
    to: CuDevicePtr,
    from: CuDevicePtr,
    bytes: usize,
    on: Handle,
) -> CuResult {
    if !reachable(to, bytes) || !reachable(from, bytes) {
        return INVALID;
    }
    push(on, move || move_bytes(to, from, bytes))
}
unsafe extern "C" fn memset(to: CuDevicePtr, value: u8, bytes: usize, on: Handle) -> CuResult {
    // SAFETY: as in `move_bytes`.
    push(on, move || unsafe {
        (to as *mut u8).write_bytes(value, bytes)
    })
}
unsafe extern "C" fn memcpy_batch(
    to: *mut CuDevicePtr,
    from: *mut CuDevicePtr,
    bytes: *mut usize,
    n: usize,
    _: *mut MemcpyAttributes,
    _: *mut usize,
    _: usize,
    _: *mut usize,
    on: Handle,
) -> CuResult {
    for i in 0..n {
        // SAFETY: arrays of `n` entries.
        let (to, from, bytes) = unsafe { (*to.add(i), *from.add(i), *bytes.add(i)) };
        if !reachable(to, bytes) || !reachable(from, bytes) {
            return INVALID;
        }
        push(on, move || move_bytes(to, from, bytes));
    }
    ffi::SUCCESS
}
unsafe extern "C" fn memcpy_3d_batch(
    n: usize,
    ops: *mut Batch3dOp,
    _: *mut usize,
    _: u64,
    on: Handle,
) -> CuResult {
    for i in 0..n {
        // SAFETY: an array of `n` entries.
        let op = unsafe { *ops.add(i) };
        push(on, move || {
            for row in 0..op.height as u64 {
                let to = op.dst.ptr + row * op.dst.row_length as u64;
                move_bytes(to, op.src.ptr + row * op.src.row_length as u64, op.width);
            }
        });
    }
    ffi::SUCCESS
}
unsafe extern "C" fn pointer_attributes(
    _: c_uint,
    _: *mut c_uint,
    data: *mut *mut c_void,
    at: CuDevicePtr,
) -> CuResult {
    let all = ALLOCATIONS.lock().expect("no panic inside");
    let found = all
        .range(..=at)
        .next_back()
        .filter(|(start, (bytes, _))| at < *start + *bytes as u64);
    let Some((start, (bytes, device))) = found else {
        return INVALID;
    };
    // SAFETY: four places, in the order that `range_of` asks for.
    unsafe {
        *(*data).cast::<u32>() = if *device { ffi::MEMORY_TYPE_DEVICE } else { 1 };
        *(*data.add(1)).cast::<i32>() = 0;
        *(*data.add(2)).cast::<u64>() = *start;
        *(*data.add(3)).cast::<usize>() = *bytes;
    }
    ffi::SUCCESS
}
unsafe extern "C" fn module_load(
    out: *mut Handle,
    _: *const c_void,
    _: c_uint,
    _: *mut c_uint,
    _: *mut *mut c_void,
) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = 16 as Handle };
    if FAULTS.get().module {
        222
    } else {
        ffi::SUCCESS
    }
}
unsafe extern "C" fn module_function(out: *mut Handle, _: Handle, name: *const c_char) -> CuResult {
    // SAFETY: a C string.
    let name = unsafe { CStr::from_ptr(name) }
        .to_str()
        .expect("kernel names are ASCII");
    let number = match name
        .trim_start_matches("pegaflow_")
        .trim_end_matches("_small")
    {
        "gather" => 1,
        "scatter" => 2,
        "checksum" => 3,
        "publish" => 4,
        _ => return 500,
    };
    // SAFETY: as in `version`.
    unsafe { *out = number as Handle };
    ffi::SUCCESS
}
unsafe extern "C" fn launch(
    function: Handle,
    _: c_uint,
    _: c_uint,
    _: c_uint,
    _: c_uint,
    _: c_uint,
    _: c_uint,
    _: c_uint,
    on: Handle,
    params: *mut *mut c_void,
    _: *mut *mut c_void,
) -> CuResult {
    let number = function as usize;
    if number == 4 {
        // SAFETY: the six parameters of the publishing kernel.
        let (sums, host, n, signal, value) = unsafe {
            (
                *(*params).cast::<u64>(),
                *(*params.add(1)).cast::<u64>(),
                *(*params.add(2)).cast::<u64>(),
                *(*params.add(3)).cast::<u64>(),
                *(*params.add(5)).cast::<u32>(),
            )
        };
        if signal == 0 {
            return ffi::SUCCESS;
        }
        return push(on, move || {
            move_bytes(host, sums, n as usize * 8);
            // SAFETY: as in `move_bytes` and `write_value`.
            unsafe {
                (sums as *mut u8).write_bytes(0, n as usize * 8);
                (*(signal as *const AtomicU32)).store(value, Ordering::SeqCst);
            }
        });
    }
    // SAFETY: the one parameter of the copy kernels: `Args`, or as much of it as the entries need.
    let head = unsafe { Head::read(*params) };
    push(on, move || head.run(number))
}
unsafe extern "C" fn error_name(_: CuResult, out: *mut *const c_char) -> CuResult {
    // SAFETY: as in `version`.
    unsafe { *out = c"CUDA_ERROR_SIMULATED".as_ptr() };
    ffi::SUCCESS
}

const fn table(new: bool) -> Api {
    Api {
        init: ok1,
        driver_version: version,
        device_count: count,
        device_get,
        device_name: text,
        device_attribute: attribute,
        device_pci_bus_id: text,
        device_total_memory: total,
        primary_context_retain: retain,
        primary_context_release: ok1,
        context_push: ok1,
        context_pop: pop,
        context_priorities: priorities,
        stream_create,
        stream_destroy,
        stream_synchronize,
        stream_wait_event,
        stream_write_value: write_value,
        stream_wait_value: wait_value,
        event_create,
        event_destroy,
        event_record,
        event_query,
        event_synchronize,
        event_elapsed,
        memory_alloc,
        memory_free,
        host_alloc,
        host_free,
        host_register,
        host_unregister,
        memcpy_async: memcpy,
        memset_async: memset,
        pointer_attributes,
        module_load,
        module_unload: ok1,
        module_function,
        launch,
        error_name,
        memcpy_batch_async: if new { Some(memcpy_batch) } else { None },
        memcpy_3d_batch_async: if new { Some(memcpy_3d_batch) } else { None },
    }
}
