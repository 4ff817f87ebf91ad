// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! GPUs, RDMA devices, drives, and the libraries that drive them, as the file system shows them.
//!
//! Opens no device and loads no library: a probe must not wake or disturb anything.

use std::path::Path;

use pegaflow_mem::topology::{PciDevice, PciDistance, PciKind, Topology};

use super::facts::{field, names, number, read};

/// A GPU on the PCI bus.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Gpu {
    /// PCI address: `0000:1b:00.0`.
    pub pci: String,
    /// Model, if the driver is loaded.
    pub model: Option<String>,
    /// NUMA node it is attached to.
    pub numa_node: Option<u32>,
    /// Whether this user can see its device file.
    pub device_file: bool,
    /// Network cards that share a PCI switch or root with it, all equally near.
    pub near: Vec<String>,
}

/// An RDMA device.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Rdma {
    /// Its name: `mlx5_0`.
    pub name: String,
    /// `InfiniBand` or `Ethernet` (RoCE).
    pub link: String,
    /// State of its first port: `ACTIVE`, `DOWN`...
    pub state: String,
    /// Rate of its first port as the kernel writes it: `400 Gb/sec (4X NDR)`.
    pub rate: String,
    /// NUMA node it is attached to.
    pub numa_node: Option<u32>,
}

/// A solid-state drive.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Drive {
    /// Its name below `/dev`.
    pub name: String,
    /// Model.
    pub model: String,
    /// Size.
    pub bytes: u64,
    /// NUMA node it is attached to.
    pub numa_node: Option<u32>,
}

const VENDOR_NVIDIA: u16 = 0x10de;

pub(super) fn gpus(root: &Path, topology: &Topology) -> Vec<Gpu> {
    let nvidia = |d: &&PciDevice| d.kind == PciKind::Gpu && d.vendor == VENDOR_NVIDIA;
    topology
        .devices
        .iter()
        .filter(nvidia)
        .map(|device| gpu(root, topology, device))
        .collect()
}

fn gpu(root: &Path, topology: &Topology, device: &PciDevice) -> Gpu {
    let pci = device.address.clone();
    let information = read(root, &format!("proc/driver/nvidia/gpus/{pci}/information"));
    let text = |name| Some(field(&information, name)).filter(|t| !t.is_empty());
    let minor = text("Device Minor");
    let nearest = topology.nearest(device, PciKind::Nic);
    let distance = nearest.first().map(|(distance, _)| *distance);
    let near = nearest
        .iter()
        .take_while(|(d, _)| Some(*d) == distance && *d <= PciDistance::Root);
    Gpu {
        model: text("Model"),
        numa_node: device.node,
        device_file: minor.is_some_and(|n| root.join(format!("dev/nvidia{n}")).exists()),
        near: near.flat_map(|(_, nic)| nic.names.clone()).collect(),
        pci,
    }
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  ...` gives `535.129.03`.
pub(super) fn nvidia_driver(root: &Path) -> Option<String> {
    let text = read(root, "proc/driver/nvidia/version");
    let line = text.lines().find(|l| l.starts_with("NVRM version"))?;
    let looks = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    line.split_whitespace().find(looks).map(str::to_owned)
}

pub(super) fn rdma(root: &Path) -> Vec<Rdma> {
    let base = "sys/class/infiniband";
    let device = |name: String| {
        let port = names(root, &format!("{base}/{name}/ports"))
            .into_iter()
            .next()
            .unwrap_or_default();
        let get = |file: &str| {
            read(root, &format!("{base}/{name}/ports/{port}/{file}"))
                .trim()
                .to_owned()
        };
        Rdma {
            link: get("link_layer"),
            // The file reads `4: ACTIVE`.
            state: get("state")
                .rsplit(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            rate: get("rate"),
            numa_node: numa_node(root, &format!("{base}/{name}/device/numa_node")),
            name,
        }
    };
    names(root, base).into_iter().map(device).collect()
}

/// Bytes of the sectors in which `/sys/block/*/size` counts, whatever the drive's own are.
const SECTOR_BYTES: u64 = 512;

pub(super) fn drives(root: &Path) -> Vec<Drive> {
    let base = "sys/block";
    let real = |name: &String| {
        ["loop", "ram", "zram", "dm-", "md", "sr"]
            .iter()
            .all(|p| !name.starts_with(p))
    };
    let solid = |name: &String| number(root, &format!("{base}/{name}/queue/rotational")) == Some(0);
    let drive = |name: String| {
        let dir = format!("{base}/{name}");
        let model = read(root, &format!("{dir}/device/model")).trim().to_owned();
        let sectors: u64 = number(root, &format!("{dir}/size")).unwrap_or(0);
        let numa_node = numa_node(root, &format!("{dir}/device/numa_node"));
        Drive {
            name,
            model,
            bytes: sectors.saturating_mul(SECTOR_BYTES),
            numa_node,
        }
    };
    let drives = names(root, base)
        .into_iter()
        .filter(real)
        .filter(solid)
        .map(drive);
    drives.filter(|d| d.bytes > 0).collect()
}

/// The kernel writes -1 where it does not know.
fn numa_node(root: &Path, path: &str) -> Option<u32> {
    number::<i64>(root, path).and_then(|n| u32::try_from(n).ok())
}

/// Directories in which the dynamic loader looks.
pub(super) fn library_dirs(root: &Path) -> Vec<String> {
    let mut dirs: Vec<String> = vec![];
    if root == Path::new("/") {
        let paths = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        dirs.extend(
            paths
                .split(':')
                .filter(|p| !p.is_empty())
                .map(str::to_owned),
        );
    }
    for conf in names(root, "etc/ld.so.conf.d") {
        let text = read(root, &format!("etc/ld.so.conf.d/{conf}"));
        let lines = text.lines().map(str::trim).filter(|l| l.starts_with('/'));
        dirs.extend(lines.map(str::to_owned));
    }
    let arch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    dirs.extend([
        arch,
        "/usr/lib64".into(),
        "/usr/lib".into(),
        "/usr/local/cuda/compat".into(),
    ]);
    dirs
}

/// Where library `name` lies, if in one of `dirs`.
pub(super) fn library(root: &Path, dirs: &[String], name: &str) -> Option<String> {
    let paths = dirs
        .iter()
        .map(|dir| format!("{}/{name}", dir.trim_end_matches('/')));
    paths
        .into_iter()
        .find(|path| root.join(path.trim_start_matches('/')).exists())
}
