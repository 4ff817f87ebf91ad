// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The files of a node's pools: made, found again, and locked against a second server.
//!
//! Invariant: a file that clients of an earlier run may have mapped is never made shorter or
//! cleared. What cannot be used is replaced by a new file under the same name; the old one lives
//! on, nameless, until its last client lets go.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pegaflow_mem::{Access, Backing, PoolSpec, SharedMemory, SlabAllocator};
use rustix::fs::{FlockOperation, MemfdFlags, flock, ftruncate, memfd_create};

use super::settings::{NodeSettings, PoolFiles};
use crate::control::geometry::Geometry;
use crate::control::superblock::{Found, Superblock};
use crate::error::{Error, Result};

/// The two files of one pool, mapped.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) data: Arc<SharedMemory>,
    pub(super) control: Arc<SharedMemory>,
    pub(super) superblock: Superblock,
    /// There were blocks to look for; if not, why, in words for a log.
    pub(super) found: std::result::Result<(), String>,
}

/// Holds the pool folder as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] Option<File>);

/// Random bytes of the system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let part =
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += part.expect("the system's generator is seeded once a process runs");
    }
    bytes
}

/// Makes the folder if need be, and takes it for this node alone.
pub(super) fn lock(files: &PoolFiles) -> Result<Lock> {
    let PoolFiles::Directory(dir) = files else {
        return Ok(Lock(None));
    };
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(Error::os("create the pool folder", dir))?;
    let path = dir.join("lock");
    let file = private().create(true).truncate(false).open(&path);
    let file = file.map_err(Error::os("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(Some(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::PoolInUse { dir: dir.clone() }),
        Err(error) => Err(Error::os("lock", &path)(error.into())),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Sizes of a pool of `bytes` bytes.
pub(super) fn geometry(bytes: u64) -> Geometry {
    let allocator = SlabAllocator::new(bytes);
    Geometry {
        capacity_bytes: allocator.capacity_bytes(),
        unit_bytes: allocator.unit_bytes(),
    }
}

/// Opens pool `index`, or makes it.
pub(super) fn open(settings: &NodeSettings, index: usize) -> Result<Files> {
    let pools = settings.numa_nodes.len().max(1) as u64;
    let geometry = geometry(settings.pool_bytes / pools);
    let node = settings.numa_nodes.get(index).copied();
    let spec = |backing| PoolSpec {
        backing,
        bytes: geometry.capacity_bytes,
        pages: settings.pages,
        node,
        touch_threads: settings.touch_threads,
    };
    let PoolFiles::Directory(dir) = &settings.files else {
        let name = format!("pegaflow-{}-{index}", settings.name);
        let control = anonymous(&format!("{name}-control"), geometry.file_bytes())?;
        return fresh(
            spec(Backing::Memfd(name)),
            control,
            geometry,
            "the pool is anonymous",
        );
    };
    let data = dir.join(format!("pool{index}.data"));
    let control = dir.join(format!("pool{index}.ctl"));
    match existing(&data, &control, geometry) {
        Ok(files) => Ok(files),
        Err(why) => replace(&[&data, &control]).and_then(|()| {
            let memory = sparse(&control, geometry.file_bytes())?;
            fresh(spec(Backing::File(data)), memory, geometry, &why)
        }),
    }
}

/// An existing pool, or why it cannot be used.
fn existing(data: &Path, control: &Path, geometry: Geometry) -> std::result::Result<Files, String> {
    if !control.exists() || !data.exists() {
        return Err("there was no pool".to_owned());
    }
    let attach = |path| SharedMemory::attach_path(path, Access::ReadWrite);
    let control = attach(control).map_err(|e| e.to_string())?;
    let superblock = match Superblock::read(&control) {
        Found::Current(superblock) => superblock,
        Found::Blank => return Err("the earlier server was stopped at its first start".to_owned()),
        Found::Version(version) => {
            return Err(format!(
                "the control file has format {version}, this server reads format {}",
                crate::control::superblock::FORMAT_VERSION
            ));
        }
        Found::Foreign => return Err("the control file is damaged".to_owned()),
    };
    if superblock.geometry != geometry {
        return Err(format!(
            "the pool had {} bytes and is to have {}",
            superblock.geometry.capacity_bytes, geometry.capacity_bytes
        ));
    }
    let data = attach(data).map_err(|e| e.to_string())?;
    if data.len() < geometry.capacity_bytes {
        return Err("the data file is shorter than the pool".to_owned());
    }
    Ok(Files {
        data: Arc::new(data),
        control: Arc::new(control),
        superblock,
        found: Ok(()),
    })
}

fn fresh(spec: PoolSpec, control: SharedMemory, geometry: Geometry, why: &str) -> Result<Files> {
    let data = SharedMemory::create(&spec)?;
    for note in data.notes() {
        tracing::warn!("{note}");
    }
    let superblock = Superblock {
        uuid: random(),
        geometry,
    };
    superblock.write(&control);
    Ok(Files {
        data: Arc::new(data),
        control: Arc::new(control),
        superblock,
        found: Err(why.to_owned()),
    })
}

fn replace(paths: &[&PathBuf]) -> Result<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::os("replace", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A new file of `bytes` bytes that takes memory only where it is written to.
fn sparse(path: &Path, bytes: u64) -> Result<SharedMemory> {
    let file = private().create_new(true).open(path);
    let file = file.map_err(Error::os("create", path))?;
    let sized = file.set_len(bytes);
    sized.map_err(Error::os("give its size to", path))?;
    Ok(SharedMemory::attach_path(path, Access::ReadWrite)?)
}

/// Anonymous shared memory of `bytes` bytes that takes memory only where it is written to.
pub(super) fn anonymous(name: &str, bytes: u64) -> Result<SharedMemory> {
    let fail = |error: rustix::io::Errno| Error::os("create memory", Path::new(name))(error.into());
    let file = memfd_create(name, MemfdFlags::CLOEXEC).map_err(fail)?;
    ftruncate(&file, bytes).map_err(fail)?;
    Ok(SharedMemory::attach_fd(file, Access::ReadWrite)?)
}

/// Another descriptor of the same memory, opened for reading only: whoever it is passed to cannot
/// write, nor hold any lock of ours.
pub(super) fn read_only(memory: &SharedMemory) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.fd().as_raw_fd()));
    let file = File::open(&path).map_err(Error::os("open anew", &path))?;
    Ok(file.into())
}
