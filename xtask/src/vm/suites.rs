// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What runs in the VM: the suites that need its hardware, power cuts, benchmarks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::cache::Cache;
use super::machine::{Drive, Machine};
use crate::test::{Tally, build};
use crate::workspace::Workspace;

/// One suite: the name of its test program, and which of its tests.
const SUITES: &[(&str, &str)] = &[
    ("pegaflow_mem", "pool::shm::"),
    ("numa", ""),
    ("raw_device", ""),
];

const MIB: u64 = 1 << 20;
/// Huge pages of each node.
const HUGE_PAGES: u32 = 24;
/// A guest that starts, finds drives and runs all suites needs a tenth of it.
const LIMIT: Duration = Duration::from_secs(300);
/// How often a ledger is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Two nodes, and a drive on each: sectors of 512 and of 4,096 bytes.
fn machine<'a>(cache: &'a Cache, drives: &[PathBuf; 2]) -> anyhow::Result<Machine<'a>> {
    let drive = |i: usize, sector_bytes| Drive {
        image: drives[i].clone(),
        sector_bytes,
        node: i as u32,
    };
    Ok(Machine::new(cache)?
        .numa(2, HUGE_PAGES)
        .drive(drive(0, 512))
        .drive(drive(1, 4096))
        .variable("PEGAFLOW_TEST_DEVICES", "/dev/pegaflow0:/dev/pegaflow1")
        .limit(LIMIT))
}

/// The images of both drives, made anew.
fn blank(cache: &Cache, bytes: u64) -> anyhow::Result<[PathBuf; 2]> {
    let own = std::process::id();
    let images = [0, 1].map(|i| cache.path(&format!("drive{i}-{own}.raw")));
    for image in &images {
        // Blank and with holes: it takes room only where the guest writes.
        let file = std::fs::File::create(image)?;
        file.set_len(bytes)?;
    }
    Ok(images)
}

pub(super) fn test(ws: &Workspace, cache: &Cache, cuts: u32) -> anyhow::Result<()> {
    let programs =
        "test --no-run -p pegaflow-mem -p pegaflow-ssd --lib --test numa --test raw_device";
    let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
    let built = build(ws, &words(programs), &names)?;
    let chaos = "build --quiet -p pegaflow-ssd --example chaos";
    let chaos = program(&build(ws, &words(chaos), &["chaos"])?, "chaos")?;
    let drives = blank(cache, 512 * MIB)?;
    let result = suites(cache, &drives, &built);
    let result = result.and_then(|()| power_cuts(cache, &blank(cache, 512 * MIB)?, &chaos, cuts));
    for image in &drives {
        std::fs::remove_file(image)?;
    }
    result
}

fn suites(cache: &Cache, drives: &[PathBuf; 2], built: &[(String, PathBuf)]) -> anyhow::Result<()> {
    let mut script = String::from("status=0\n");
    for (name, filter) in SUITES {
        let program = program(built, name)?;
        let program = program.display();
        script += &format!(
            "echo '     Running {name}'; '{program}' {filter} --show-output || status=1\n"
        );
    }
    script += "exit $status";
    let mut tally = Tally::default();
    let command = ["sh".into(), "-c".into(), script];
    let status = machine(cache, drives)?.run(&command, |line| {
        if !tally.take(line) {
            println!("{line}");
        }
    })?;
    tally.close();
    for skipped in &tally.skipped {
        println!("skipped in the VM: {skipped}");
    }
    ensure!(status == 0 && tally.failed == 0, "a suite failed in the VM");
    println!(
        "vm: two NUMA nodes, huge pages, two raw drives: all {} tests are well",
        tally.passed
    );
    Ok(())
}

/// Cuts the power under a writer, and checks in the next boot that everything acknowledged as durable is there.
fn power_cuts(cache: &Cache, drives: &[PathBuf; 2], chaos: &Path, cuts: u32) -> anyhow::Result<()> {
    let kept = cache.path("ledger");
    let _ = std::fs::remove_file(&kept);
    let chaos = chaos.display();
    let on_job = |what: &str| format!("'{chaos}' --{what} /dev/pegaflow1 /mnt/job/ledger");
    for cut in 0..=cuts {
        let verify = on_job("verify");
        // The first boot has nothing to verify, the last nothing to write.
        let script = match cut {
            0 => format!("exec {}", on_job("write")),
            _ if cut == cuts => format!("exec {verify}"),
            _ => format!("{verify} && exec {}", on_job("write")),
        };
        let command = ["sh".into(), "-c".into(), script];
        let mut running = machine(cache, drives)?.start(&command, Some(&kept))?;
        if cut == cuts {
            let status = running.finish(LIMIT, |line| println!("{line}"))?;
            ensure!(status == 0, "the store broke its word after a power cut");
            break;
        }
        let ledger = running.job().join("ledger");
        let before = lines(&kept, "");
        // Not a fixed moment: more acknowledged blocks with each cut.
        let wanted = 60 + 45 * cut as usize;
        let mut tries = LIMIT.as_millis() / LOOK.as_millis();
        while lines(&ledger, "a ") < lines(&kept, "a ") + wanted {
            tries -= 1;
            if tries == 0 || !running.alive()? {
                running.finish(Duration::ZERO, |line| println!("{line}"))?;
                bail!("the writer ended by itself ({before} lines before)");
            }
            std::thread::sleep(LOOK);
        }
        running.cut()?;
        std::fs::copy(&ledger, &kept)?;
        println!(
            "vm: power cut after {} acknowledged blocks",
            lines(&kept, "a ")
        );
    }
    println!("vm: {cuts} power cuts, nothing lost");
    Ok(())
}

fn lines(file: &Path, prefix: &str) -> usize {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.starts_with(prefix)).count()
}

/// Builds a benchmark here and runs it on the guest's raw drive; its lines come back.
pub(super) fn bench(ws: &Workspace, cache: &Cache, arguments: &[String]) -> anyhow::Result<()> {
    let build_it = words("bench --no-run -p pegaflow-ssd --bench ssd");
    let built = build(ws, &build_it, &["ssd"])?;
    let drives = blank(cache, 1024 * MIB)?;
    let mut command = vec![program(&built, "ssd")?.display().to_string()];
    command.extend_from_slice(arguments);
    let machine = machine(cache, &drives)?.variable("PEGAFLOW_BENCH_SSD", "/dev/pegaflow1");
    let status = machine
        .limit(Duration::from_secs(1800))
        .run(&command, |line| println!("{line}"));
    for image in &drives {
        std::fs::remove_file(image)?;
    }
    ensure!(status? == 0, "the benchmark failed in the VM");
    Ok(())
}

fn program(built: &[(String, PathBuf)], name: &str) -> anyhow::Result<PathBuf> {
    let found = built.iter().find(|(target, _)| target == name);
    let (_, path) = found.with_context(|| format!("cargo built no `{name}`"))?;
    Ok(path.clone())
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}
