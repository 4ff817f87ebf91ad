// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Wakes the ring's thread from another.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Wakes a thread out of [`super::Ring::enter`].
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// A new one.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What a ring polls to be woken.
    pub(super) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Wakes the thread. Never blocks.
    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes the eight bytes of a live u64 to an open eventfd.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Sleeps until somebody wakes us.
    pub(crate) fn sleep(&self) {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live `pollfd` with an open descriptor.
        unsafe { libc::poll(&mut poll, 1, -1) };
        drain(self.0.as_raw_fd());
    }
}

/// Takes all wake-ups so far.
pub(super) fn drain(fd: RawFd) {
    let mut n = 0u64;
    // SAFETY: reads eight bytes of a non-blocking eventfd into a live u64; the owner of `fd` outlives the ring's thread.
    unsafe { libc::read(fd, (&raw mut n).cast(), 8) };
}
