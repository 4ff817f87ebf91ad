// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Making and finding shared memory: the file, its pages, its NUMA node, its first touch.

use super::pages::{self, HugePages, SharedThp};
use super::sys::{self, Mapping};
use super::{Access, PageKind, SharedMemory};
use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the bytes live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// An anonymous file: gone with its last holder. The text is its name in `/proc`.
    Memfd(String),
    /// A new file with this path; it outlives this process. On hugetlbfs it has huge pages.
    File(PathBuf),
}

/// What to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Where the bytes live.
    pub backing: Backing,
    /// How many bytes; rounded up to whole pages of the kind that is used.
    pub bytes: u64,
    /// Which pages.
    pub pages: HugePages,
    /// The NUMA node to take memory from, if it has any.
    pub node: Option<u32>,
    /// Threads that touch all memory before `create` returns. 0: pages come at first use, which is slower then, and on a file
    /// system that fills up meanwhile ends the process by a signal.
    pub touch_threads: u32,
}

impl PoolSpec {
    /// An anonymous pool of `bytes`, best pages, any node, touched at first use.
    pub fn memfd(name: &str, bytes: u64) -> Self {
        Self {
            backing: Backing::Memfd(name.to_owned()),
            ..Self::file("", bytes)
        }
    }

    /// A pool in a new file, best pages, any node, touched at first use.
    pub fn file(path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            backing: Backing::File(path.into()),
            bytes,
            pages: HugePages::Auto,
            node: None,
            touch_threads: 0,
        }
    }
}

const BASE_PAGE: u64 = 4096;

pub(super) fn create(spec: &PoolSpec, sys_root: &Path) -> Result<SharedMemory> {
    if spec.bytes == 0 || spec.bytes > isize::MAX as u64 / 2 {
        return Err(Error::PlaceSize {
            bytes: spec.bytes,
            bytes_max: isize::MAX as u64 / 2,
        });
    }
    let mut memory = match &spec.backing {
        Backing::Memfd(name) => create_memfd(name, spec, sys_root)?,
        Backing::File(path) => create_file(path, spec, sys_root).inspect_err(|e| {
            // Whatever failed after the file was made must not leave it behind; one that was there before is not ours.
            let ours = !matches!(
                e,
                Error::Os {
                    op: "create" | "open",
                    ..
                }
            );
            if ours {
                let _ = std::fs::remove_file(path);
            }
        })?,
    };
    let finished = finish(&mut memory, spec);
    if let (Err(_), Some(path)) = (&finished, memory.path()) {
        let _ = std::fs::remove_file(path);
    }
    finished.map(|()| memory)
}

fn create_memfd(name: &str, spec: &PoolSpec, sys_root: &Path) -> Result<SharedMemory> {
    let mut notes = Vec::new();
    let reserved = match spec.pages {
        HugePages::Auto => Some(HugePages::Size2MiB),
        kind => kind.reserved_bytes().map(|_| kind),
    };
    if let Some(kind) = reserved {
        match memfd_reserved(name, spec.bytes, kind) {
            Ok((fd, map)) => {
                let page = kind.reserved_bytes().expect("a reserved kind");
                return Ok(shared(fd, map, None, PageKind::Huge(page), notes));
            }
            Err(_) if spec.pages == HugePages::Auto => {
                let missing = pages::missing_reserved(sys_root, kind, spec.bytes);
                notes.push(missing.to_string());
            }
            Err(_) => return Err(pages::missing_reserved(sys_root, kind, spec.bytes)),
        }
    }
    let fd = sys::memfd(name, None)?;
    let map = size_and_map(&fd, spec.bytes.next_multiple_of(BASE_PAGE))?;
    sys::seal(fd.as_fd())?;
    let kind = transparent(&map, spec, sys_root, &mut notes)?;
    Ok(shared(fd, map, None, kind, notes))
}

fn memfd_reserved(name: &str, bytes: u64, kind: HugePages) -> Result<(OwnedFd, Mapping)> {
    let page = kind.reserved_bytes().expect("a reserved kind");
    let fd = sys::memfd(name, Some(page.trailing_zeros()))?;
    // Mapping reserves the pages or fails: no signal later.
    let map = size_and_map(&fd, bytes.next_multiple_of(page))?;
    sys::seal(fd.as_fd())?;
    Ok((fd, map))
}

fn create_file(path: &Path, spec: &PoolSpec, sys_root: &Path) -> Result<SharedMemory> {
    let fd = sys::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)?;
    let fs = sys::file_system(fd.as_fd()).map_err(|e| Error::os("statfs", e).at(path))?;
    let mut notes = Vec::new();
    if fs.is_hugetlbfs {
        let kind = PageKind::Huge(fs.block_bytes);
        let wanted = spec.pages.reserved_bytes().unwrap_or(fs.block_bytes);
        if wanted != fs.block_bytes
            || matches!(spec.pages, HugePages::None | HugePages::Transparent)
        {
            let reason = format!(
                "{} is hugetlbfs with pages of {} bytes",
                path.display(),
                fs.block_bytes
            );
            let help = "choose `auto`, or a directory with other pages".to_owned();
            return Err(Error::HugePages {
                wanted: "other",
                bytes: spec.bytes,
                reason,
                help,
            });
        }
        let map = size_and_map(&fd, spec.bytes.next_multiple_of(fs.block_bytes)).map_err(|_| {
            let kind = if fs.block_bytes == 1 << 30 {
                HugePages::Size1GiB
            } else {
                HugePages::Size2MiB
            };
            pages::missing_reserved(sys_root, kind, spec.bytes)
        })?;
        return Ok(shared(fd, map, Some(path), kind, notes));
    }
    if let Some(page) = spec.pages.reserved_bytes() {
        let reason = format!("{} is not on hugetlbfs", path.display());
        let size = if page == 1 << 30 { "1G" } else { "2M" };
        let help = format!(
            "mount -t hugetlbfs -o pagesize={size},mode=1777 none DIR, and put the pool there, or choose `auto`"
        );
        let wanted = if page == 1 << 30 { "1GiB" } else { "2MiB" };
        return Err(Error::HugePages {
            wanted,
            bytes: spec.bytes,
            reason,
            help,
        });
    }
    if fs.available_bytes < spec.bytes {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let help = format!(
            "{} bytes needed, {} available",
            spec.bytes, fs.available_bytes
        );
        return Err(Error::os("reserve", source).at(path).help(help));
    }
    let map = size_and_map(&fd, spec.bytes.next_multiple_of(BASE_PAGE)).map_err(|e| e.at(path))?;
    let kind = if fs.is_memory {
        transparent(&map, spec, sys_root, &mut notes)?
    } else if spec.pages == HugePages::Transparent {
        return Err(pages::missing_transparent(
            spec.bytes,
            "the file is not in memory (tmpfs)",
        ));
    } else {
        notes.push(format!(
            "{} is not in memory (tmpfs): writes will reach a disk",
            path.display()
        ));
        PageKind::Base
    };
    Ok(shared(fd, map, Some(path), kind, notes))
}

/// Asks for transparent pages where wanted; says what came of it.
fn transparent(
    map: &Mapping,
    spec: &PoolSpec,
    sys_root: &Path,
    notes: &mut Vec<String>,
) -> Result<PageKind> {
    if spec.pages == HugePages::None {
        return Ok(PageKind::Base);
    }
    let refused = match pages::shared_thp(sys_root) {
        SharedThp::Off => Some("transparent pages for shared memory are switched off".to_owned()),
        SharedThp::Possible => map
            .advise(0, map.len(), libc::MADV_HUGEPAGE)
            .err()
            .map(|e| e.to_string()),
    };
    let Some(reason) = refused else {
        return Ok(PageKind::Transparent);
    };
    let missing = pages::missing_transparent(spec.bytes, &reason);
    if spec.pages == HugePages::Transparent {
        return Err(missing);
    }
    notes.push(missing.to_string());
    Ok(PageKind::Base)
}

fn size_and_map(fd: &OwnedFd, bytes: u64) -> Result<Mapping> {
    let file = File::from(fd.try_clone().map_err(|e| Error::os("dup", e))?);
    file.set_len(bytes).map_err(|e| Error::os("ftruncate", e))?;
    Mapping::shared(fd.as_fd(), bytes as usize, true).map_err(|e| Error::os("mmap", e))
}

fn shared(
    fd: OwnedFd,
    map: Mapping,
    path: Option<&Path>,
    pages: PageKind,
    notes: Vec<String>,
) -> SharedMemory {
    let path = path.map(Path::to_owned);
    SharedMemory {
        map,
        fd,
        path,
        access: Access::ReadWrite,
        pages,
        notes,
    }
}

fn finish(memory: &mut SharedMemory, spec: &PoolSpec) -> Result<()> {
    no_dump(&memory.map);
    if let Some(node) = spec.node
        && let Err(e) = memory.map.prefer_node(node)
    {
        memory
            .notes
            .push(format!("memory is not bound to NUMA node {node}: {e}"));
    }
    if spec.touch_threads > 0 {
        touch(&memory.map, spec.touch_threads, memory.pages)?;
        if let Some(node) = spec.node.filter(|_| memory.notes.is_empty())
            && let Some(other) = elsewhere(&memory.map, node)
        {
            memory.notes.push(format!(
                "NUMA node {node} had too little memory: a part is on node {other}"
            ));
        }
    }
    Ok(())
}

/// Another node on which a part of the touched mapping lies. The wanted node runs out at some point, so a few looks find it.
fn elsewhere(map: &Mapping, node: u32) -> Option<u32> {
    const LOOKS: usize = 64;
    let at = |look: usize| (map.len() / LOOKS * look).min(map.len() - 1);
    let mut nodes = (0..LOOKS).filter_map(|look| map.node_at(at(look)).ok());
    nodes.find(|found| *found != node)
}

/// Faults all pages in, by several threads. A full file system or missing memory is an error here, not a signal.
fn touch(map: &Mapping, threads: u32, pages: PageKind) -> Result<()> {
    let page = match pages {
        PageKind::Huge(bytes) => bytes,
        _ => 2 << 20,
    };
    let each = (map.len() as u64)
        .div_ceil(threads as u64)
        .next_multiple_of(page);
    let populate = |from: u64| {
        let bytes = each.min(map.len() as u64 - from);
        map.advise(from as usize, bytes as usize, libc::MADV_POPULATE_WRITE)
    };
    std::thread::scope(|scope| {
        let starts = (0..map.len() as u64).step_by(each as usize);
        let running: Vec<_> = starts.map(|from| scope.spawn(move || populate(from))).collect();
        running.into_iter().try_for_each(|t| t.join().expect("populate does not panic"))
    })
    .map_err(|e| {
        let help = "is there enough memory (or room in the file system) for the pool? Linux 5.14 or newer is needed";
        Error::os("touch all pages", e).help(help)
    })
}

/// Pools do not belong into core dumps: they are large, and hold users' data.
fn no_dump(map: &Mapping) {
    let _ = map.advise(0, map.len(), libc::MADV_DONTDUMP);
}

pub(super) fn attach_path(path: &Path, access: Access) -> Result<SharedMemory> {
    let flags = if access == Access::Read {
        libc::O_RDONLY
    } else {
        libc::O_RDWR
    };
    let fd = sys::open(path, flags | libc::O_NONBLOCK)?;
    let file = File::from(fd.try_clone().map_err(|e| Error::os("dup", e))?);
    let meta = file.metadata().map_err(|e| Error::os("stat", e).at(path))?;
    let refuse = |kind: io::ErrorKind, help: &str| {
        Err(Error::os("attach", io::Error::from(kind))
            .at(path)
            .help(help))
    };
    if meta.is_dir() {
        return refuse(
            io::ErrorKind::IsADirectory,
            "the path of a pool file is needed",
        );
    }
    if !meta.is_file() || meta.file_type().is_char_device() {
        return refuse(io::ErrorKind::InvalidInput, "it is not a regular file");
    }
    if meta.uid() != sys::effective_user() {
        return refuse(
            io::ErrorKind::PermissionDenied,
            "the file belongs to another user",
        );
    }
    if meta.mode() & 0o077 != 0 {
        return refuse(
            io::ErrorKind::PermissionDenied,
            "others may open the file: chmod 600",
        );
    }
    attach(fd, Some(path), access)
}

pub(super) fn attach(fd: OwnedFd, path: Option<&Path>, access: Access) -> Result<SharedMemory> {
    let at = |e: Error| match path {
        Some(path) => e.at(path),
        None => e,
    };
    let file = File::from(fd.try_clone().map_err(|e| Error::os("dup", e))?);
    let len = file.metadata().map_err(|e| at(Error::os("stat", e)))?.len();
    if len == 0 {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(at(Error::os("attach", source).help("the memory is empty")));
    }
    let map = Mapping::shared(fd.as_fd(), len as usize, access == Access::ReadWrite)
        .map_err(|e| at(Error::os("mmap", e)))?;
    no_dump(&map);
    let pages = match sys::file_system(fd.as_fd()) {
        Ok(fs) if fs.is_hugetlbfs => PageKind::Huge(fs.block_bytes),
        _ => PageKind::Unknown,
    };
    let path = path.map(Path::to_owned);
    Ok(SharedMemory {
        map,
        fd,
        path,
        access,
        pages,
        notes: Vec::new(),
    })
}
