// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Files and raw block devices as runs of bytes, opened for one owner.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;

use crate::error::{Error, Result};

/// Something with bytes at offsets. The transfers here block and may be short, as the system's are.
pub trait BlockFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes at `at`; 0 means the end.
    ///
    /// # Errors
    /// Those of the operating system.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes up to `buf.len()` bytes at `at`.
    ///
    /// # Errors
    /// Those of the operating system.
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize>;

    /// Makes every finished write survive a power cut.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync(&self) -> io::Result<()>;

    /// Bytes it has.
    fn bytes(&self) -> u64;

    /// Its descriptor, where it has one that a ring may use.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    /// What a user should know about it, for example that it runs without `O_DIRECT` and why.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes of one sector of the device below.
    fn sector_bytes(&self) -> u32 {
        512
    }

    /// Whether transfers go past the page cache.
    fn direct(&self) -> bool {
        false
    }
}

/// How to open a file or device.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where it is.
    pub path: PathBuf,
    /// Past the page cache (`O_DIRECT`). Where the file system cannot, it is opened without, and [`BlockFile::notes`] says so.
    pub direct: bool,
    /// Bytes to make a regular file of, when it does not exist or is empty. A device has the size it has.
    pub create_bytes: Option<u64>,
    /// For looking only: no lock is taken and nothing can be written.
    pub read_only: bool,
    /// How long another owner is waited for, milliseconds: a killed process keeps its lock until the kernel has cleaned up after it.
    pub lock_wait_ms: u64,
}

impl OpenOptions {
    /// Directly, as it is, locked at once or not at all.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            path,
            direct: true,
            create_bytes: None,
            read_only: false,
            lock_wait_ms: 0,
        }
    }
}

/// A regular file or a block device.
#[derive(Debug)]
pub struct SystemFile {
    file: File,
    bytes: u64,
    sector_bytes: u32,
    direct: bool,
    notes: Vec<String>,
}

impl SystemFile {
    /// Opens (and makes, where asked) the file, and locks it against every other store.
    ///
    /// # Errors
    /// [`Error::InUse`] if another store has it; [`Error::BadPath`] if it is a directory, missing or cannot be made or opened.
    pub fn open(options: &OpenOptions) -> Result<Self> {
        let path = &options.path;
        let bad = |reason: String| Error::BadPath {
            path: path.clone(),
            reason,
        };
        if path.is_dir() {
            return Err(bad("is a directory; give a file or a block device".into()));
        }
        let mut notes = Vec::new();
        let (file, mut direct) =
            open_with_fallback(options, &mut notes).map_err(|e| bad(e.to_string()))?;
        if !options.read_only {
            lock(&file, options.lock_wait_ms).map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => Error::InUse { path: path.clone() },
                _ => bad(e.to_string()),
            })?;
        }
        let meta = file.metadata().map_err(|e| bad(e.to_string()))?;
        let kind = meta.file_type();
        // A device's name lies on a tmpfs, too.
        if direct && kind.is_file() && on_tmpfs(&file) {
            direct = false;
            notes.push(format!(
                "{}: tmpfs has no O_DIRECT, every transfer is a copy",
                path.display()
            ));
        }
        let (bytes, sector_bytes) = if kind.is_block_device() {
            device_size(&file).map_err(|e| bad(e.to_string()))?
        } else if kind.is_file() {
            let bytes = make_size(&file, meta.len(), options).map_err(|e| bad(e.to_string()))?;
            (bytes, 512)
        } else {
            return Err(bad("is neither a regular file nor a block device".into()));
        };
        Ok(Self {
            file,
            bytes,
            sector_bytes,
            direct,
            notes,
        })
    }
}

impl Drop for SystemFile {
    fn drop(&mut self) {
        // A ring's registration can keep the open file alive a little longer than this value; the lock ends now.
        // SAFETY: the descriptor is open for the call; flock touches no memory.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl BlockFile for SystemFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.file.write_at(buf, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn descriptor(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }
    fn direct(&self) -> bool {
        self.direct
    }
}

fn open_with_fallback(o: &OpenOptions, notes: &mut Vec<String>) -> io::Result<(File, bool)> {
    let open = |flags: i32| {
        std::fs::OpenOptions::new()
            .read(true)
            .write(!o.read_only)
            .create(!o.read_only && o.create_bytes.is_some())
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&o.path)
    };
    if !o.direct {
        return Ok((open(0)?, false));
    }
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            notes.push(format!(
                "{}: this file system has no O_DIRECT, transfers go through the page cache",
                o.path.display()
            ));
            Ok((open(0)?, false))
        }
        Err(e) => Err(e),
    }
}

fn lock(file: &File, wait_ms: u64) -> io::Result<()> {
    const STEP_MS: u64 = 5;
    let mut waited_ms = 0;
    loop {
        // SAFETY: the descriptor is open for the call; flock touches no memory.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::WouldBlock || waited_ms >= wait_ms {
            return Err(e);
        }
        thread::sleep(Duration::from_millis(STEP_MS));
        waited_ms += STEP_MS;
    }
}

fn on_tmpfs(file: &File) -> bool {
    // SAFETY: `statfs` is plain numbers, for which all zeroes is a value.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, `fs` is a live, writable `statfs`.
    let ok = unsafe { libc::fstatfs(file.as_raw_fd(), &mut fs) } == 0;
    ok && fs.f_type == libc::TMPFS_MAGIC
}

fn device_size(file: &File) -> io::Result<(u64, u32)> {
    const BLKSSZGET: libc::c_ulong = 0x1268;
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let (mut sector, mut bytes) = (0 as libc::c_int, 0u64);
    let fd = file.as_raw_fd();
    // SAFETY: BLKSSZGET writes one int, BLKGETSIZE64 one u64, each to the live variable given.
    let failed = unsafe {
        libc::ioctl(fd, BLKSSZGET as _, &mut sector) != 0
            || libc::ioctl(fd, BLKGETSIZE64 as _, &mut bytes) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok((bytes, sector as u32))
}

fn make_size(file: &File, now: u64, options: &OpenOptions) -> io::Result<u64> {
    let Some(want) = options
        .create_bytes
        .filter(|_| now == 0 && !options.read_only)
    else {
        return Ok(now);
    };
    // SAFETY: the descriptor is open for the call; fallocate touches no memory.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, want as libc::off_t) } != 0 {
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS) => file.set_len(want)?,
            _ => return Err(e),
        }
    }
    file.sync_all()?;
    Ok(want)
}

/// Bytes in memory that behave like a file: for tests, and for stores that need not outlive the process.
#[derive(Debug, Default)]
pub struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryFile {
    /// `bytes` zeroes.
    pub fn new(bytes: u64) -> Self {
        Self::from_bytes(vec![0; bytes as usize])
    }

    /// A file with this content.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }

    /// A copy of its content.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

impl BlockFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = self.bytes.read();
        let from = (at as usize).min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        let mut bytes = self.bytes.write();
        let from = (at as usize).min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        if n == 0 && !buf.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        bytes[from..from + n].copy_from_slice(&buf[..n]);
        Ok(n)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn bytes(&self) -> u64 {
        self.bytes.read().len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn options(path: &Path) -> OpenOptions {
        OpenOptions {
            create_bytes: Some(1 << 20),
            ..OpenOptions::new(path)
        }
    }

    #[test]
    fn a_second_owner_and_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let first = SystemFile::open(&options(&path)).unwrap();
        assert_eq!(first.bytes(), 1 << 20);
        let second = SystemFile::open(&options(&path));
        assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
        drop(first);
        assert!(SystemFile::open(&options(&path)).is_ok());
        let directory = SystemFile::open(&options(dir.path()));
        assert!(
            matches!(directory, Err(Error::BadPath { .. })),
            "{directory:?}"
        );
    }

    #[test]
    fn tmpfs_falls_back_and_says_so() {
        let shm = Path::new("/dev/shm");
        if !shm.is_dir() {
            return;
        }
        let dir = tempfile::tempdir_in(shm).unwrap();
        let file = SystemFile::open(&options(&dir.path().join("store"))).unwrap();
        assert!(!file.direct());
        assert_eq!(file.notes().len(), 1, "{:?}", file.notes());
    }
}
