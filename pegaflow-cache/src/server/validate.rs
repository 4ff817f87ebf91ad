// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Settings that are each well formed but cannot work, alone or together.
//!
//! Looks at files only to say early what would fail later (a directory where a file belongs).

use std::net::SocketAddr;
use std::path::PathBuf;

use super::layers::{Layers, escape};
use super::settings::{Settings, TlsSettings};
use crate::describe::{first_line, format_bytes, read_file};
use crate::error::Error;
use crate::node::{TICK_MS_MAX, TICKETS_MAX};
use crate::rpc::ServerTls;

/// Smallest pool that makes sense: a few blocks of a small model.
const POOL_BYTES_MIN: u64 = 16 << 20;
/// Bytes of a Unix socket's path the kernel takes, without the `.pool` of the second socket.
const SOCKET_PATH_MAX: usize = 107 - ".pool".len();
/// Longest name of a node.
const NAME_MAX: usize = 64;
/// Most worker threads that can be asked for.
const THREADS_MAX: u32 = 1024;
/// Shortest token that is not guessed.
const TOKEN_MIN: usize = 16;

impl Settings {
    /// Notes in `layers` everything that cannot work. `self` must be [`Settings::resolved`].
    pub fn validate(&self, layers: &mut Layers) {
        self.check_name(layers);
        self.check_socket(layers);
        self.check_token(layers);
        self.check_tls(layers);
        self.check_address("http", self.http, false, layers);
        if let Some(tcp) = self.tcp {
            self.check_address("tcp", tcp, self.tls.client_ca.is_some(), layers);
        }
        self.check_pool(layers);
        self.check_cache(layers);
        self.check_runtime(layers);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            layers.reject("log.filter", format!("`{}`: {error}", self.log.filter), "write a level (error, warn, info, debug, trace) or directives such as `info,pegaflow_cache=debug`");
        }
    }

    /// The token that callers over TCP and HTTP must present, if one is set.
    ///
    /// # Errors
    /// A sentence that says why the file cannot be read.
    pub fn token(&self) -> Result<Option<String>, String> {
        let text = self.token_file.as_deref().map(read_file).transpose()?;
        Ok(text.map(|text| first_line(&text).to_owned()))
    }

    fn check_name(&self, layers: &mut Layers) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &self.name;
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.starts_with('.')
            || !name.chars().all(good)
        {
            let fix = format!(
                "write 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, not starting with a dot"
            );
            layers.reject(
                "name",
                format!("`{name}` cannot be part of a file name"),
                &fix,
            );
        }
    }

    fn check_socket(&self, layers: &mut Layers) {
        let Some(socket) = &self.socket else { return };
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_MAX {
            layers.reject(
                "socket",
                format!("the path has {bytes} bytes, a Unix socket's may have {SOCKET_PATH_MAX}"),
                "choose a shorter path, for example below /run or /tmp",
            );
        } else if socket.is_dir() {
            layers.reject(
                "socket",
                format!("{} is a directory", socket.display()),
                &format!(
                    "name a file in it: {}",
                    socket.join("pegaflow.sock").display()
                ),
            );
        }
    }

    fn check_runtime(&self, layers: &mut Layers) {
        let runtime = &self.runtime;
        if runtime.threads > THREADS_MAX {
            layers.reject(
                "runtime.threads",
                format!("{} threads", runtime.threads),
                &format!("write 0 to {THREADS_MAX}; 0 chooses by the number of cores"),
            );
        }
        for (path, value, max) in [
            ("runtime.tickets_max", runtime.tickets_max, TICKETS_MAX),
            ("runtime.tick_ms", runtime.tick_ms, TICK_MS_MAX),
        ] {
            if !(1..=max).contains(&value) {
                layers.reject(path, format!("{value}"), &format!("write 1 to {max}"));
            }
        }
    }

    fn check_token(&self, layers: &mut Layers) {
        let Some(path) = &self.token_file else { return };
        let fix = "write a random token into a file of mode 0600: (umask 077; head -c 24 /dev/urandom | base64 > FILE)";
        match read_file(path) {
            Err(what) => layers.reject("token_file", what, fix),
            Ok(text) if first_line(&text).len() < TOKEN_MIN => {
                let what = format!(
                    "the first line of {} is shorter than {TOKEN_MIN} characters",
                    path.display()
                );
                layers.reject("token_file", what, fix);
            }
            Ok(_) => {}
        }
    }

    fn check_tls(&self, layers: &mut Layers) {
        let TlsSettings {
            certificate,
            key,
            client_ca,
        } = &self.tls;
        let lacking = match (certificate, key) {
            (Some(_), None) => "tls.key",
            (None, Some(_)) => "tls.certificate",
            (None, None) if client_ca.is_some() => "tls.certificate",
            _ => "",
        };
        if !lacking.is_empty() {
            let fix = "set `tls.certificate` and `tls.key` together, both files in PEM";
            layers.reject(lacking, "TLS needs it", fix);
        } else if let Err(problem) = self.tls.read() {
            let fix = "name files in PEM: the certificate chain, and the key it was made for";
            layers.reject(problem.setting, problem.what, fix);
        } else if certificate.is_some() && self.tcp.is_none() {
            let what = "nothing uses it: only `tcp` speaks TLS, and it is off".to_owned();
            layers.warn("tls.certificate", what, "set `tcp`, or leave it out");
        }
    }

    fn check_address(&self, path: &str, address: SocketAddr, certified: bool, layers: &mut Layers) {
        let guarded = certified || self.insecure || self.token_file.is_some();
        if address.ip().is_loopback() || guarded {
            return;
        }
        let what = format!("other machines can reach {address}, and nothing guards it");
        let guard = match path {
            "tcp" => "`token_file` or `tls.client_ca`",
            _ => "`token_file`",
        };
        let fix = format!(
            "keep it on this machine ({}), or set {guard}, or accept the risk with `insecure = true` (--insecure)",
            SocketAddr::from(([127, 0, 0, 1], address.port()))
        );
        layers.reject(path, what, &fix);
    }

    fn check_pool(&self, layers: &mut Layers) {
        if self.pool.bytes < POOL_BYTES_MIN {
            let what = format!(
                "{} holds no useful number of blocks",
                format_bytes(self.pool.bytes)
            );
            layers.reject(
                "pool.bytes",
                what,
                &format!("write at least {}", format_bytes(POOL_BYTES_MIN)),
            );
        }
        let Some(dir) = &self.pool.dir else { return };
        if dir.exists() && !dir.is_dir() {
            layers.reject(
                "pool.dir",
                format!("{} is not a directory", dir.display()),
                "name a directory; it is made if it does not exist",
            );
        }
    }
}

/// A file of [`TlsSettings`] that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsProblem {
    /// The setting that names it.
    pub setting: &'static str,
    /// What is wrong with it, in a sentence.
    pub what: String,
}

impl TlsSettings {
    /// What TCP is served with; none where TLS is not asked for.
    ///
    /// # Errors
    /// [`TlsProblem`] for a file that cannot be read, or is not what it should be.
    pub fn read(&self) -> Result<Option<ServerTls>, TlsProblem> {
        let read = |setting, path: &Option<PathBuf>| {
            let text = path.as_deref().map(read_file).transpose();
            text.map_err(|what| TlsProblem { setting, what })
        };
        let certificate = read("tls.certificate", &self.certificate)?;
        let key = read("tls.key", &self.key)?;
        let client_ca = read("tls.client_ca", &self.client_ca)?;
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Ok(None);
        };
        let tls = ServerTls::new(&certificate, &key, client_ca.as_deref());
        tls.map(Some).map_err(|error| match error {
            Error::Setting { setting, why } => TlsProblem { setting, what: why },
            other => TlsProblem {
                setting: "tls.certificate",
                what: other.to_string(),
            },
        })
    }
}

impl Settings {
    fn check_cache(&self, layers: &mut Layers) {
        if let Err(crate::core::Error::Bad { what, reason }) = self.cache.validate() {
            layers.reject(&format!("cache.{what}"), reason, "");
        }
        let mut promised: u64 = 0;
        for (name, tenant) in &self.cache.tenants {
            let Some(bytes) = tenant.bytes_max else {
                continue;
            };
            promised = promised.saturating_add(bytes);
            if bytes > self.pool.bytes {
                let path = format!("cache.tenants.{}.bytes_max", escape(name));
                let (bytes, pool) = (format_bytes(bytes), format_bytes(self.pool.bytes));
                let what = format!("{bytes} are more than the pool's {pool}");
                layers.reject(&path, what, "lower it, leave it out, or raise `pool.bytes`");
            }
        }
        if promised > self.pool.bytes && self.cache.tenants.len() > 1 {
            let (promised, pool) = (format_bytes(promised), format_bytes(self.pool.bytes));
            let what =
                format!("the tenants' `bytes_max` add up to {promised}, the pool has {pool}");
            let fix = "fine if they are not all full at once; otherwise weights decide who evicts";
            layers.warn("cache.tenants", what, fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// What `toml` is refused for, one line a problem; empty when it is fine.
    fn problems(toml: &str) -> String {
        let mut layers = Layers::new::<Settings>();
        layers.file(Path::new("p.toml"), toml);
        let settings: Settings = layers.settings().expect("well formed");
        settings.resolved(7, None).validate(&mut layers);
        layers
            .settings::<Settings>()
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn the_defaults_are_fine() {
        assert_eq!(problems(""), "");
    }

    #[test]
    fn an_open_port_needs_a_guard() {
        for path in ["http", "tcp"] {
            let toml = format!("{path} = \"0.0.0.0:80\"");
            let message = problems(&toml);
            assert!(
                message.starts_with(&format!(
                    "p.toml:1: `{path}`: other machines can reach 0.0.0.0:80"
                )),
                "{message}"
            );
            assert!(
                message.contains("127.0.0.1:80") && message.contains("--insecure"),
                "{message}"
            );
            assert_eq!(problems(&format!("{toml}\ninsecure = true")), "");
        }
        assert_eq!(problems("tcp = \"[::1]:80\""), "");
    }

    #[test]
    fn a_guard_must_be_a_real_token() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("token");
        let toml = |path: &Path| format!("tcp = \"0.0.0.0:80\"\ntoken_file = {:?}", path.display());
        assert!(problems(&toml(&file)).contains("does not exist"));
        assert!(problems(&toml(dir.path())).contains("is a directory, a file is wanted"));
        std::fs::write(&file, "short\n").expect("write");
        assert!(problems(&toml(&file)).contains("shorter than 16"));
        std::fs::write(&file, "0123456789abcdef\n").expect("write");
        assert_eq!(problems(&toml(&file)), "");
    }

    #[test]
    fn tls_files_must_fit_together() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("makes a certificate");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("write");
            path.display().to_string()
        };
        let certificate = file("c.pem", &made.cert.pem());
        let key = file("k.pem", &made.signing_key.serialize_pem());
        let nowhere = dir.path().join("no").display().to_string();
        let pair = |certificate: &str, key: &str| {
            format!("tls.certificate = {certificate:?}\ntls.key = {key:?}\n")
        };
        let both = pair(&certificate, &key);
        let ca = |file: &str| format!("tls.client_ca = {file:?}\n");
        let open = |path: &str| format!("{path} = \"0.0.0.0:80\"\n");
        for (toml, what, fix) in [
            (
                format!("tls.certificate = {certificate:?}"),
                "`tls.key`",
                "together",
            ),
            (
                format!("tls.key = {key:?}"),
                "`tls.certificate`",
                "together",
            ),
            (ca(&certificate), "`tls.certificate`", "together"),
            (pair(&nowhere, &key), "does not exist", "PEM"),
            (pair(&key, &key), "`tls.certificate`", "PEM"),
            (both.clone() + &ca(&key), "`tls.client_ca`", "PEM"),
            // It hides what is said, and lets everybody in.
            (open("tcp") + &both, "nothing guards it", "`tls.client_ca`"),
            (
                open("http") + &both + &ca(&certificate),
                "`http`",
                "token_file",
            ),
        ] {
            let message = problems(&toml);
            assert!(
                message.contains(what) && message.contains(fix),
                "{toml}: {message}"
            );
        }
        assert_eq!(problems(&format!("tcp = \"127.0.0.1:80\"\n{both}")), "");
        assert_eq!(problems(&(open("tcp") + &both + &ca(&certificate))), "");
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_fix() {
        let long = "x".repeat(SOCKET_PATH_MAX + 1);
        for (toml, what, fix) in [
            (
                "name = \"a/b\"".to_owned(),
                "`a/b` cannot be part of a file name",
                "1 to 64 letters",
            ),
            (
                "name = \"..\"".to_owned(),
                "cannot be part",
                "not starting with a dot",
            ),
            (
                format!("socket = \"{long}\""),
                "the path has 103 bytes",
                "shorter path",
            ),
            (
                "socket = \"/tmp\"".to_owned(),
                "/tmp is a directory",
                "/tmp/pegaflow.sock",
            ),
            (
                "pool.bytes = 5".to_owned(),
                "5 holds no useful",
                "at least 16MiB",
            ),
            (
                "pool.dir = \"/proc/self/stat\"".to_owned(),
                "is not a directory",
                "name a directory",
            ),
            (
                "runtime.threads = 5000".to_owned(),
                "5000 threads",
                "write 0 to 1024",
            ),
            (
                "runtime.tick_ms = 0".to_owned(),
                "p.toml:1: `runtime.tick_ms`: 0",
                "write 1 to 10000",
            ),
            (
                "runtime.tickets_max = 2000000".to_owned(),
                "`runtime.tickets_max`: 2000000",
                "write 1 to 1048576",
            ),
            (
                "cache.leases_max = 0".to_owned(),
                "p.toml:1: `cache.leases_max`",
                "at least 1",
            ),
            (
                "pool.bytes = \"1GiB\"\ncache.tenants.a.bytes_max = \"2GiB\"".to_owned(),
                "p.toml:2: `cache.tenants.a.bytes_max`: 2GiB are more than the pool's 1GiB",
                "lower it",
            ),
            (
                "log.filter = \"a=b=c\"".to_owned(),
                "`a=b=c`",
                "directives such as",
            ),
        ] {
            let message = problems(&toml);
            assert!(
                message.contains(what) && message.contains(fix),
                "{toml}: {message}"
            );
        }
    }
}
