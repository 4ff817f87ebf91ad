// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Whether a file system has room for the pool.
//!
//! A pool's file is sparse: without this look, a pool larger than `/dev/shm` starts well and kills
//! whoever touches the page that is not there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::layers::Layers;
use super::settings::Settings;
use crate::describe::format_bytes;

/// Left free beside the pool: the control file, and others.
const MARGIN_BYTES: u64 = 16 << 20;

/// Notes in `layers` that the pool does not fit, if so.
pub(super) fn check(settings: &Settings, layers: &mut Layers) {
    let dir = settings.pool.dir.as_ref();
    let Some(dir) = dir.and_then(|dir| std::path::absolute(dir).ok()) else {
        return;
    };
    // The directory may not be there yet; it will be on the file system of its parents.
    let Some(there) = dir.ancestors().find(|dir| dir.is_dir()) else {
        return;
    };
    let Some(free) = free_bytes(there) else {
        return;
    };
    if let Some(what) = shortage(&dir, settings.pool.bytes, free, held_bytes(&dir)) {
        let fix = "lower `pool.bytes`, set `pool.dir` to a file system with room, or enlarge it \
                   (sudo mount -o remount,size=64G /dev/shm; docker run --shm-size=64g ...)";
        layers.reject("pool.bytes", what, fix);
    }
}

/// Why `bytes` do not fit where `free` are free and `held` are the pool's already.
fn shortage(dir: &Path, bytes: u64, free: u64, held: u64) -> Option<String> {
    let room = free.saturating_add(held);
    let wanted = bytes.saturating_add(MARGIN_BYTES);
    (wanted > room).then(|| {
        let (bytes, room) = (format_bytes(bytes), format_bytes(room & !((1 << 20) - 1)));
        format!(
            "the pool wants {bytes}, the file system of {} has room for {room}",
            dir.display()
        )
    })
}

/// Free for this user; `None` where the file system does not say, or hands out reserved huge pages
/// (those are checked when the pool is made).
fn free_bytes(dir: &Path) -> Option<u64> {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let stat = rustix::fs::statfs(dir).ok()?;
    let kind = u64::try_from(stat.f_type).ok()?;
    let unit = u64::try_from(stat.f_bsize).ok()?;
    (kind != HUGETLBFS && stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(unit))
}

/// What the files of an earlier run take already.
fn held_bytes(dir: &Path) -> u64 {
    const SECTOR_BYTES: u64 = 512;
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.blocks() * SECTOR_BYTES))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_must_fit() {
        let dir = Path::new("/dev/shm/x");
        assert_eq!(shortage(dir, 1 << 30, 2 << 30, 0), None);
        assert_eq!(
            shortage(dir, 2 << 30, 1 << 30, 2 << 30),
            None,
            "it is there already"
        );
        let what = shortage(dir, 4 << 30, (64 << 20) + 5, 0).expect("too small");
        assert_eq!(
            what,
            "the pool wants 4GiB, the file system of /dev/shm/x has room for 64MiB"
        );
    }

    #[test]
    fn files_of_an_earlier_run_count() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(held_bytes(dir.path()), 0);
        std::fs::write(dir.path().join("pool0.data"), vec![1; 8192]).expect("write");
        assert!(held_bytes(dir.path()) >= 8192);
        assert!(free_bytes(dir.path()).is_some());
    }
}
