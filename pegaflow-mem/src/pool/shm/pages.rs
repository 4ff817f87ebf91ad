// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which pages a pool gets: asked for, possible here, and what to do when they differ.

use crate::{Error, Result};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Which pages a pool should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum HugePages {
    /// The largest that can be had without failing: 2 MiB, transparent, or none.
    #[default]
    #[cfg_attr(feature = "serde", serde(rename = "auto"))]
    Auto,
    /// The base pages of the machine (4 KiB).
    #[cfg_attr(feature = "serde", serde(rename = "none"))]
    None,
    /// Base pages that the kernel may join to huge ones.
    #[cfg_attr(feature = "serde", serde(rename = "transparent"))]
    Transparent,
    /// Reserved pages of 2 MiB, or an error.
    #[cfg_attr(feature = "serde", serde(rename = "2MiB"))]
    Size2MiB,
    /// Reserved pages of 1 GiB, or an error.
    #[cfg_attr(feature = "serde", serde(rename = "1GiB"))]
    Size1GiB,
}

const NAMES: [(HugePages, &str); 5] = [
    (HugePages::Auto, "auto"),
    (HugePages::None, "none"),
    (HugePages::Transparent, "transparent"),
    (HugePages::Size2MiB, "2MiB"),
    (HugePages::Size1GiB, "1GiB"),
];

impl HugePages {
    fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(kind, _)| *kind == self)
            .expect("every kind has a name")
            .1
    }

    /// Bytes of a reserved page of this kind; `None` for kinds without reservation.
    pub fn reserved_bytes(self) -> Option<u64> {
        match self {
            HugePages::Size2MiB => Some(2 << 20),
            HugePages::Size1GiB => Some(1 << 30),
            _ => None,
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HugePages {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = NAMES
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(text));
        found.map(|(kind, _)| *kind).ok_or(Error::Layout {
            what: "kind of huge pages",
            reason: "it is one of auto, none, transparent, 2MiB, 1GiB",
        })
    }
}

/// What the kernel lets shared memory do with transparent huge pages, as `/sys` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SharedThp {
    /// On for all, or for those who ask.
    Possible,
    /// Switched off, or unknown.
    Off,
}

pub(super) fn shared_thp(sys: &Path) -> SharedThp {
    let file = sys.join("kernel/mm/transparent_hugepage/shmem_enabled");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let chosen = text
        .split_whitespace()
        .find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("always" | "within_size" | "advise" | "force") => SharedThp::Possible,
        _ => SharedThp::Off,
    }
}

/// Huge pages of `page_bytes` that are free and not promised to anyone.
pub(super) fn reserved_free(sys: &Path, page_bytes: u64) -> u64 {
    let dir = sys.join(format!(
        "kernel/mm/hugepages/hugepages-{}kB",
        page_bytes >> 10
    ));
    let read = |name| -> Option<u64> {
        std::fs::read_to_string(dir.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    read("free_hugepages")
        .unwrap_or(0)
        .saturating_sub(read("resv_hugepages").unwrap_or(0))
}

/// The error for a pool whose reserved pages are not there, with the way to get them.
pub(super) fn missing_reserved(sys: &Path, kind: HugePages, bytes: u64) -> Error {
    let page = kind.reserved_bytes().expect("called for reserved kinds");
    let (want, free) = (bytes.div_ceil(page), reserved_free(sys, page));
    let file = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
        page >> 10
    );
    let help = if page == 1 << 30 {
        format!(
            "boot with `hugepagesz=1G hugepages={want}` (or, early after boot, write to {file}), or choose `2MiB` or `auto`"
        )
    } else {
        format!("as root: echo {want} > {file} (raise what others need on top), or choose `auto`")
    };
    let reason = format!("{want} pages needed, {free} free");
    Error::HugePages {
        wanted: kind.name(),
        bytes,
        reason,
        help,
    }
}

/// The error for a pool that asked for transparent pages where the kernel gives none.
pub(super) fn missing_transparent(bytes: u64, reason: &str) -> Error {
    Error::HugePages {
        wanted: HugePages::Transparent.name(),
        bytes,
        reason: reason.to_owned(),
        help: "as root: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or choose `auto`"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (kind, name) in NAMES {
            assert_eq!(name.parse::<HugePages>().expect("a name"), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!(
            "2mib".parse::<HugePages>().expect("any case"),
            HugePages::Size2MiB
        );
        assert!("4MiB".parse::<HugePages>().is_err());
    }

    #[test]
    fn messages_say_what_is_missing_and_how_to_get_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pages = dir.path().join("kernel/mm/hugepages/hugepages-2048kB");
        std::fs::create_dir_all(&pages).expect("writable");
        std::fs::write(pages.join("free_hugepages"), "7\n").expect("writable");
        std::fs::write(pages.join("resv_hugepages"), "2\n").expect("writable");
        assert_eq!(reserved_free(dir.path(), 2 << 20), 5);
        assert_eq!(reserved_free(dir.path(), 1 << 30), 0);
        let text = missing_reserved(dir.path(), HugePages::Size2MiB, (20 << 20) + 1).to_string();
        assert!(text.contains("11 pages needed, 5 free"), "{text}");
        assert!(text.contains("echo 11 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"));
        let text = missing_reserved(dir.path(), HugePages::Size1GiB, 1).to_string();
        assert!(text.contains("hugepagesz=1G hugepages=1"), "{text}");
    }

    #[test]
    fn transparent_pages_follow_the_kernels_switch() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("kernel/mm/transparent_hugepage");
        std::fs::create_dir_all(&file).expect("writable");
        assert_eq!(shared_thp(dir.path()), SharedThp::Off, "no such file");
        for (text, want) in [
            (
                "always within_size advise [never] deny force",
                SharedThp::Off,
            ),
            (
                "always within_size [advise] never deny force",
                SharedThp::Possible,
            ),
            (
                "[always] within_size advise never deny force",
                SharedThp::Possible,
            ),
            (
                "always within_size advise never [deny] force",
                SharedThp::Off,
            ),
            ("garbage", SharedThp::Off),
        ] {
            std::fs::write(file.join("shmem_enabled"), text).expect("writable");
            assert_eq!(shared_thp(dir.path()), want, "{text}");
        }
    }
}
