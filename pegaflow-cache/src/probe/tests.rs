// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::*;

/// A tree of files below a temporary directory: `path`, `text`.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("make directories");
        std::fs::write(path, text).expect("write a fixture");
    }
    dir
}

fn live() -> Live {
    let shm = Some(Space {
        total_bytes: 32 << 30,
        free_bytes: 31 << 30,
    });
    Live {
        io_uring_error: None,
        shm,
        root: false,
    }
}

/// A server with two NUMA nodes, two GPUs and an RDMA device, where nothing is missing.
const RICH: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.8.0-45-generic\n"),
    ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-31\n"),
    (
        "proc/cpuinfo",
        "processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n",
    ),
    (
        "proc/meminfo",
        "MemTotal:       67108864 kB\nMemAvailable:   33554432 kB\n",
    ),
    (
        "proc/self/limits",
        "Max locked memory         unlimited            unlimited            bytes\n",
    ),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "always [madvise] never\n",
    ),
    (
        "sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size [advise] never deny force\n",
    ),
    ("sys/devices/system/node/node0/cpulist", "0-15\n"),
    (
        "sys/devices/system/node/node0/meminfo",
        "Node 0 MemTotal:       33554432 kB\nNode 0 MemFree:        1048576 kB\n",
    ),
    (
        "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
        "2048\n",
    ),
    (
        "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
        "2000\n",
    ),
    (
        "sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages",
        "0\n",
    ),
    ("sys/devices/system/node/node1/cpulist", "16-31\n"),
    (
        "sys/devices/system/node/node1/meminfo",
        "Node 1 MemTotal:       33554432 kB\n",
    ),
    ("sys/bus/pci/devices/0000:1b:00.0/vendor", "0x10de\n"),
    ("sys/bus/pci/devices/0000:1b:00.0/device", "0x2335\n"),
    ("sys/bus/pci/devices/0000:1b:00.0/class", "0x030200\n"),
    ("sys/bus/pci/devices/0000:1b:00.0/numa_node", "0\n"),
    ("sys/bus/pci/devices/0000:1b:00.1/vendor", "0x10de\n"),
    ("sys/bus/pci/devices/0000:1b:00.1/class", "0x040300\n"),
    (
        "proc/driver/nvidia/gpus/0000:1b:00.0/information",
        "Model: \t\t NVIDIA H200\nDevice Minor: \t 0\n",
    ),
    (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\nGCC version: gcc 12.3.0\n",
    ),
    ("dev/nvidia0", ""),
    ("etc/ld.so.conf.d/cuda.conf", "# comment\n/opt/nvidia/lib\n"),
    ("opt/nvidia/lib/libcuda.so.1", ""),
    ("usr/lib64/libibverbs.so.1", ""),
    ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
    (
        "sys/class/infiniband/mlx5_0/ports/1/rate",
        "400 Gb/sec (4X NDR)\n",
    ),
    (
        "sys/class/infiniband/mlx5_0/ports/1/link_layer",
        "InfiniBand\n",
    ),
    ("sys/class/infiniband/mlx5_0/device/numa_node", "1\n"),
    ("sys/block/nvme0n1/queue/rotational", "0\n"),
    ("sys/block/nvme0n1/size", "2097152\n"),
    ("sys/block/nvme0n1/device/model", "FAST 1\n"),
    ("sys/block/sda/queue/rotational", "1\n"),
    ("sys/block/sda/size", "2097152\n"),
    ("sys/block/loop0/queue/rotational", "0\n"),
];

#[test]
fn a_machine_with_everything_needs_nothing() {
    let dir = tree(RICH);
    let report = Report::of(Facts::read(dir.path(), live()));
    let text = report.text();
    assert!(
        report.checks.iter().all(|c| c.level == Level::Good),
        "{text}"
    );
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(
        lines[1..],
        [
            "ok    kernel       Linux 6.8.0-45-generic",
            "ok    cpu          32 cores, avx512f",
            "ok    memory       64GiB, 32GiB available",
            "ok    numa         node0 32GiB (cpus 0-15)",
            "node1 32GiB (cpus 16-31)",
            "ok    /dev/shm     32GiB, 31GiB free",
            "ok    huge pages   node0 2048 x 2MiB (2000 free)",
            "ok    transparent  private madvise, shared advise",
            "ok    memlock      unlimited",
            "ok    io_uring     works",
            "ok    drives       nvme0n1 FAST 1 1GiB",
            "ok    gpus         0000:1b:00.0 NVIDIA H200 on node0",
            "ok    cuda         driver 570.86.15, /opt/nvidia/lib/libcuda.so.1",
            "ok    rdma         mlx5_0 InfiniBand ACTIVE 400 Gb/sec (4X NDR) on node1",
            "Nothing to do.",
        ]
    );
}

/// The check `name` on the rich machine with `changes` (an empty text removes the file).
fn changed(changes: &[(&str, &str)], live: Live, name: &str) -> Check {
    let dir = tree(RICH);
    for (path, text) in changes {
        let file = dir.path().join(path);
        match text.is_empty() {
            true => std::fs::remove_file(file).expect("remove a fixture"),
            false => {
                std::fs::create_dir_all(file.parent().expect("a parent")).expect("directories");
                std::fs::write(file, text).expect("write a fixture");
            }
        }
    }
    let report = Report::of(Facts::read(dir.path(), live));
    report
        .checks
        .into_iter()
        .find(|c| c.name == name)
        .expect("the check exists")
}

#[test]
fn what_is_missing_comes_with_what_to_do() {
    let refused = || Live {
        io_uring_error: Some("Operation not permitted".into()),
        ..live()
    };
    let small = || Live {
        shm: Some(Space {
            total_bytes: 64 << 20,
            free_bytes: 0,
        }),
        ..live()
    };
    let limits = "Max locked memory  8388608  8388608  bytes\n";
    let node0 = "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
    for (changes, live, name, level, part) in [
        (
            vec![("proc/sys/kernel/osrelease", "5.4.0\n")],
            live(),
            "kernel",
            Level::Missing,
            "Older than 5.10",
        ),
        (
            vec![("proc/cpuinfo", "flags : sse2\n")],
            live(),
            "cpu",
            Level::Note,
            "AVX2",
        ),
        (
            vec![("sys/fs/cgroup/memory.max", "1073741824\n")],
            live(),
            "memory",
            Level::Note,
            "container's limit",
        ),
        (
            vec![("sys/fs/cgroup/memory.max", "max\n")],
            live(),
            "memory",
            Level::Good,
            "",
        ),
        (vec![], small(), "/dev/shm", Level::Note, "`pool.dir`"),
        (
            vec![(node0, "0\n")],
            live(),
            "huge pages",
            Level::Note,
            "sysctl vm.nr_hugepages",
        ),
        (
            vec![(
                "sys/kernel/mm/transparent_hugepage/shmem_enabled",
                "[never]\n",
            )],
            live(),
            "transparent",
            Level::Note,
            "echo advise",
        ),
        (
            vec![("proc/self/limits", limits)],
            live(),
            "memlock",
            Level::Note,
            "ulimit -l unlimited",
        ),
        (vec![], refused(), "io_uring", Level::Missing, "seccomp"),
        (
            vec![("proc/sys/kernel/io_uring_disabled", "2\n")],
            refused(),
            "io_uring",
            Level::Missing,
            "sysctl kernel.io_uring_disabled=0",
        ),
        (
            vec![("dev/nvidia0", "")],
            live(),
            "gpus",
            Level::Note,
            "--gpus all",
        ),
        (
            vec![("opt/nvidia/lib/libcuda.so.1", "")],
            live(),
            "cuda",
            Level::Missing,
            "container toolkit",
        ),
        (
            vec![("proc/driver/nvidia/version", "")],
            live(),
            "cuda",
            Level::Missing,
            "modprobe nvidia",
        ),
        (
            vec![("usr/lib64/libibverbs.so.1", "")],
            live(),
            "rdma",
            Level::Missing,
            "apt install libibverbs1",
        ),
        (
            vec![("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n")],
            live(),
            "rdma",
            Level::Missing,
            "No port is active",
        ),
    ] {
        // A fixture that is to be removed exists already; one that is to be added is written.
        let check = changed(&changes, live, name);
        let all = format!("{} {}", check.advice, check.commands.join("\n"));
        assert_eq!(check.level, level, "{name}: {check:?}");
        assert!(all.contains(part), "{name}: {all}");
    }
}

#[test]
fn a_machine_that_says_nothing_is_still_reported() {
    let dir = tree(&[]);
    let report = Report::of(Facts::read(dir.path(), Live::default()));
    assert_eq!(report.checks.len(), 13);
    assert!(report.text().contains("What could be better"));
}

#[test]
fn this_machine_is_reported_as_json_too() {
    let report = Report::of_this_machine();
    let json = serde_json::to_value(&report).expect("a report has a JSON form");
    assert!(
        json["facts"]["cores"].as_u64().expect("a number") > 0,
        "{json}"
    );
    assert!(json["checks"][0]["level"].is_string(), "{json}");
}
