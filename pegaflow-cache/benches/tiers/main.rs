// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a second tier costs and gives: lookups and saves beside it, and how fast a prefix comes back.
//!
//! Every figure stands beside one of the same run. Napkin: a lookup that the pool answers asks the
//! tier nothing, so it may cost no more than without. A prefix of 1 GiB on a drive of 3 GB/s takes
//! 0.36 s; the node adds an index lookup, a reservation and a seal a block, some 2 us of a block's
//! 350 us, on another core. The first block is one read, and two wake-ups of a thread.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "lines for tools on stdout, text for people on stderr"
)]

mod fetch;
mod report;
mod rig;
mod save;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let after = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let only = after("--op");
    // A real drive, if there is one: /tmp may be memory.
    let dir = after("--dir").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).expect("a folder on the drive");
    let size = if quick {
        rig::Size::quick()
    } else {
        rig::Size::full()
    };
    let wanted = |op: &str| only.as_deref().is_none_or(|only| only == op);
    if wanted("lookup") {
        save::lookup(dir.path(), &size);
    }
    if wanted("trace") {
        save::trace(&size);
    }
    if wanted("fetch") {
        fetch::run(dir.path(), &size);
    }
    if wanted("save") {
        save::save(dir.path(), &size);
    }
    if wanted("burst") {
        save::burst(dir.path(), &size);
    }
}
