// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The settings of `pegaflow-server`.
//!
//! Doc comments here are user documentation: `--help`, `--print-config` and the Configuration
//! Reference are made from them. The first paragraph is what `-h` shows.

use std::net::SocketAddr;
use std::path::PathBuf;

use pegaflow_mem::HugePages;

use crate::core::CoreSettings;
use crate::describe::{choices, settings};
use crate::node::{NodeSettings, TraceSettings};
use crate::tier::SsdSettings;

settings! {
    /// Everything `pegaflow-server` can be told.
    pub struct Settings {
        /// Name of this node; keeps the pools and sockets of several nodes of one user apart.
        ///
        /// Letters, digits, `-`, `_` and `.`; 64 at most.
        pub name: String = "default".to_owned(),
        /// Unix socket that clients connect to (mode 0600: only this user).
        ///
        /// When absent: `$XDG_RUNTIME_DIR/pegaflow/<name>.sock`, or
        /// `/tmp/pegaflow-<uid>/<name>.sock` where that variable is not set. The socket for handing
        /// over pools lies beside it and ends in `.pool`.
        pub socket: Option<PathBuf> = None,
        /// TCP address for gRPC, beside the Unix socket; off when absent.
        ///
        /// An address that other machines can reach needs `token_file`, `tls.client_ca`, or
        /// `insecure`. Every user of this machine can reach a loopback address; a token helps there
        /// too. Callers can look blocks up and count, not read or write them: bytes move through
        /// shared memory only.
        pub tcp: Option<SocketAddr> = None,
        /// TLS of the TCP address.
        pub tls: TlsSettings = TlsSettings::default(),
        /// HTTP address for `/health`, `/ready` and `/metrics`. Port 0 takes any free port.
        pub http: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7411)),
        /// File with the token that TCP and HTTP callers must present as `authorization: Bearer ...`.
        ///
        /// Only its first line counts; 16 characters at least. The Unix socket needs no token: its
        /// file mode guards it.
        pub token_file: Option<PathBuf> = None,
        /// Allow addresses that other machines can reach without a token.
        ///
        /// Anyone who reaches the port can then read and change the cache. For closed test networks.
        pub insecure: bool = false,
        /// The memory that holds the blocks.
        pub pool: PoolSettings = PoolSettings::default(),
        /// Drives that keep blocks beside the pool.
        pub ssd: SsdSettings = SsdSettings::default(),
        /// Limits, lifetimes, eviction and tenants.
        pub cache: CoreSettings = CoreSettings::default(),
        /// Which lookups are traced in the log.
        pub trace: TraceSettings = TraceSettings::default(),
        /// What goes to standard error.
        pub log: LogSettings = LogSettings::default(),
        /// The server itself: threads, tickets, timekeeping.
        pub runtime: RuntimeSettings = RuntimeSettings::default(),
        /// What happens on SIGTERM.
        pub shutdown: ShutdownSettings = ShutdownSettings::default(),
    }
}

settings! {
    /// TLS of the TCP address. Off unless both `certificate` and `key` are set.
    pub struct TlsSettings {
        /// File with the server's certificate chain in PEM, its own certificate first. With
        /// `tls.key`: callers over TCP must then use TLS.
        ///
        /// Read once, at the start.
        pub certificate: Option<PathBuf> = None,
        /// File with the private key of `tls.certificate` in PEM. Only the server's user should be
        /// able to read it.
        pub key: Option<PathBuf> = None,
        /// File with the certificates, in PEM, of authorities that vouch for callers. Callers must
        /// then present a certificate that one of them has signed.
        ///
        /// This guards an address as `token_file` does; where both are set, callers need both.
        pub client_ca: Option<PathBuf> = None,
    }
}

settings! {
    /// The memory that holds the blocks.
    pub struct PoolSettings {
        /// Bytes of host memory for KV blocks, over all NUMA nodes.
        ///
        /// The server itself needs less than 64 MiB beside it, and at most 128 bytes for each block.
        pub bytes: u64 = 4 << 30,
        /// Directory of the pool files. They outlive the server: a restart finds the blocks again.
        ///
        /// When absent: `/dev/shm/pegaflow-<uid>/<name>`. Put it on a hugetlbfs mount for huge pages
        /// that cannot be split, or on tmpfs; any other file system works but is slower.
        pub dir: Option<PathBuf> = None,
        /// Pages the pool is made of. Huge ones save TLB misses and make registration with GPUs and
        /// NICs faster; `pegaflow-server probe` says which can be had here.
        pub pages: Pages = Pages::Auto,
        /// One pool on each NUMA node, or one for all.
        pub numa: Numa = Numa::Auto,
        /// Threads that touch the memory of a new pool before the server is ready. 0 leaves it to
        /// first use.
        ///
        /// Touching takes about a second for 4 GiB and thread; without it the first save to each page
        /// pays for it. A pool found from an earlier run is not touched again.
        pub touch_threads: u32 = 0,
        /// Threads that read the records of an existing pool at the start.
        pub recover_threads: u32 = 4,
    }
}

choices! {
    /// Pages the pool is made of.
    pub enum Pages {
        /// The largest that can be had without failing: reserved 2 MiB, transparent, or plain.
        Auto = "auto",
        /// The machine's plain pages (4 KiB).
        None = "none",
        /// Plain pages that the kernel may join to huge ones.
        Transparent = "transparent",
        /// Reserved pages of 2 MiB, or the server does not start.
        Size2MiB = "2MiB",
        /// Reserved pages of 1 GiB, or the server does not start.
        Size1GiB = "1GiB",
    }
}

choices! {
    /// How pools follow the machine's NUMA nodes.
    pub enum Numa {
        /// A pool on each NUMA node that has memory, bound to it.
        Auto = "auto",
        /// One pool, wherever memory is.
        Off = "off",
    }
}

impl From<Pages> for HugePages {
    fn from(pages: Pages) -> Self {
        match pages {
            Pages::Auto => HugePages::Auto,
            Pages::None => HugePages::None,
            Pages::Transparent => HugePages::Transparent,
            Pages::Size2MiB => HugePages::Size2MiB,
            Pages::Size1GiB => HugePages::Size1GiB,
        }
    }
}

settings! {
    /// What goes to standard error.
    pub struct LogSettings {
        /// Form of a log line.
        pub format: LogFormat = LogFormat::Text,
        /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or directives such as
        /// `info,pegaflow_cache=debug`.
        ///
        /// `RUST_LOG` is used when neither a flag, `PEGAFLOW_LOG_FILTER` nor the file sets it.
        pub filter: String = "info".to_owned(),
    }
}

choices! {
    /// Form of a log line.
    pub enum LogFormat {
        /// One line for people, coloured on a terminal.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

settings! {
    /// The server itself: threads, tickets, timekeeping.
    pub struct RuntimeSettings {
        /// Threads that serve requests. 0 means one for each core, from 2 to 8.
        pub threads: u32 = 0,
        /// Most lookups that may wait on tickets at once; further ones are answered `Busy`.
        ///
        /// Each costs 8 bytes of memory that clients share. 1,048,576 at most.
        pub tickets_max: u32 = NodeSettings::default().tickets_max,
        /// How often leases, reservations and tickets are looked through for those that are over.
        ///
        /// They end at most so much later than their time; 10,000 at most. A client's death is
        /// seen at once.
        pub tick_ms: u32 = NodeSettings::default().tick_ms,
    }
}

settings! {
    /// What happens on SIGTERM or SIGINT.
    pub struct ShutdownSettings {
        /// How long running requests may take to end after the signal. A second signal ends at once.
        pub drain_ms: u32 = 5_000,
    }
}

/// Most threads that `runtime.threads = 0` starts.
const THREADS_AUTO_MAX: usize = 8;

impl RuntimeSettings {
    /// The number of worker threads on a machine with `cores` cores.
    #[must_use]
    pub fn threads_on(&self, cores: usize) -> usize {
        match usize::try_from(self.threads) {
            Ok(0) | Err(_) => cores.clamp(2, THREADS_AUTO_MAX),
            Ok(threads) => threads,
        }
    }
}

impl Settings {
    /// Fills in what depends on the user who runs the server: [`Settings::socket`] and the pool's
    /// directory. `runtime_dir` is `$XDG_RUNTIME_DIR`.
    #[must_use]
    pub fn resolved(mut self, uid: u32, runtime_dir: Option<PathBuf>) -> Self {
        let name = &self.name;
        self.socket.get_or_insert_with(|| match runtime_dir {
            Some(dir) => dir.join("pegaflow").join(format!("{name}.sock")),
            None => PathBuf::from(format!("/tmp/pegaflow-{uid}/{name}.sock")),
        });
        self.pool
            .dir
            .get_or_insert_with(|| PathBuf::from(format!("/dev/shm/pegaflow-{uid}/{name}")));
        self
    }
}
