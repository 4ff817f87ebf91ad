// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Processor time.

/// Seconds of processor time of this process so far, all threads, user and system.
pub(crate) fn cpu_seconds() -> f64 {
    // SAFETY: zeros are a valid `rusage`, and the call writes one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
