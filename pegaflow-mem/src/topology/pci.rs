// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! PCI devices that move KV: what they are, and how far apart.

use super::{names, text};
use std::fs;
use std::path::Path;

/// What a PCI device is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PciKind {
    /// A display or 3D controller, or a processing accelerator.
    Gpu,
    /// A network or InfiniBand card.
    Nic,
    /// An NVMe drive.
    Nvme,
}

/// One PCI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciDevice {
    /// Domain, bus, device, function: `0000:18:00.0`.
    pub address: String,
    /// What it is.
    pub kind: PciKind,
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
    /// Its NUMA node, where the firmware says.
    pub node: Option<u32>,
    /// The root and the bridges above it, from the root down.
    pub path: Vec<String>,
    /// Names the system knows it by: `eth0`, `mlx5_0`, `nvme0`.
    pub names: Vec<String>,
}

/// How far apart two devices are; smaller is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PciDistance {
    /// The same bridge or switch: bytes between them need not touch the CPU.
    Switch,
    /// The same root complex.
    Root,
    /// The same NUMA node, or not known to be on different ones.
    Node,
    /// Different NUMA nodes.
    Across,
}

impl PciDevice {
    /// How far `other` is.
    pub fn distance(&self, other: &PciDevice) -> PciDistance {
        let common = self
            .path
            .iter()
            .zip(&other.path)
            .take_while(|(a, b)| a == b)
            .count();
        match common {
            // The root itself is the first step of every path.
            2.. => PciDistance::Switch,
            1 => PciDistance::Root,
            0 if self.node.is_some() && other.node.is_some() && self.node != other.node => {
                PciDistance::Across
            }
            0 => PciDistance::Node,
        }
    }
}

pub(super) fn read(sys: &Path) -> Vec<PciDevice> {
    let dir = sys.join("bus/pci/devices");
    let mut devices: Vec<PciDevice> = names(&dir)
        .into_iter()
        .filter_map(|address| read_device(&dir, address))
        .collect();
    devices.sort_by(|a, b| a.address.cmp(&b.address));
    devices
}

fn read_device(dir: &Path, address: String) -> Option<PciDevice> {
    let at = dir.join(&address);
    let kind = match hex(&at, "class")? >> 8 {
        0x0300 | 0x0302 | 0x1200 => PciKind::Gpu,
        0x0200 | 0x0207 => PciKind::Nic,
        0x0108 => PciKind::Nvme,
        _ => return None,
    };
    let real = fs::canonicalize(&at).ok();
    let steps = real.as_deref().into_iter().flat_map(Path::components);
    let mut path: Vec<String> = steps
        .filter_map(|c| c.as_os_str().to_str())
        .skip_while(|name| !name.starts_with("pci"))
        .map(str::to_owned)
        .collect();
    path.pop();
    let mut names: Vec<String> = ["net", "infiniband", "nvme"]
        .iter()
        .flat_map(|class| names(&at.join(class)))
        .collect();
    names.sort();
    Some(PciDevice {
        kind,
        vendor: hex(&at, "vendor")? as u16,
        device: hex(&at, "device")? as u16,
        // -1 where the firmware does not say.
        node: text(&at.join("numa_node")).parse().ok(),
        path,
        names,
        address,
    })
}

fn hex(at: &Path, file: &str) -> Option<u32> {
    u32::from_str_radix(text(&at.join(file)).strip_prefix("0x")?, 16).ok()
}
