// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a guest is made of: Debian's kernel (unpacked, never installed), a first file system, and how to run them here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::archive::Archive;
use super::machine::Machine;
use crate::workspace::Workspace;

/// Programs the guest needs on the host, and Debian's packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
];

/// Whichever kernel is current. Its `-cloud-` sibling lacks drivers.
const KERNEL: &str = "linux-image-amd64";

/// Loaded before the host's file system is there; what they need comes with them.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay", "nvme"];

/// What a machine without hardware virtualization may still offer as `/dev/kvm` hangs: it must boot a guest within this time to be believed.
const TRIAL: Duration = Duration::from_secs(10);

/// A prepared cache.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Finds what is there, and gets what is missing.
    pub(super) fn prepare(ws: &Workspace, kernel: Option<&Path>) -> anyhow::Result<Self> {
        let folder = ws.target().join("vm");
        std::fs::create_dir_all(&folder)?;
        let cache = Self { folder };
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "the test VM runs on x86-64 Linux only"
        );
        install_programs()?;
        if kernel.is_some() || !cache.path("kernel-version").exists() {
            cache.unpack_kernel(kernel)?;
        }
        // Made anew each time: it has our own scripts inside, and costs nothing.
        cache.write_first_files()?;
        if !cache.path("accelerator").exists() {
            cache.choose_accelerator()?;
        }
        Ok(cache)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The kernel's modules, by version.
    pub(super) fn modules(&self) -> PathBuf {
        self.path("unpacked/lib/modules")
    }

    /// How QEMU runs the guest's code: `kvm`, or `tcg`, which translates it.
    pub(super) fn accelerator(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.path("accelerator"));
        Ok(text.context("the VM is not prepared")?.trim().to_owned())
    }

    fn version(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.path("kernel-version"))?;
        Ok(text.trim().to_owned())
    }

    fn unpack_kernel(&self, given: Option<&Path>) -> anyhow::Result<()> {
        let unpacked = self.path("unpacked");
        let package = match given {
            Some(file) => std::path::absolute(file)?,
            None => self.download_kernel()?,
        };
        let _ = std::fs::remove_dir_all(&unpacked);
        done(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
        if given.is_none() {
            std::fs::remove_file(&package)?;
        }
        let version = only_name(&self.modules())?;
        done(
            Command::new("depmod")
                .arg("-b")
                .arg(&unpacked)
                .arg(&version),
        )?;
        let image = std::fs::read(unpacked.join(format!("boot/vmlinuz-{version}")))?;
        std::fs::write(self.path("vmlinux"), uncompressed(&image)?)?;
        // Last, so that what was interrupted is done again.
        std::fs::write(self.path("kernel-version"), &version)?;
        eprintln!("vm: Linux {version} in {}", self.folder.display());
        Ok(())
    }

    fn download_kernel(&self) -> anyhow::Result<PathBuf> {
        let out = Command::new("apt-cache").args(["depends", KERNEL]).output();
        let out = out.context(
            "the guest's kernel comes from Debian by apt; without apt: `--kernel FILE.deb`",
        )?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let image = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "));
        let Some(image) = image.filter(|name| name.starts_with("linux-image-")) else {
            bail!(
                "apt knows no `{KERNEL}` here; give a Debian kernel package (linux-image-*-amd64_*.deb) with `--kernel FILE.deb`"
            );
        };
        eprintln!("vm: downloading {image} (70 MB)");
        let folder = self.path("download");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        // As root, apt would fetch as a user who may not write here.
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download", image]);
        done(apt.current_dir(&folder).stdout(Stdio::null()))?;
        Ok(folder.join(only_name(&folder)?))
    }

    fn write_first_files(&self) -> anyhow::Result<()> {
        let mut archive = Archive::default();
        for name in [
            "bin", "modules", "proc", "sys", "dev", "host", "changes", "newroot",
        ] {
            archive.folder(name);
        }
        let busybox = find_program("busybox").context("busybox was there a moment ago")?;
        archive.file("bin/busybox", &std::fs::read(busybox)?);
        for applet in ["sh", "mount", "insmod", "switch_root", "mkdir", "poweroff"] {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        let mut order = String::new();
        for file in self.modules_to_load()? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.trim_end_matches(".xz");
            let content = match file.extension().is_some_and(|end| end == "xz") {
                true => piped(Command::new("xz").arg("-dc").arg(&file), &[])?,
                false => std::fs::read(&file)?,
            };
            archive.file(&format!("modules/{name}"), &content);
            order += &format!("{name}\n");
        }
        archive.file("modules/order", order.as_bytes());
        archive.file("init", include_bytes!("init.sh"));
        Ok(std::fs::write(self.path("first-files"), archive.finish())?)
    }

    fn modules_to_load(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = vec![];
        for module in MODULES {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("-d").arg(self.path("unpacked"));
            modprobe.args(["-S", &self.version()?, "--show-depends", module]);
            let text = piped(&mut modprobe, &[])?;
            for line in String::from_utf8_lossy(&text).lines() {
                let file = line
                    .strip_prefix("insmod ")
                    .map(|f| PathBuf::from(f.trim()));
                files.extend(file.filter(|f| !files.contains(f)));
            }
        }
        Ok(files)
    }

    fn choose_accelerator(&self) -> anyhow::Result<()> {
        let chosen = match self.try_kvm() {
            Ok(()) => "kvm",
            Err(error) => {
                eprintln!(
                    "vm: no KVM here ({error:#}): the guest's code is translated, about ten times slower"
                );
                "tcg"
            }
        };
        Ok(std::fs::write(self.path("accelerator"), chosen)?)
    }

    fn try_kvm(&self) -> anyhow::Result<()> {
        let open = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        open.context("/dev/kvm cannot be opened")?;
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let hardware = cpus
            .split_whitespace()
            .any(|word| word == "vmx" || word == "svm");
        ensure!(
            hardware,
            "/dev/kvm is there, but the CPU has neither vmx nor svm"
        );
        std::fs::write(self.path("accelerator"), "kvm")?;
        let result = Machine::new(self)?
            .limit(TRIAL)
            .run(&["true".into()], |_| {});
        let _ = std::fs::remove_file(self.path("accelerator"));
        ensure!(result? == 0, "a guest did not start");
        Ok(())
    }
}

fn install_programs() -> anyhow::Result<()> {
    let missing = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let root = piped(Command::new("id").arg("-u"), &[])?.starts_with(b"0\n");
    if find_program("apt-get").is_none() || !root {
        bail!("the test VM needs these packages; please install: {list}");
    }
    eprintln!("vm: installing {list}");
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        done(apt.stdout(Stdio::null()))
    };
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    let install = [&install[..], &packages].concat();
    // A bare machine has not heard of any package yet.
    apt(&install).or_else(|_| apt(&["update", "-q"]).and_then(|()| apt(&install)))
}

// Also where a user's PATH does not lead.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .into_iter()
        .map(|f| f.join(name))
        .find(|f| f.is_file())
}

fn only_name(folder: &Path) -> anyhow::Result<String> {
    let first = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .next();
    let entry = first.with_context(|| format!("{} is empty", folder.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

/// What a program makes of `input`.
fn piped(command: &mut Command, input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let program = command.get_program().to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program:?}"))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let output = std::thread::scope(|scope| {
        // It may stop reading where its data end.
        scope.spawn(move || drop(std::io::Write::write_all(&mut stdin, input)));
        child.wait_with_output()
    })?;
    ensure!(
        output.status.success(),
        "{program:?} failed ({})",
        output.status
    );
    Ok(output.stdout)
}

/// The ELF file inside a bootable kernel. It boots without unpacking itself, which takes seconds where code is translated.
fn uncompressed(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    const XZ: &[u8] = b"\xfd7zXZ\0";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
    let at = |magic: &[u8]| image.windows(magic.len()).position(|w| w == magic);
    let elf = if let Some(at) = at(XZ) {
        piped(
            Command::new("xz").args(["-dc", "--single-stream"]),
            &image[at..],
        )?
    } else if let Some(at) = at(ZSTD) {
        // Rubbish follows the data: zstd complains, but only after it has written them all.
        let mut zstd = Command::new("sh");
        zstd.args(["-c", "zstd -dc 2>/dev/null || true"]);
        piped(&mut zstd, &image[at..])?
    } else {
        bail!("the kernel is compressed in an unknown way")
    };
    ensure!(elf.starts_with(b"\x7fELF"), "no ELF file inside the kernel");
    Ok(elf)
}
