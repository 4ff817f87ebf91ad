// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One guest: what it has, how it is started, how it ends or is cut off.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::cache::Cache;

/// Where the guest has huge pages as files.
const HUGETLBFS: &str = "/run/huge";
/// Lines of the console that are shown when a guest fails.
const TAIL: usize = 30;

/// An NVMe drive of a guest: a file of the host behind it.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    pub(super) image: PathBuf,
    pub(super) sector_bytes: u32,
    /// The NUMA node it says it hangs on.
    pub(super) node: u32,
}

/// A guest to be.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    cache: &'a Cache,
    cpus: u32,
    memory_mib: u32,
    nodes: u32,
    huge_pages: u32,
    drives: Vec<Drive>,
    variables: Vec<(String, String)>,
    limit: Duration,
}

impl<'a> Machine<'a> {
    /// Two CPUs, 1 GiB, one NUMA node, no drive.
    pub(super) fn new(cache: &'a Cache) -> anyhow::Result<Self> {
        Ok(Self {
            cache,
            cpus: 2,
            memory_mib: 1024,
            nodes: 1,
            huge_pages: 0,
            drives: vec![],
            variables: vec![],
            limit: Duration::from_secs(600),
        })
    }

    pub(super) fn size(mut self, cpus: u32, memory_mib: u32) -> Self {
        (self.cpus, self.memory_mib) = (cpus, memory_mib);
        self
    }

    /// So many NUMA nodes, which share CPUs and memory, each with so many huge pages of 2 MiB.
    pub(super) fn numa(mut self, nodes: u32, huge_pages: u32) -> Self {
        (self.nodes, self.huge_pages) = (nodes, huge_pages);
        self
    }

    pub(super) fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Over it the guest is killed.
    pub(super) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs a command in the guest to its end. Returns its status.
    pub(super) fn run(&self, command: &[String], each: impl FnMut(&str)) -> anyhow::Result<i32> {
        self.start(command, None)?.finish(self.limit, each)
    }

    /// Starts the guest and the command in it, with a copy of `ledger`, if there is one, in the shared folder.
    pub(super) fn start(
        &self,
        command: &[String],
        ledger: Option<&Path>,
    ) -> anyhow::Result<Running> {
        let job = self.cache.path(&format!("job-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&job);
        std::fs::create_dir_all(&job)?;
        std::fs::write(job.join("guest.sh"), include_str!("guest.sh"))?;
        std::fs::write(job.join("environment"), self.environment())?;
        if let Some(ledger) = ledger.filter(|path| path.exists()) {
            std::fs::copy(ledger, job.join("ledger"))?;
        }
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        let here = std::env::current_dir()?.display().to_string();
        let text = format!("cd {}\nexec {}\n", quoted(&here), words.join(" "));
        std::fs::write(job.join("command"), text)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.arguments(&job)?);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
        let console = child.stdout.take().context("stdout is piped")?;
        Ok(Running {
            child,
            console,
            job,
        })
    }

    fn environment(&self) -> String {
        let own = |name: &str| (name.to_owned(), std::env::var(name).unwrap_or_default());
        let given = [
            ("PEGAFLOW_VM", "1".to_owned()),
            (
                "PEGAFLOW_VM_MODULES",
                self.cache.modules().display().to_string(),
            ),
            ("PEGAFLOW_VM_HUGE_PAGES", self.huge_pages.to_string()),
            ("PEGAFLOW_VM_HUGETLBFS", HUGETLBFS.to_owned()),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value));
        let all = ["PATH", "HOME"].map(own).into_iter().chain(given);
        let all = all.chain(self.variables.iter().cloned());
        all.map(|(name, value)| format!("export {name}={}\n", quoted(&value)))
            .collect()
    }

    fn arguments(&self, job: &Path) -> anyhow::Result<Vec<String>> {
        // TCG's own five-level page tables are slow, and nothing here needs them.
        let how = match self.cache.accelerator()?.as_str() {
            "kvm" => ["-accel", "kvm", "-cpu", "host"],
            _ => ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"],
        };
        let file = |name: &str| self.cache.path(name).display().to_string();
        let mut all: Vec<String> = vec!["-M".into(), "q35".into()];
        all.extend(how.map(String::from));
        all.extend(words(
            "-nodefaults -no-user-config -display none -serial stdio -no-reboot",
        ));
        all.extend([
            "-kernel".into(),
            file("vmlinux"),
            "-initrd".into(),
            file("first-files"),
        ]);
        all.push("-append".into());
        all.push("console=ttyS0 loglevel=3 panic=-1 mitigations=off tsc=reliable".into());
        all.extend(words(&format!("-smp {} -m {}", self.cpus, self.memory_mib)));
        for (tag, path, more) in [
            ("host", "/", ",readonly=on,multidevs=remap"),
            ("job", &*job.display().to_string(), ""),
        ] {
            all.push("-fsdev".into());
            all.push(format!(
                "local,id={tag},security_model=none,path={}{more}",
                comma(path)
            ));
            all.extend(words(&format!(
                "-device virtio-9p-pci,bus=pcie.0,fsdev={tag},mount_tag={tag}"
            )));
        }
        if self.nodes > 1 {
            all.extend(self.node_arguments());
        }
        for (i, drive) in self.drives.iter().enumerate() {
            all.extend(self.drive_arguments(i, drive));
        }
        Ok(all)
    }

    fn node_arguments(&self) -> Vec<String> {
        let (nodes, mut all) = (self.nodes, vec![]);
        for node in 0..nodes {
            let mib = self.memory_mib / nodes;
            let (first, last) = (node * self.cpus / nodes, (node + 1) * self.cpus / nodes);
            let cpus = match first == last {
                true => String::new(),
                false => format!(",cpus={first}-{}", last - 1),
            };
            all.extend(words(&format!(
                "-object memory-backend-ram,id=memory{node},size={mib}M -numa node,nodeid={node},memdev=memory{node}{cpus}"
            )));
            // A bus of its own is what gives a device a node.
            if node > 0 {
                let bus = 0x40 + 0x20 * node;
                all.extend(words(&format!(
                    "-device pxb-pcie,id=bus{node},bus_nr={bus},bus=pcie.0,numa_node={node}"
                )));
            }
        }
        all
    }

    fn drive_arguments(&self, i: usize, drive: &Drive) -> Vec<String> {
        let image = comma(&drive.image.display().to_string());
        let sector = drive.sector_bytes;
        let mut all = vec![
            "-drive".into(),
            format!("id=drive{i},if=none,format=raw,discard=unmap,file={image}"),
        ];
        let bus = match drive.node {
            0 => ",bus=pcie.0".to_owned(),
            node => {
                let port = format!(
                    "-device pcie-root-port,id=port{i},bus=bus{node},chassis={}",
                    i + 1
                );
                all.extend(words(&port));
                format!(",bus=port{i}")
            }
        };
        all.extend(words(&format!(
            "-device nvme,serial=pegaflow{i},drive=drive{i},logical_block_size={sector},physical_block_size={sector}{bus}"
        )));
        all
    }
}

/// A guest that runs.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    console: ChildStdout,
    job: PathBuf,
}

impl Running {
    /// The folder that host and guest share: the guest sees it as `/mnt/job`, and what it writes there is here at once.
    pub(super) fn job(&self) -> &Path {
        &self.job
    }

    /// Hands over what the command prints, and returns its status.
    ///
    /// # Errors
    /// If the guest did not start, was over its limit or died.
    pub(super) fn finish(self, limit: Duration, mut each: impl FnMut(&str)) -> anyhow::Result<i32> {
        let child = Arc::new(Mutex::new(self.child));
        let (over, ended) = mpsc::channel::<()>();
        let theirs = child.clone();
        let watch = std::thread::spawn(move || {
            let late = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                // Dead already is as good.
                let _ = theirs.lock().unwrap_or_else(PoisonError::into_inner).kill();
            }
            late
        });
        let (mut ready, mut all) = (false, vec![]);
        for line in BufReader::new(self.console)
            .split(b'\n')
            .map_while(Result::ok)
        {
            let line = String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_owned();
            match line.strip_prefix("guest: ") {
                Some(what) if what.starts_with("ready") => ready = true,
                Some("done") => ready = false,
                _ if ready => each(&line),
                _ => {}
            }
            all.push(line);
        }
        drop(over);
        let late = watch.join().unwrap_or(false);
        child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait()?;
        let status = std::fs::read_to_string(self.job.join("status"));
        match status.ok().and_then(|text| text.trim().parse().ok()) {
            Some(status) => {
                let _ = std::fs::remove_dir_all(&self.job);
                Ok(status)
            }
            None => {
                let tail = all[all.len().saturating_sub(TAIL)..].join("\n  ");
                let limit = limit.as_secs();
                match late {
                    true => bail!("the guest was not done after {limit} s; its console:\n  {tail}"),
                    false => bail!("the guest died; its console:\n  {tail}"),
                }
            }
        }
    }

    /// The guest's power fails: it ends at once, in the middle of whatever it does.
    pub(super) fn cut(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it is still up.
    pub(super) fn alive(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// QEMU's way of a comma inside a value.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        for word in ["", "a b", "it's", "$HOME `x` \\ \"y\"\n"] {
            let echo = format!("printf %s {}", quoted(word));
            let out = Command::new("sh").args(["-c", &echo]).output();
            assert_eq!(out.expect("sh is everywhere").stdout, word.as_bytes());
        }
    }
}
