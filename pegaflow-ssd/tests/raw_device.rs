// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A store on raw block devices, overwritten: `PEGAFLOW_TEST_DEVICES` names them (`cargo xtask vm test` makes two, with sectors of 512 and
//! 4,096 bytes, and runs this).
#![allow(clippy::print_stderr, reason = "a test that cannot run says why")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use pegaflow_ssd::{
    BlockStore, Buf, Device, Error, Fetched, Get, Key, Put, Settings, SsdStore, Stored, inspect,
};

const DEVICES: &str = "PEGAFLOW_TEST_DEVICES";
/// Tells the child process which device to use, and what for.
const CHILD: &str = "PEGAFLOW_TEST_CHILD";
const SEGMENT_BYTES: u64 = 4 << 20;

/// The devices are used by one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn with_devices(test: impl Fn(&[PathBuf])) {
    let Some(list) = std::env::var_os(DEVICES) else {
        assert!(std::env::var_os("PEGAFLOW_VM").is_none(), "the VM has them");
        eprintln!("skipped: needs raw drives (`cargo xtask vm test` has them, or {DEVICES})");
        return;
    };
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let devices: Vec<PathBuf> = std::env::split_paths(&list).collect();
    test(&devices);
}

fn open(device: &Path, format: bool) -> Result<SsdStore, Error> {
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        format,
        ..Settings::default()
    };
    SsdStore::open(settings, &[Device::existing(device)])
}

fn key(n: u64) -> Key {
    Key::from(u128::from(n))
}

fn body(n: u64) -> Buf {
    let bytes = match n % 4 {
        0 => 1 + n as usize * 37 % 4096,
        1 => 4096 * (1 + n as usize % 8),
        2 => 100_000 + n as usize,
        _ => 256 << 10,
    };
    let mut buf = Buf::new(bytes);
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i as u64 * 31 + n * 7) as u8;
    }
    buf
}

fn put_all(store: &SsdStore, keys: std::ops::Range<u64>, mut each: impl FnMut(u64)) {
    let mut waiting = VecDeque::new();
    let mut end = |(n, ticket): (u64, pegaflow_ssd::Ticket<Stored>)| {
        assert_eq!(ticket.wait().result, Ok(Stored::Stored));
        each(n);
    };
    for n in keys {
        let ticket = store.put(Put::new(key(n), body(n)));
        waiting.push_back((n, ticket.expect("there is room")));
        if waiting.len() > 16 {
            end(waiting.pop_front().expect("16 wait"));
        }
    }
    waiting.into_iter().for_each(end);
}

fn check_all(store: &SsdStore, keys: std::ops::Range<u64>) {
    for n in keys {
        let done = store.get(Get::new(key(n), Buf::new(256 << 10)));
        let done = done.expect("there is room").wait();
        let found = matches!(done.result, Ok(Fetched::Hit { .. }));
        assert!(found, "block {n}: {:?}", done.result);
        assert!(done.bufs[0][..] == body(n)[..], "block {n}: wrong bytes");
    }
}

#[test]
fn blocks_outlive_the_store_on_any_sector_size() {
    with_devices(|devices| {
        for device in devices {
            let store = open(device, true).expect("a device of its own");
            let info = store.stats().devices[0].clone();
            assert!(info.direct && info.backend == "io_uring", "{info:?}");
            put_all(&store, 0..120, |_| {});
            check_all(&store, 0..120);
            drop(store);
            let store = open(device, false).expect("it is a store now");
            let report = &store.recovery()[0];
            assert_eq!((report.blocks, report.scanned_segments), (120, 0));
            check_all(&store, 0..120);
        }
    });
}

#[test]
fn several_devices_are_one_store() {
    with_devices(|devices| {
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            format: true,
            ..Settings::default()
        };
        let all: Vec<Device> = devices.iter().map(Device::existing).collect();
        let store = SsdStore::open(settings, &all).expect("one store");
        put_all(&store, 0..60, |_| {});
        check_all(&store, 0..60);
        for (device, stats) in devices.iter().zip(store.stats().devices) {
            let (_, segments, ..) = inspect(device).expect("a store");
            assert!(stats.free_segments < u64::from(segments), "{stats:?}");
        }
    });
}

#[test]
fn another_process_is_refused() {
    with_devices(|devices| {
        let store = open(&devices[0], true).expect("a device of its own");
        let said = in_child("open", &devices[0]).output().expect("it runs");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("refused: in use"), "{said}");
        drop(store);
    });
}

#[test]
fn a_killed_process_loses_nothing_that_it_was_promised() {
    with_devices(|devices| {
        for device in devices {
            drop(open(device, true).expect("a device of its own"));
            let mut writer = in_child("write", device)
                .stdout(Stdio::piped())
                .spawn()
                .expect("it runs");
            let said = BufReader::new(writer.stdout.take().expect("it is piped")).lines();
            let said = said
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("stored ")?.parse().ok());
            let last: u64 = said.take(50).last().expect("it stores");
            // SIGKILL.
            writer.kill().expect("it lives");
            writer.wait().expect("it is ours");
            let store = open(device, false).expect("the kernel let go of it");
            assert!(store.recovery()[0].blocks > last);
            check_all(&store, 0..last + 1);
        }
    });
}

#[test]
fn a_device_says_whose_it_is() {
    with_devices(|devices| {
        drop(open(&devices[0], true).expect("a device of its own"));
        let (segment_bytes, segments, member, members) = inspect(&devices[0]).expect("a store");
        assert_eq!((segment_bytes, member, members), (SEGMENT_BYTES, 0, 1));
        assert!(segments >= 4);
    });
}

fn in_child(what: &str, device: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--exact", "child", "--nocapture"]);
    command.env(CHILD, what).env(DEVICES, device);
    command
}

/// Not a test of its own: what the child processes of the tests above do.
#[test]
fn child() {
    use std::io::Write;
    let (Ok(what), Some(device)) = (std::env::var(CHILD), std::env::var_os(DEVICES)) else {
        return;
    };
    let mut out = std::io::stdout();
    match open(Path::new(&device), false) {
        Err(Error::InUse { .. }) => drop(writeln!(out, "refused: in use")),
        Err(e) => panic!("{e}"),
        Ok(store) if what == "write" => put_all(&store, 0..1 << 20, |n| {
            writeln!(out, "stored {n}").expect("the parent listens");
        }),
        Ok(_) => {}
    }
}
