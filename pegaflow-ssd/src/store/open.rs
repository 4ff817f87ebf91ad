// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! From paths to a running store.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::lane::{self, Inbox, Lane, Member};
use super::{SsdStore, write};
use crate::clock::unix_s;
use crate::disk::{self, Guard};
use crate::error::{Error, IoKind, Result};
use crate::format::{FORMAT_VERSION, Found, Superblock};
use crate::log::{Effect, Geometry, Log, LogSettings, SEGMENTS_MIN};
use crate::metrics::Counters;
use crate::recover::{RecoveryReport, recover};
use crate::settings::{Durability, Settings};
use crate::sys::{Arena, BlockFile, Buf, MemoryFile, OpenOptions, PAGE, SystemFile};
use crate::transfer::{Piece, WhenDone};
use crate::{admission, reclaim};

/// Staging buffers of a device.
const STAGING_BUFS: usize = 12;
/// A killed process keeps its lock until the kernel has cleaned up after it.
const LOCK_WAIT_MS: u64 = 500;

/// One device of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// A block device, or a regular file.
    pub path: PathBuf,
    /// Bytes to make the file of, if it does not exist yet. A block device has the size it has.
    pub create_bytes: Option<u64>,
}

impl Device {
    /// A file that is made with so many bytes if it does not exist.
    pub fn file(path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            path: path.into(),
            create_bytes: Some(bytes),
        }
    }

    /// A device or file that exists.
    pub fn existing(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create_bytes: None,
        }
    }
}

impl SsdStore {
    /// Opens the store on these devices, or makes one if they are blank. The order of the devices does not matter.
    ///
    /// # Errors
    /// `Invalid` settings; `BadPath`: missing, a directory, too small, or holding something else; `InUse` by another store;
    /// `Version`: made by a version with another format; `Io`.
    pub fn open(settings: Settings, devices: &[Device]) -> Result<Self> {
        settings.validate()?;
        let mut files: Vec<(PathBuf, Arc<dyn BlockFile>)> = Vec::new();
        for device in devices {
            let options = OpenOptions {
                direct: settings.io.direct,
                create_bytes: device.create_bytes,
                lock_wait_ms: LOCK_WAIT_MS,
                ..OpenOptions::new(&device.path)
            };
            files.push((device.path.clone(), Arc::new(SystemFile::open(&options)?)));
        }
        Self::over(settings, files)
    }

    /// A store that lives as long as the process, in so many bytes of memory.
    ///
    /// # Errors
    /// `Invalid` settings; `BadPath` if that is too small.
    pub fn in_memory(settings: Settings, bytes: u64) -> Result<Self> {
        Self::over(
            settings,
            vec![("memory".into(), Arc::new(MemoryFile::new(bytes)))],
        )
    }

    /// A store over anything that has bytes at offsets. The paths are for messages.
    ///
    /// # Errors
    /// As [`SsdStore::open`].
    pub fn over(settings: Settings, files: Vec<(PathBuf, Arc<dyn BlockFile>)>) -> Result<Self> {
        settings.validate()?;
        let mut opened = Vec::new();
        for (path, file) in files {
            opened.push(Opened::new(path, file, &settings)?);
        }
        let blocks = superblocks(&settings, &opened)?;
        let counters = Arc::new(Counters::default());
        let (mut members, mut threads, mut reports) = (Vec::new(), Vec::new(), Vec::new());
        for (device, found) in opened.into_iter().zip(blocks) {
            let (log, report) = device.recover(&settings, found)?;
            let (member, first) = device.into_member(&settings, log, counters.clone())?;
            let theirs = member.clone();
            let thread = thread::Builder::new().name("ssd-lane".into());
            let thread = thread.spawn(move || lane::run(&theirs, first));
            threads.push(thread.map_err(|e| Error::Unsupported(format!("a thread: {e}")))?);
            members.push(member);
            reports.push(report);
        }
        let sizes = members
            .iter()
            .map(|m| m.log.lock().geometry().block_bytes_max());
        let block_bytes_max = sizes.min().unwrap_or(0);
        Ok(Self {
            block_bytes_max,
            members,
            threads,
            admission: Mutex::new(admission::policy(settings.admission)),
            counters,
            choosing: Mutex::new(()),
            next_put: AtomicU64::new(1),
            reports,
            settings,
        })
    }
}

/// What a superblock decides about a device.
#[derive(Debug, Clone, Copy)]
struct Plan {
    block: Superblock,
    /// Segments it had when it was last opened; nothing: it is new.
    before: Option<u32>,
}

/// A device before its log is known.
struct Opened {
    path: PathBuf,
    guard: Guard,
    bytes: u64,
}

impl Opened {
    fn new(path: PathBuf, file: Arc<dyn BlockFile>, settings: &Settings) -> Result<Self> {
        let bytes = file.bytes();
        let guard = Guard::new(disk::open(file, &settings.io)?, settings.io.deadline_ms);
        Ok(Self { path, guard, bytes })
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadPath {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    /// The first page, or its copy in the second.
    fn superblock(&self) -> Result<(Found, bool)> {
        if self.bytes < 2 * PAGE as u64 {
            return Ok((Found::Nothing, true));
        }
        let pages = read_many(&self.guard, &[(0, PAGE), (PAGE as u64, PAGE)]);
        let blank = pages.iter().flatten().flatten().all(|b| *b == 0);
        if pages.iter().all(Option::is_none) {
            let (kind, at, bytes, errno) = (IoKind::Read, 0, PAGE as u64, libc::EIO);
            return Err(Error::Io {
                kind,
                at,
                bytes,
                errno,
            });
        }
        let found = pages.iter().flatten().map(|p| Superblock::decode(p));
        Ok((
            found
                .reduce(|a, b| if a == Found::Nothing { b } else { a })
                .unwrap_or(Found::Nothing),
            blank,
        ))
    }

    fn recover(&self, settings: &Settings, plan: Plan) -> Result<(Log, RecoveryReport)> {
        let block = plan.block;
        let geometry = Geometry {
            store: block.store,
            segment_bytes: block.segment_bytes,
            segments: block.segments,
        };
        let before = plan.before.unwrap_or(0);
        // Segments that were not part of the store until now may hold what it once wrote there.
        let fresh = before..block.segments;
        let wipe = fresh
            .clone()
            .flat_map(|s| [geometry.at(s, 0), geometry.at(s, geometry.pages() - 1)]);
        write_all(&self.guard, wipe.map(|at| (at, vec![0; PAGE])).collect())?;
        let page = block.encode();
        if plan.before != Some(block.segments) {
            write_all(&self.guard, vec![(0, page.clone()), (PAGE as u64, page)])?;
        }
        let log_settings = LogSettings {
            flushed: settings.durability == Durability::Flushed,
            batch_bytes_max: settings.batch_bytes_max,
            second_chance_percent_max: settings.second_chance_percent_max,
            pinned_percent_max: settings.pinned_percent_max,
        };
        let policy = reclaim::policy(settings.reclaim);
        let mut read = |wishes: &[(u64, usize)]| read_many(&self.guard, wishes);
        let (log, mut report) = recover(geometry, log_settings, policy, random(), &mut read);
        if plan.before.is_some() {
            report.missing_segments = before.saturating_sub(block.segments);
            report.added_segments = block.segments.saturating_sub(before);
        }
        Ok((log, report))
    }

    fn into_member(
        self,
        settings: &Settings,
        mut log: Log,
        counters: Arc<Counters>,
    ) -> Result<(Arc<Member>, Vec<Effect>)> {
        let mut first = Vec::new();
        log.start(unix_s(), &mut first);
        let staging = Arena::new(write::STAGING_BYTES, STAGING_BUFS);
        let staging = staging.map_err(|e| Error::Unsupported(format!("staging memory: {e}")))?;
        self.guard.disk().register(&staging.region());
        let member = Member {
            log: Mutex::new(log),
            guard: self.guard,
            inbox: Mutex::new(Inbox::default()),
            lane: Mutex::new(Lane::default()),
            wake: Condvar::new(),
            counters,
            staging,
            copy_below_bytes: settings.copy_below_bytes,
            write_inflight_bytes_max: settings.io.write_inflight_bytes_max,
        };
        Ok((Arc::new(member), first))
    }
}

// One superblock for each device: what is there, or what is to be made.
fn superblocks(settings: &Settings, devices: &[Opened]) -> Result<Vec<Plan>> {
    if devices.is_empty() {
        return Err(Error::Invalid("a store needs at least one device".into()));
    }
    let mut found = Vec::new();
    for device in devices {
        match device.superblock()? {
            _ if settings.format => {}
            (Found::Store(block), _) => found.push(block),
            (Found::OtherVersion(version), _) => {
                let (path, supported) = (device.path.clone(), FORMAT_VERSION);
                return Err(Error::Version {
                    path,
                    found: version,
                    supported,
                });
            }
            (Found::Nothing, true) => {}
            (Found::Nothing, false) => {
                let reason = "holds something that is not a store; `format` overwrites it";
                return Err(device.bad(reason));
            }
        }
    }
    match found.is_empty() {
        true => new_store(settings, devices),
        false => known_store(devices, &found),
    }
}

fn new_store(settings: &Settings, devices: &[Opened]) -> Result<Vec<Plan>> {
    let store = random();
    let plan = |(i, device): (usize, &Opened)| {
        let segment_bytes = settings.segment_bytes;
        let segments = Superblock::segments_on(device.bytes, segment_bytes);
        enough(device, segments, segment_bytes)?;
        let (member, members) = (i as u32, devices.len() as u32);
        let block = Superblock {
            store,
            segment_bytes,
            segments,
            member,
            members,
        };
        Ok(Plan {
            block,
            before: None,
        })
    };
    devices.iter().enumerate().map(plan).collect()
}

fn known_store(devices: &[Opened], found: &[Superblock]) -> Result<Vec<Plan>> {
    let first = found[0];
    let mut seen: Vec<u32> = found.iter().map(|b| b.member).collect();
    seen.sort_unstable();
    seen.dedup();
    let whole = found.len() == devices.len()
        && found
            .iter()
            .all(|b| b.store == first.store && b.members == first.members)
        && seen.len() == first.members as usize;
    if !whole {
        let reason = format!(
            "{} devices given, of which {} belong to one store of {}",
            devices.len(),
            seen.len(),
            first.members
        );
        return Err(Error::Invalid(reason));
    }
    let plan = |(device, block): (&Opened, &Superblock)| {
        let segments = Superblock::segments_on(device.bytes, block.segment_bytes);
        enough(device, segments, block.segment_bytes)?;
        Ok(Plan {
            block: Superblock { segments, ..*block },
            before: Some(block.segments),
        })
    };
    devices.iter().zip(found).map(plan).collect()
}

fn enough(device: &Opened, segments: u32, segment_bytes: u64) -> Result<()> {
    if segments >= SEGMENTS_MIN {
        return Ok(());
    }
    let need = crate::format::SEGMENTS_AT + u64::from(SEGMENTS_MIN) * segment_bytes;
    Err(device.bad(format!(
        "too small: {} bytes, at least {need} are needed with segment_bytes = {segment_bytes}",
        device.bytes
    )))
}

fn random() -> u64 {
    // Keys of the standard library's hash maps come from the system's random numbers.
    RandomState::new().hash_one(std::process::id())
}

/// Reads places side by side; nothing where the device failed.
fn read_many(guard: &Guard, wishes: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
    let (tell, told) = mpsc::channel();
    let parts = wishes.iter().enumerate().map(|(i, (at, bytes))| {
        let tell = tell.clone();
        let done: WhenDone = Box::new(move |f| {
            let piece = f.pieces.into_iter().next().filter(|_| f.result.is_ok());
            let _ = tell.send((i, piece.map(|p| p.buf.to_vec())));
        });
        (
            IoKind::Read,
            *at,
            vec![Piece {
                buf: Buf::new(*bytes),
                bytes: *bytes,
            }],
            done,
        )
    });
    guard.submit(parts.collect());
    drop(tell);
    let mut out = vec![None; wishes.len()];
    for _ in wishes {
        match wait(guard, &told) {
            Some((i, bytes)) => out[i] = bytes,
            None => break,
        }
    }
    out
}

// Waits for an answer, and looks at deadlines meanwhile.
fn wait<T>(guard: &Guard, told: &mpsc::Receiver<T>) -> Option<T> {
    loop {
        match told.recv_timeout(std::time::Duration::from_millis(100)) {
            Ok(answer) => return Some(answer),
            Err(mpsc::RecvTimeoutError::Timeout) => guard.expire(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Writes pages and makes them durable.
fn write_all(guard: &Guard, pages: Vec<(u64, Vec<u8>)>) -> Result<()> {
    if pages.is_empty() {
        return Ok(());
    }
    for chunk in pages.chunks(1024) {
        let write = |(at, bytes): &(u64, Vec<u8>)| {
            (IoKind::Write, *at, vec![Piece::whole(Buf::copy_of(bytes))])
        };
        all(guard, chunk.iter().map(write).collect())?;
    }
    all(guard, vec![(IoKind::Flush, 0, Vec::new())])
}

fn all(guard: &Guard, transfers: Vec<(IoKind, u64, Vec<Piece>)>) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let n = transfers.len();
    let parts = transfers.into_iter().map(|(kind, at, pieces)| {
        let tell = tell.clone();
        let done: WhenDone = Box::new(move |f| drop(tell.send(f.result)));
        (kind, at, pieces, done)
    });
    guard.submit(parts.collect());
    (0..n).try_for_each(|_| wait(guard, &told).unwrap_or(Err(Error::Closed)))
}

/// What a device says about itself, without opening the store: segment size, segments, place among the store's devices.
///
/// # Errors
/// `BadPath` if it is no store, `Version` if it is one of another format.
pub fn inspect(path: &Path) -> Result<(u64, u32, u32, u32)> {
    let file = SystemFile::open(&OpenOptions {
        direct: false,
        read_only: true,
        ..OpenOptions::new(path)
    })?;
    let mut page = vec![0; PAGE];
    for at in [0, PAGE as u64] {
        let read = file.read_at(&mut page, at);
        match read.map(|_| Superblock::decode(&page)) {
            Ok(Found::Store(b)) => return Ok((b.segment_bytes, b.segments, b.member, b.members)),
            Ok(Found::OtherVersion(found)) => {
                let (path, supported) = (path.into(), FORMAT_VERSION);
                return Err(Error::Version {
                    path,
                    found,
                    supported,
                });
            }
            _ => {}
        }
    }
    Err(Error::BadPath {
        path: path.into(),
        reason: "is not a store".into(),
    })
}
