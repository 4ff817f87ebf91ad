// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `vm`: a virtual machine with hardware that the host may not have, and the host's own userland inside.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use crate::workspace::Workspace;

mod archive;
mod cache;
mod machine;
mod suites;

use cache::Cache;
use machine::Machine;

/// Run programs in a virtual machine: two NUMA nodes, huge pages, raw NVMe drives, power cuts.
///
/// The guest runs Debian's kernel over the host's file system (read-only; changes stay in memory), so what was built here
/// runs there. The first use installs QEMU and downloads the kernel into `target/vm`; KVM is used if a guest really starts
/// with it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// A Debian package with the guest's kernel, where apt cannot get one
    #[arg(long, global = true, value_name = "DEB")]
    kernel: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Get all that is needed, and nothing else.
    Prepare,
    /// Run a command in a guest; its status is ours.
    Run(RunArgs),
    /// Run the suites that need NUMA nodes, huge pages and raw drives, then cut the power under a writer.
    Test {
        /// How often the power is cut
        #[arg(long, default_value_t = 1)]
        cuts: u32,
    },
    /// Run a benchmark on the guest's raw NVMe drive. Only shares of a floor mean something there.
    Bench(BenchArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// CPUs of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory of the guest, MiB
    #[arg(long, default_value_t = 1024)]
    memory_mib: u32,
    /// NUMA nodes, which share CPUs and memory
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// The guest is killed after so many seconds
    #[arg(long, default_value_t = 600)]
    limit_s: u64,
    /// The command, looked up in the host's file system
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct BenchArgs {
    /// The benchmark; `ssd` is the one there is
    name: String,
    /// Full length instead of a few seconds
    #[arg(long)]
    full: bool,
    /// Alternate with fio running the same job in the same guest
    #[arg(long)]
    fio: bool,
    /// Only points whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let cache = Cache::prepare(ws, args.kernel.as_deref())?;
    match &args.what {
        What::Prepare => Ok(()),
        What::Run(args) => run_command(&cache, args),
        What::Test { cuts } => suites::test(ws, &cache, *cuts),
        What::Bench(args) => bench(ws, &cache, args),
    }
}

fn run_command(cache: &Cache, args: &RunArgs) -> anyhow::Result<()> {
    let machine = Machine::new(cache)?
        .size(args.cpus, args.memory_mib)
        .numa(args.nodes, 0)
        .limit(Duration::from_secs(args.limit_s));
    match machine.run(&args.command, |line| println!("{line}"))? {
        0 => Ok(()),
        status => std::process::exit(status),
    }
}

fn bench(ws: &Workspace, cache: &Cache, args: &BenchArgs) -> anyhow::Result<()> {
    ensure!(
        args.name == "ssd",
        "`ssd` is the benchmark that runs in the VM"
    );
    let mut arguments = vec![];
    if !args.full {
        arguments.push("--quick".to_owned());
    }
    if args.fio {
        arguments.push("--fio".to_owned());
    }
    if let Some(only) = &args.only {
        arguments.extend(["--only".to_owned(), only.clone()]);
    }
    suites::bench(ws, cache, &arguments)
}
