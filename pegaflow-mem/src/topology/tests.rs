// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

/// A sysfs tree of `path: content` lines; PCI devices are linked from the bus as the kernel does.
fn tree(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bus = dir.path().join("bus/pci/devices");
    fs::create_dir_all(&bus).expect("writable");
    for (path, content) in files {
        let file = dir.path().join(path);
        let parent = file.parent().expect("inside");
        fs::create_dir_all(parent).expect("writable");
        fs::write(&file, content).expect("writable");
        if path.ends_with("/class") {
            let address = parent.file_name().expect("a device");
            symlink(parent, bus.join(address)).expect("writable");
        }
    }
    dir
}

const NODE: &str = "devices/system/node";

fn two_sockets() -> TempDir {
    let gpu = |path: &str, node: &str| {
        let at = |file: &str| format!("devices/{path}/{file}");
        vec![
            (at("class"), "0x030200\n".to_owned()),
            (at("vendor"), "0x10de\n".to_owned()),
            (at("device"), "0x2330\n".to_owned()),
            (at("numa_node"), node.to_owned()),
        ]
    };
    let mut files = gpu("pci0000:15/0000:15:01.0/0000:16:00.0/0000:18:00.0", "0\n");
    files.extend(gpu("pci0000:97/0000:97:01.0/0000:9a:00.0", "1\n"));
    let nic = |path: &str, node: &str, name: &str| {
        let at = |file: &str| format!("devices/{path}/{file}");
        vec![
            (at("class"), "0x020700\n".to_owned()),
            (at("vendor"), "0x15b3\n".to_owned()),
            (at("device"), "0x1021\n".to_owned()),
            (at("numa_node"), node.to_owned()),
            (at(&format!("infiniband/{name}/fw_ver")), "1\n".to_owned()),
        ]
    };
    files.extend(nic(
        "pci0000:15/0000:15:01.0/0000:16:00.0/0000:19:00.0",
        "0\n",
        "mlx5_0",
    ));
    files.extend(nic("pci0000:97/0000:97:05.0/0000:9f:00.0", "1\n", "mlx5_1"));
    files.extend(nic("pci0000:b0/0000:b1:00.0", "-1\n", "mlx5_2"));
    let plain: [(&str, &str); 10] = [
        ("devices/pci0000:15/0000:15:00.0/class", "0x060000\n"),
        ("devices/system/node/node0/cpulist", "0-3,8-11\n"),
        (
            "devices/system/node/node0/meminfo",
            "Node 0 MemTotal:  1024 kB\nNode 0 MemFree: 512 kB\n",
        ),
        ("devices/system/node/node0/distance", "10 21\n"),
        (
            "devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
            "64\n",
        ),
        (
            "devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
            "60\n",
        ),
        (
            "devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages",
            "2\n",
        ),
        ("devices/system/node/node1/cpulist", "4-7\n"),
        (
            "devices/system/node/node1/meminfo",
            "Node 1 MemTotal: 0 kB\n",
        ),
        ("devices/system/node/possible", "0-1\n"),
    ];
    files.extend(plain.map(|(p, c)| (p.to_owned(), c.to_owned())));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(p, c)| (p.as_str(), c.as_str()))
        .collect();
    tree(&files)
}

#[test]
fn nodes_are_read() {
    let dir = two_sockets();
    let machine = Topology::read(dir.path());
    let [zero, one] = &machine.nodes[..] else {
        panic!("two nodes: {machine:?}")
    };
    assert_eq!(zero.cpus, [0, 1, 2, 3, 8, 9, 10, 11]);
    assert_eq!((zero.memory_bytes, zero.free_bytes), (1 << 20, 1 << 19));
    assert_eq!(zero.distances, [10, 21]);
    assert_eq!(
        zero.huge,
        [
            HugePool {
                page_bytes: 2 << 20,
                total: 64,
                free: 60
            },
            HugePool {
                page_bytes: 1 << 30,
                total: 2,
                free: 0
            },
        ]
    );
    assert_eq!(one.cpus, [4, 5, 6, 7]);
    let with_memory: Vec<u32> = machine.memory_nodes().map(|n| n.id).collect();
    assert_eq!(with_memory, [0], "a node without memory gets no pool");
}

#[test]
fn devices_know_what_is_near() {
    let dir = two_sockets();
    let machine = Topology::read(dir.path());
    assert_eq!(machine.devices.len(), 5, "bridges are not listed");
    let gpu = &machine.devices[0];
    assert_eq!(
        (gpu.kind, gpu.vendor, gpu.device),
        (PciKind::Gpu, 0x10de, 0x2330)
    );
    assert_eq!(gpu.path, ["pci0000:15", "0000:15:01.0", "0000:16:00.0"]);
    let nics: Vec<_> = machine
        .nearest(gpu, PciKind::Nic)
        .into_iter()
        .map(|(far, nic)| (far, nic.names[0].as_str()))
        .collect();
    let (switch, across, node) = (PciDistance::Switch, PciDistance::Across, PciDistance::Node);
    assert_eq!(
        nics,
        [(switch, "mlx5_0"), (node, "mlx5_2"), (across, "mlx5_1")]
    );
    let far = &machine.devices[2];
    assert_eq!(far.node, Some(1));
    assert_eq!(machine.nearest(far, PciKind::Nic)[0].0, PciDistance::Root);
    let unknown = machine
        .devices
        .iter()
        .find(|d| d.node.is_none())
        .expect("mlx5_2");
    assert_eq!(machine.node_of(unknown), 0);
}

#[test]
fn a_machine_without_numa_is_one_node() {
    let dir = tree(&[("devices/system/cpu/online", "0-1\n")]);
    let machine = Topology::read(dir.path());
    assert_eq!(machine.nodes.len(), 1);
    assert_eq!(machine.nodes[0].cpus, [0, 1]);
    assert_eq!(machine.memory_nodes().count(), 1);
    let empty = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(Topology::read(empty.path()).nodes.len(), 1);
}

#[test]
fn garbage_is_left_out() {
    let node = format!("{NODE}/node7/cpulist");
    let memory = format!("{NODE}/node7/meminfo");
    let dir = tree(&[
        (&node, "x,3-1,5,0-4294967295,,7-\n"),
        (
            &memory,
            "Node 7 MemTotal: 99999999999999999999 kB\nMemTotal:",
        ),
        (&format!("{NODE}/nodeX/cpulist"), "0\n"),
        ("devices/pci0/0000:00:01.0/class", "banana\n"),
        ("devices/pci0/0000:00:02.0/class", "0x030000\n"),
    ]);
    let machine = Topology::read(dir.path());
    assert_eq!(machine.nodes.len(), 1);
    assert_eq!(
        machine.nodes[0].cpus.len(),
        CPUS_MAX as usize,
        "no endless list"
    );
    assert_eq!(machine.nodes[0].memory_bytes, 0);
    assert!(machine.devices.is_empty(), "no vendor, no device");
}

#[test]
fn this_machine_has_a_node() {
    let machine = Topology::this_machine();
    assert!(!machine.nodes.is_empty());
    assert!(machine.nodes.iter().any(|n| !n.cpus.is_empty()));
}
